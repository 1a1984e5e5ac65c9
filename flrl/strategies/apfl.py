"""APFL: each client's personal model is a mixture of the global model and one of its own.

Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020, arXiv 2003.13461, algorithm 1. A client steps
the shared model w and, on the same batches, its own v along the gradient at `alpha v + (1 - alpha) w`, which is its
personal model. Clients are weighted by samples; in the paper equally.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flrl.strategies.base import Local
from flrl.strategies.stepping import Stepping, gradient, step
from flrl.trainers import LocalProblem, Trained


class APFL(Stepping):
    """FedAvg, beside which a client trains v; the global model is FedAvg's to the bit, whatever alpha is.

    A client takes three times FedAvg's steps: those of w, and, unless alpha is fixed at 0 or 1, again w's and v's one
    by one. It remembers v, which begins as the model that it is first sent, and alpha if that is adaptive.

    Args:
        alpha: weight of v in [0, 1]; 0 is the global model, 1 a model that the client trains alone.
        adaptive: each client has its own alpha, which takes a gradient step, clipped to [0, 1], with the first local
            step of a round.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    evaluates = ("own", "alpha")

    def __init__(self, *, alpha: float = 0.5, adaptive: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= alpha <= 1:
            raise ValueError(f"strategy.alpha={alpha}: must be in [0, 1]")
        self.alpha = alpha
        self.adaptive = adaptive
        self.passes = 3.0 if adaptive or 0 < alpha < 1 else 1.0 + alpha

    def local(self, problem: LocalProblem) -> Local:
        """Train w as FedAvg does, then v.

        Raises:
            ValueError: the client's optimizer was not plain SGD.
        """
        shared = yield problem
        alpha, own = self._mixture(problem)
        memory = {}
        if alpha == 1 and not self.adaptive:
            trained = yield replace(problem, start=own)
            memory["own"] = trained.vector.cpu()
        elif alpha > 0 or self.adaptive:
            alpha, own = yield from self._mixed(problem, alpha, own.double())
            memory["own"] = own.to(problem.start.dtype).cpu()
        if self.adaptive:
            memory["alpha"] = torch.tensor(alpha, dtype=torch.float64)
        return shared.update(problem, memory=memory)

    def _mixed(
        self, problem: LocalProblem, alpha: float, own: Tensor
    ) -> Generator[LocalProblem, Trained, tuple[float, Tensor]]:
        """Step w and v side by side; returns the next alpha, and v in float64."""
        shared, size = problem.start, problem.num_trainable
        for number in range(problem.num_steps):
            mixed = yield step(problem, alpha * own + (1 - alpha) * shared, number)
            change = -mixed.lr_sum * gradient(problem, mixed)
            towards = own[:size] - shared[:size]
            own = torch.cat([own[:size] + alpha * change, mixed.vector[size:].double()])
            if self.adaptive and number == 0:
                alpha = min(1.0, max(0.0, alpha + float(towards @ change)))
            if number + 1 < problem.num_steps:
                shared = (yield step(problem, shared, number)).vector
        return alpha, own

    def _mixture(self, problem: LocalProblem) -> tuple[float, Tensor]:
        memory = problem.task.memory
        alpha = float(memory["alpha"]) if "alpha" in memory else self.alpha
        return alpha, memory.get("own", problem.start).to(problem.start.device)

    def personal_model(self, problem: LocalProblem) -> Tensor:
        """The mixture of what the client remembers with the global model; of others than clients the latter."""
        alpha, own = self._mixture(problem)
        return (alpha * own.double() + (1 - alpha) * problem.start.double()).to(problem.start.dtype)
