"""FedNova: clients that take more or longer steps than others do not pull the model towards their own optima.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020, arXiv 2007.07481. A client's update is `-lr * sum_k a[k] * gradient_k`; divided by `lr * ||a||_1` it is a
mean of gradients, and the server steps along the mean of these, times the mean of `lr * ||a||_1` (the paper's
tau_eff = sum_i p_i ||a_i||_1; its p_i are shares of samples, as here). BatchNorm's statistics are averaged as they are.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.lightning.plain_sgd import check_constant_rate, check_plain_sgd, require_plain_sgd
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_mean
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem, Trained
from flrl.types import Aggregate, ServerState, Tensors


class FedNova(FedAvg):
    """FedAvg of normalised updates: with equal steps on all clients it is FedAvg, or FedProx where `mu` is positive.

    Args:
        momentum: that of the clients' SGD, in [0, 1).
        mu: weight of a proximal term as in FedProx, at least 0; `lr * mu` must be below 1, or weights alternate.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    beyond_means = "the server multiplies by a mean of clients' numbers of steps, on another scale than updates"

    def __init__(self, *, momentum: float = 0.0, mu: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= momentum < 1:
            raise ValueError(f"strategy.momentum={momentum}: must be at least 0 and below 1")
        if not mu >= 0:
            raise ValueError(f"strategy.mu={mu}: must be at least 0")
        self.momentum, self.mu = momentum, mu

    def check(self, setup: Setup) -> None:
        """Refuse local steps whose a_i the paper does not give, and all rules but the mean.

        Raises:
            ValueError: the optimizer is not SGD with `momentum` and no other setting; with momentum or a proximal term
                there is a scheduler, or a state that is kept; or as for `FedAvg`.
        """
        super().check(setup)
        check_plain_sgd(setup.module, setup.trainer, momentum=self.momentum)
        check_mean(setup.aggregator, "FedNova's normalised updates")
        if self.momentum or self.mu:
            check_constant_rate(setup.module, setup.trainer)
        if self.momentum and setup.trainer.keep_optimizer_state:
            raise ValueError("trainer.keep_optimizer_state=True: must be false, FedNova's momentum begins at zero")

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the update, and of `lr * ||a||_1`, one number."""
        return {**super().vector_sizes(layout), "total": 1}

    def local(self, problem: LocalProblem) -> Local:
        """Train, and divide the update by `lr * ||a||_1`; a client that took no step sends zeros.

        Raises:
            ValueError: the client's optimizer was not SGD with `momentum`.
        """
        values = {"global": problem.broadcast.vector[: problem.num_trainable]} if self.mu else {}
        trained = yield replace(problem, values=values)
        require_plain_sgd(trained.not_plain_sgd, momentum=self.momentum)
        total = self.total(trained)
        sent = trained.update(problem, payload={"total": 8})
        update = sent.vectors["update"].clone()
        if total > 0:
            update[: problem.num_trainable] /= total
        return replace(sent, vectors={"update": update, "total": torch.full_like(update[:1], total)})

    def total(self, trained: Trained) -> float:
        """`lr * ||a||_1`: how far a training goes whose gradients are all one, against them.

        With momentum the paper's `||a||_1 = (t - rho * (1 - rho^t) / (1 - rho)) / (1 - rho)` for t steps, with a
        proximal term `(1 - (1 - lr * mu)^t) / (lr * mu)`; plain steps may have learning rates of their own.
        """
        if not (self.momentum or self.mu) or not trained.num_steps:
            return trained.lr_sum
        lr, velocity, distance = trained.lr_sum / trained.num_steps, 0.0, 0.0
        for _ in range(trained.num_steps):
            velocity = self.momentum * velocity + 1 - self.mu * distance
            distance += lr * velocity
        return distance

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add the proximal term's gradient, `mu * (w - w_global)`, if there is one."""
        if "global" in values:
            gradient.add_(parameters - values["global"], alpha=self.mu)

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step along the mean normalised update times the mean `lr * ||a||_1`."""
        update = aggregate.vectors["update"].clone()
        update[: layout.num_trainable] *= aggregate.vectors["total"]
        return super().aggregate(state, replace(aggregate, vectors={"update": update}), layout)
