"""SCAFFOLD: control variates correct the drift of clients with heterogeneous data.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, arXiv 1910.06378. A client steps along `gradient - c_i + c`. The paper weights clients equally; here clients are
weighted by samples throughout, so that c is the weighted mean of the c_i of all clients after every round.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from flrl.lightning.plain_sgd import require_plain_sgd
from flrl.strategies.base import Local
from flrl.strategies.variates import Variates, mean_gradient, renewed
from flrl.trainers import LocalProblem
from flrl.types import Tensors


class Scaffold(Variates):
    """FedAvg with control variates; c and c_i are kept as `Variates` says.

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
        self.option, self.gradients = option, float(option == 1)

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
        if self.option == 2:
            new = mean_gradient(trained, own, control)
        return renewed(problem, trained, own, new.to(own.dtype), {})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add `c - c_i`; nothing in the first round, where adding zeros would turn -0.0 into 0.0."""
        if "correction" in values:
            gradient.add_(values["correction"])
