"""FedDyn: each client's regulariser changes from round to round, until local optima agree with the global one.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization", ICLR
2021, arXiv 2111.04263, algorithm 1. A client minimises `loss(w) - <g_k, w> + alpha / 2 * ||w - w_global||^2`, where g_k
is its gradient at the model it ended with last time. The paper weighs clients equally; here clients are weighted by
samples throughout, so that h is the weighted mean of all g_k after every round. Local steps end the minimisation early:
the optimum stays the only fixed point.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_mean
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, ServerState, Tensors


class FedDyn(FedAvg):
    """FedAvg with dynamic regularisation: h in the state's variables, g_k in a client's memory; absent ones are zero.

    Any local optimizer goes: what is taken for g_k is the gradient wherever the optimizer comes to rest.

    Args:
        alpha: weight of the regulariser; 0 is FedAvg, as h stays 0 and h / alpha is left out. For small ones clients
            train as in FedAvg, but h / alpha does not become small: it is minus the sum of all updates so far.
        options: as for `FedAvg`; the paper's server optimizer is SGD at learning rate 1.

    Raises:
        ValueError: a setting is invalid.
    """

    accumulates = True

    def __init__(self, *, alpha: float, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"strategy.alpha={alpha}: must be at least 0")
        self.alpha = alpha

    def check(self, setup: Setup) -> None:
        """Refuse all rules but the mean.

        Raises:
            ValueError: there is one, or as for `FedAvg`.
        """
        super().check(setup)
        check_mean(setup.aggregator, "FedDyn's corrections")

    def local(self, problem: LocalProblem) -> Local:
        """Train with the regulariser, and renew the client's gradient: `g_k <- g_k - alpha * (w_k - w_global)`."""
        start, size = problem.broadcast.vector, problem.num_trainable
        own = problem.task.memory.get("gradient", start.new_zeros(size))
        trained = yield replace(problem, values={"global": start[:size], "gradient": own})
        new = own.double() - self.alpha * trained.difference[:size]
        return trained.update(problem, memory={"gradient": new.to(own.dtype).cpu()})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add the regulariser's gradient, `alpha * (w - w_global) - g_k`."""
        gradient.add_(parameters - values["global"], alpha=self.alpha).sub_(values["gradient"])

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """`h <- h - alpha * (share of all clients) * (mean update)`, and the model is the mean one minus h / alpha."""
        trainable, update = slice(layout.num_trainable), aggregate.vectors["update"].clone()
        h = state.variables.get("h", 0.0) - self.alpha * aggregate.share * update[trainable]
        if self.alpha > 0 and aggregate.total_weight > 0:  # an empty cohort has no mean model to be corrected
            update[trainable] -= h / self.alpha
        after = super().aggregate(state, replace(aggregate, vectors={"update": update}), layout)
        return replace(after, variables={**state.variables, "h": h})
