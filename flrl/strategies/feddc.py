"""FedDC: clients learn how far they drift, and the drift is added before the server averages.

Gao, Fu, Li, Chen, Xu, Xu, "FedDC: Federated Learning with Non-IID Data via Local Drift Decoupling and Correction", CVPR
2022, arXiv 2203.11751, as in the authors' code (github.com/gaoliang13/FedDC). A client minimises `loss(w) + alpha / 2 *
||w - (w_global - h_i)||^2 + <c - c_i, w>`, where h_i is the sum of its updates so far, and c_i, c are variates as in
SCAFFOLD's option II; the next model is the mean of the cohort's models plus the mean of all h_i. The paper's text has
the client's last update over `lr * steps` in the place of -c_i. The code scales alpha and c by samples; here samples
weigh the means, as in SCAFFOLD. The code's clipping of gradients is left out.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.lightning.plain_sgd import require_plain_sgd
from flrl.strategies.base import Local
from flrl.strategies.variates import Variates, mean_gradient, renewed
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, ServerState, Tensors


class FedDC(Variates):
    """FedAvg with variates and drifts: h_i in a client's memory, their weighted mean in the state's variables.

    Args:
        alpha: weight of the term that keeps `w + h_i` near the global model, at least 0.
        options: as for `FedAvg`; the paper's server optimizer is SGD at learning rate 1.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, alpha: float, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= alpha < float("inf"):
            raise ValueError(f"strategy.alpha={alpha}: must be at least 0")
        self.alpha = alpha

    def local(self, problem: LocalProblem) -> Local:
        """Train with the two further terms, and renew the client's drift and variate.

        Raises:
            ValueError: the client's optimizer was not plain SGD.
        """
        start, memory, size = problem.broadcast.vector, problem.task.memory, problem.num_trainable
        zeros = start.new_zeros(size)
        drift, own = memory.get("drift", zeros), memory.get("control", zeros)
        control = problem.broadcast.variables.get("control", zeros)
        trained = yield replace(problem, values={"near": start[:size] - drift, "correction": control - own})
        require_plain_sgd(trained.not_plain_sgd)
        drift = (drift + trained.difference[:size]).to(drift.dtype)
        new = mean_gradient(trained, own, control).to(own.dtype)
        return renewed(problem, trained, own, new, {"drift": drift.cpu()})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add the gradients of the two terms, `alpha * (w - w_global + h_i)` and `c - c_i`."""
        gradient.add_(parameters - values["near"], alpha=self.alpha).add_(values["correction"])

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """The means of all drifts and variates change by the cohort's share; the drift is added to the mean update."""
        trainable, update = slice(layout.num_trainable), aggregate.vectors["update"].clone()
        drift = state.variables.get("drift", 0.0) + aggregate.share * update[trainable]
        if aggregate.total_weight > 0:  # an empty cohort has no mean model to be corrected
            update[trainable] += drift
        corrected = replace(aggregate, vectors={**aggregate.vectors, "update": update})
        after = super().aggregate(state, corrected, layout)
        return replace(after, variables={**after.variables, "drift": drift})
