"""FedRep: clients share a representation, and each trains a head of its own before it trains what is shared.

Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, arXiv 2102.07078. The personal parameters (`strategy.personal`) are the head.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from flrl.devices import Work
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem


class FedRep(FedAvg):
    """FedAvg with personal parameters, which are trained first, alone; then what is shared, for the trainer's epochs.

    Without personal parameters it is FedAvg.

    Args:
        head_epochs: passes over the client's samples for the head, at least 1; None: the trainer's epochs or steps, as
            for the body.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, head_epochs: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if head_epochs is not None and head_epochs < 1:
            raise ValueError(f"strategy.head_epochs={head_epochs}: must be at least 1")
        self.head_epochs = head_epochs

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """Those of the body's training, and of the head's where there is one."""
        body = work.samples(sizes)
        if not self.personal:
            return body
        return np.asarray(body + (body if self.head_epochs is None else self.head_epochs * sizes))

    def local(self, problem: LocalProblem) -> Local:
        """Train the head with the body as it was sent, then the body with that head."""
        layout, shared = problem.model.layout, problem
        head, body = (
            frozenset(entry.name for entry in entries if entry.kind == "trainable")
            for entries in (layout.personal, layout.entries)
        )
        if head:
            alone = replace(problem, trainable=head)
            first = yield alone if self.head_epochs is None else replace(alone, epochs=self.head_epochs, steps=None)
            shared = first.next(problem, trainable=body)
        trained = yield shared
        return trained.update(problem)
