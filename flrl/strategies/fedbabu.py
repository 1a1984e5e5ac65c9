"""FedBABU: the head stays at its random initialisation while the body is learned together; clients finetune both.

Oh, Kim, Yun, "FedBABU: Toward Enhanced Representation for Federated Image Classification", ICLR 2022, arXiv
2106.06042. The personal parameters (`strategy.personal`) are the head: all clients have its initial values, so it is
neither trained nor sent nor remembered. Evaluate with `evaluation.finetune_steps`, as the paper does.
"""

from dataclasses import replace

from torch import Tensor

from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.trainers.problem import PERSONAL


class FedBABU(FedAvg):
    """FedAvg that trains all parameters but the personal ones; arguments as for `FedAvg`."""

    def check(self, setup: Setup) -> None:
        """Refuse a model without a head.

        Raises:
            ValueError: there are no personal parameters, or as for `FedAvg`.
        """
        super().check(setup)
        if not any(entry.kind == "trainable" for entry in setup.layout.personal):
            raise ValueError("strategy.personal=[]: must name the head that FedBABU keeps as it is, such as [head.*]")

    def personal_model(self, problem: LocalProblem) -> Tensor | None:
        """None: with the initial head every client has the global model, until it is finetuned."""
        return None

    def local(self, problem: LocalProblem) -> Local:
        """Train the body with the initial head."""
        entries = problem.model.layout.entries
        body = frozenset(entry.name for entry in entries if entry.kind == "trainable")
        trained = yield replace(problem, trainable=body)
        update = trained.update(problem)
        return replace(update, memory={name: kept for name, kept in update.memory.items() if name != PERSONAL})
