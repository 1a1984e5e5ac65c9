"""FedProx: a proximal term keeps local models near the global one.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv
1812.06127. Clients minimise `loss(w) + mu / 2 * ||w - w_global||^2`; the paper's variable amount of local work is not
part of it.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Tensors


class FedProx(FedAvg):
    """FedAvg with the proximal term's gradient.

    Args:
        mu: weight of the proximal term, at least 0.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, mu: float, **options: Any) -> None:
        super().__init__(**options)
        if not mu >= 0:
            raise ValueError(f"strategy.mu={mu}: must be at least 0")
        self.mu = mu

    def local(self, problem: LocalProblem) -> Local:
        """Train with the global model among the values, for the proximal term."""
        values = {"global": problem.broadcast.vector[: problem.num_trainable]}
        return super().local(replace(problem, values=values))

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add the proximal term's gradient, `mu * (w - w_global)`."""
        gradient.add_(parameters - values["global"], alpha=self.mu)
