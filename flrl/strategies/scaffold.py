"""SCAFFOLD: control variates correct the drift of clients with heterogeneous data.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378. A client steps along `gradient - c_i + c`. The paper weights clients equally; here clients are
weighted by samples throughout, so that c is the weighted mean of the c_i of all clients after every round.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.lightning.plain_sgd import check_plain_sgd, require_plain_sgd
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_mean
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ServerState, Tensors


class Scaffold(FedAvg):
    """FedAvg with control variates: c in the state's variables, c_i in a client's memory; an absent one is zero.

    A c_i has the model's dtype, c is float64: the same changes are added to both, so c stays the mean of the c_i.

    Args:
        option: a client's new variate is its full gradient at the global model (1, costs a pass over its samples), or
            the mean of the gradients of its local steps, weighted by their learning rates (2); numbers as in the paper.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, option: int = 2, **options: Any) -> None:
        super().__init__(**options)
        if option not in (1, 2):
            raise ValueError(f"strategy.option={option}: must be 1 or 2")
        self.option = option

    def check(self, setup: Setup) -> None:
        """Refuse all optimizers but plain SGD, whose steps the variates are computed from, and all rules but the mean.

        Raises:
            ValueError: one of them, or as for `FedAvg`.
        """
        super().check(setup)
        check_plain_sgd(setup.module, setup.trainer)
        check_mean(setup.aggregator, "SCAFFOLD's variates")

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the update, and of the change of the client's variate."""
        return {**super().vector_sizes(layout), "control": layout.num_trainable}

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The model, and c in the model's dtype; in the first round there is no c to send."""
        sent = {"control": state.variables["control"].to(state.vector.dtype)} if "control" in state.variables else {}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def local(self, problem: LocalProblem) -> Local:
        """Train with corrected gradients, and update the client's variate.

        Raises:
            ValueError: the client's optimizer was not plain SGD.
        """
        sent, size = problem.broadcast.variables, problem.num_trainable
        zeros = problem.broadcast.vector.new_zeros(size)
        control, own = sent.get("control", zeros), problem.task.memory.get("control", zeros).to(zeros.device)
        new = own
        if self.option == 1:
            gradient = yield replace(problem, only_gradient=True)
            new = -gradient.difference[:size]
        trained = yield replace(problem, values={"correction": control - own} if sent else {})
        require_plain_sgd(trained.not_plain_sgd)
        if self.option == 2 and trained.lr_sum > 0:  # a client that took no step keeps its variate
            new = own.double() - control - trained.difference[:size] / trained.lr_sum
        new = new.to(own.dtype)
        return trained.update(
            problem,
            vectors={"control": new.double() - own},
            memory={"control": new.cpu()},
            payload={"control": new.nbytes},
        )

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add `c - c_i`; nothing in the first round, where adding zeros would turn -0.0 into 0.0."""
        if "correction" in values:
            gradient.add_(values["correction"])

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step; c changes by the mean change over all clients, of which the cohort is a weighted share."""
        control = state.variables.get("control", 0.0) + aggregate.share * aggregate.vectors["control"]
        return replace(super().aggregate(state, aggregate, layout), variables={**state.variables, "control": control})
