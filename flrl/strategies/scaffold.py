"""SCAFFOLD: control variates take out the drift of clients whose data differ.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378. A client steps along `gradient - c_i + c`. The paper weighs clients equally; here sample weights
hold throughout, so that c is the weighted mean of the c_i of all clients after every round.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from flrl.aggregation import Mean
from flrl.layout import ParameterLayout
from flrl.lightning.plain_sgd import check_plain_sgd, require_plain_sgd
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ServerState, Tensors


class Scaffold(FedAvg):
    """FedAvg with control variates: c in the state's variables, c_i in a client's memory; an absent one is zero.

    A c_i has the model's dtype, c is float64: what is added to both is the same number, so c stays the mean of the c_i.

    Args:
        option: a client's new variate is its full gradient at the global model (1, costs a pass over its samples), or
            the mean of the gradients of its local steps, weighted by their learning rates (2). As the paper numbers.
        options: as for `FedAvg`.
    """

    def __init__(self, *, option: int = 2, **options: Any) -> None:
        super().__init__(**options)
        if option not in (1, 2):
            raise ValueError(f"strategy.option={option}: must be 1 or 2")
        self.option = option

    def check(self, setup: Setup) -> None:
        """Refuse local steps but those of plain SGD, of which the variates are gradients, and rules but the mean."""
        super().check(setup)
        check_plain_sgd(setup.module, setup.trainer)
        if not isinstance(setup.aggregator, Mean):
            found = type(setup.aggregator).__name__
            raise ValueError(
                f"strategy.aggregator={found}: SCAFFOLD's variates need the mean, strategy/aggregator=mean"
            )

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """The update, and the change of the client's variate."""
        return {**super().vector_sizes(layout), "control": layout.num_trainable}

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The model, and c in the model's dtype; before anybody has trained there is no c to send."""
        sent = {"control": state.variables["control"].to(state.vector.dtype)} if "control" in state.variables else {}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def local(self, problem: LocalProblem) -> Local:
        """Train along corrected gradients, and renew the client's variate."""
        sent, size = problem.broadcast.variables, problem.num_trainable
        zeros = problem.broadcast.vector.new_zeros(size)
        control, own = sent.get("control", zeros), problem.task.memory.get("control", zeros).to(zeros.device)
        new = own
        if self.option == 1:
            gradient = yield replace(problem, only_gradient=True)
            new = -gradient.difference[:size]
        trained = yield replace(problem, values={"correction": control - own} if sent else {})
        require_plain_sgd(trained.not_plain_sgd)
        if self.option == 2 and trained.lr_sum > 0:  # without a step there is nothing to learn from
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
        """FedAvg's step; c moves by the mean change over all clients, of which the cohort made its share."""
        control = state.variables.get("control", 0.0) + aggregate.share * aggregate.vectors["control"]
        return replace(super().aggregate(state, aggregate, layout), variables={**state.variables, "control": control})
