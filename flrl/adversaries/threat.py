"""An adversary in a run: calls its methods for the malicious clients, each with its own memory and random numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries.base import Adversary, AdversaryContext, Nobody, Probe
from flrl.aggregation.base import Reducer
from flrl.aggregation.rows import RowsReducer
from flrl.data import FederatedData
from flrl.data.sources import Source
from flrl.layout import ParameterLayout
from flrl.seeding import SERVER, seed_for, seeded_for_client
from flrl.types import Broadcast, ClientTask, ClientUpdate, Tensors

PREFIX = "adversary/"
"""What the names of its tensors begin with, in client memory and among a state's variables."""


@dataclass(frozen=True, slots=True)
class Threat:
    """An adversary, and who is malicious in this run.

    Attributes:
        adversary: says what they do.
        clients: ids of the malicious clients, ascending.
        seed: the run's.
        probes: samples to evaluate besides the central test set.
        public: the central test samples, which a malicious server has; None for none.
    """

    adversary: Adversary = field(default_factory=Nobody)
    clients: Sequence[int] = ()
    seed: int = 0
    probes: Sequence[Probe] = ()
    public: Source | None = None

    @classmethod
    def of(cls, adversary: Adversary, num_clients: int, seed: int, test: Source | None = None) -> "Threat":
        """The threat by an adversary in a run; arguments as the attributes, and the central test samples."""
        probes = () if test is None else tuple(adversary.probes(test))
        return cls(adversary, adversary.malicious(num_clients, seed), seed, probes, test)

    @property
    def exists(self) -> bool:
        """Whether there is an adversary, with clients or without."""
        return not isinstance(self.adversary, Nobody)

    def present(self, round: int, cohort: Sequence[int]) -> list[int]:
        """Ids of the clients of a cohort that misbehave in a round, ascending."""
        if not self.clients or not self.adversary.active(round):
            return []
        there = set(cohort)
        return [client_id for client_id in self.clients if client_id in there]

    def samples(
        self, data: FederatedData, task: ClientTask, broadcast: Broadcast, layout: ParameterLayout, most: int | None
    ) -> tuple[Source, np.ndarray]:
        """The samples that a client trains on, `most` at most: its own, or what the adversary makes of them."""
        source, indices = data.splits.train, data.train_indices(task.client_id, task.round)[:most]
        if not self.present(task.round, [task.client_id]):
            return source, indices
        context = self._context(task.client_id, broadcast, layout)
        whole = data.dataset_indices(task.client_id)[:most]
        return self.adversary.samples(source, indices, replace(context, dataset_indices=whole))

    def on_client(
        self, update: ClientUpdate, memory: Tensors, broadcast: Broadcast, layout: ParameterLayout
    ) -> ClientUpdate:
        """What a client sends, before its transforms; `memory` is the client's before the round."""
        if not self.present(broadcast.round, [update.client_id]):
            return update
        context = self._context(update.client_id, broadcast, layout)
        seed = seed_for(self.seed, broadcast.round, update.client_id, "adversary/global")
        with seeded_for_client(seed, broadcast.vector.device):  # for those that draw from the global generators
            result: Any = self.adversary.update(update, own(memory), context)
        changed, kept = _two(result, self.adversary, "update")
        sent: ClientUpdate = replace(changed, memory={**changed.memory, **named(kept)})
        return sent

    def sent(self, broadcast: Broadcast, layout: ParameterLayout) -> Broadcast:
        """What the clients are sent, from the strategy's broadcast."""
        if not self.exists or not self.adversary.active(broadcast.round):
            return broadcast
        context = replace(self._context(SERVER, broadcast, layout), public=self.public)
        sent = self.adversary.broadcast(broadcast, context)
        return sent if sent.vector is broadcast.vector else replace(sent, encoded={})

    def colluded(
        self, reducer: Reducer, variables: Tensors, broadcast: Broadcast, layout: ParameterLayout
    ) -> dict[str, Tensor]:
        """Replace the rows of colluding clients in a merged reducer; nothing happens where nobody honest is there.

        Args:
            reducer: holds all updates of the round.
            variables: of the server's state before the round.
            broadcast: what the clients were sent.
            layout: of its vectors.

        Returns:
            The adversary's variables for the next state.
        """
        before = own(variables)
        if not self.adversary.needs_rows or not isinstance(reducer, RowsReducer):
            return kept_variables(variables)
        present = self.present(broadcast.round, [*reducer.rows])
        honest = sorted(reducer.rows.keys() - {*present})
        if not present or not honest:
            return kept_variables(variables)
        start, end = _span(reducer.sizes, "update")
        rows, others = (
            torch.stack([reducer.rows[client_id][start:end] for client_id in those]) for those in (present, honest)
        )
        context = replace(self._context(SERVER, broadcast, layout), honest=honest)
        result: Any = self.adversary.collude(others, rows, before, context)
        changed, kept = _two(result, self.adversary, "collude")
        if changed.shape not in (rows.shape, rows.shape[1:]):
            raise TypeError(
                f"adversary: {type(self.adversary).__name__}.collude gives shape {list(changed.shape)}, must be "
                f"{list(rows.shape)} or {list(rows.shape[1:])}"
            )
        for client_id, row in zip(present, changed.detach().double().cpu().expand_as(rows), strict=True):
            whole = reducer.rows[client_id]
            reducer.rows[client_id] = torch.cat([whole[:start], row, whole[end:]])
        return named({name: tensor.detach().cpu() for name, tensor in kept.items()})

    def _context(self, client_id: int, broadcast: Broadcast, layout: ParameterLayout) -> AdversaryContext:
        seed = seed_for(self.seed, broadcast.round, client_id, "adversary")
        return AdversaryContext(
            round=broadcast.round,
            seed=self.seed,
            layout=layout,
            cohort=broadcast.cohort,
            total_weight=broadcast.total_weight,
            sent=broadcast.vector,
            malicious=self.clients,
            client_id=client_id,
            generator=torch.Generator().manual_seed(seed),
        )


def own(tensors: Tensors) -> Tensors:
    """The adversary's tensors in client memory or among a state's variables, by their own names."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}


def named(tensors: Tensors) -> dict[str, Tensor]:
    """Those tensors as they are named there."""
    return {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}


def kept_variables(variables: Tensors) -> dict[str, Tensor]:
    """The adversary's variables among a state's, under the names that they have there."""
    return named(own(variables))


def _two(result: Any, adversary: Adversary, method: str) -> tuple[Any, Tensors]:
    """What a method returned; TypeError unless it is two things, the second one tensors by name."""
    whole = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
    if not whole or not all(isinstance(tensor, Tensor) for tensor in result[1].values()):
        raise TypeError(
            f"adversary: {type(adversary).__name__}.{method} must return two things, the second one tensors to be "
            f"remembered by name; it returns {type(result).__name__}"
        )
    found: tuple[Any, Tensors] = result
    return found


def _span(sizes: Mapping[str, int], name: str) -> tuple[int, int]:
    """Where a vector is in a row of vectors of these sizes."""
    names = list(sizes)
    start = sum(sizes[before] for before in names[: names.index(name)])
    return start, start + sizes[name]
