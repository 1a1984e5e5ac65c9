"""pFedMe: personal models that minimise each client's loss near the shared model (Moreau envelopes).

T. Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, arXiv 2006.08848,
algorithm 1. In each local round r, on one batch, theta approaches the minimiser of
`loss(theta) + lam / 2 * ||theta - w_r||^2` by K steps; then `w_{r+1} = w_r - lr * lam * (w_r - theta)`. As in the
authors' code theta begins as the global model and goes on from one local round to the next. Clients are weighted by
samples; in the paper equally.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.devices import Work
from flrl.lightning.plain_sgd import require_plain_sgd
from flrl.strategies.base import Local
from flrl.strategies.stepping import Stepping, Steps, step
from flrl.trainers import LocalProblem
from flrl.types import Tensors


class PFedMe(Stepping):
    """FedAvg of models that follow the clients' personal ones.

    The local rounds are the steps of the trainer's settings, each on a batch, and the model's learning rate is that of
    theta. The server's `w <- (1 - beta) w + beta mean(w_i)` is plain SGD with `server_optimizer.lr` = beta. A client
    remembers theta for evaluation alone.

    Args:
        lam: weight of the proximal term, positive.
        lr: learning rate of the shared model, eta in the paper, positive; `lr * lam` is at most 1.
        inner_steps: K, steps of theta on each batch.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    evaluates = ("own",)

    def __init__(self, *, lam: float = 15.0, lr: float = 0.005, inner_steps: int = 5, **options: Any) -> None:
        super().__init__(**options)
        if not lam > 0:
            raise ValueError(f"strategy.lam={lam}: must be positive")
        if not 0 < lr * lam <= 1:
            raise ValueError(f"strategy.lr={lr}: must be positive, and lr * lam at most 1: w would pass theta")
        if inner_steps < 1:
            raise ValueError(f"strategy.inner_steps={inner_steps}: must be at least 1")
        self.lam = lam
        self.lr = lr
        self.inner_steps = inner_steps

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """Those of each batch in `inner_steps` steps."""
        return self.inner_steps * work.samples(sizes)

    def local(self, problem: LocalProblem) -> Local:
        """Alternate between theta and w.

        Raises:
            ValueError: the client's optimizer was not plain SGD.
        """
        theta, size, steps = problem.start, problem.num_trainable, Steps()
        shared = theta.to(torch.float64, copy=True)
        for number in range(problem.num_steps):
            near = {"near": shared[:size].to(theta.dtype)}
            for _ in range(self.inner_steps):
                trained = yield step(problem, theta, number, values=near)
                require_plain_sgd(trained.not_plain_sgd)
                steps.add(trained)
                theta = trained.vector
            shared[:size] -= self.lr * self.lam * (shared[:size] - theta[:size])
            shared[size:] = theta[size:]
        return steps.ended(problem, shared).update(problem, memory={"own": theta.cpu()})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add the proximal term's gradient, `lam * (theta - w_r)`."""
        if "near" in values:
            gradient.add_(parameters - values["near"], alpha=self.lam)

    def personal_model(self, problem: LocalProblem) -> Tensor:
        """Theta as the client ended with it last time; before it has taken part the global model."""
        return problem.task.memory.get("own", problem.start).to(problem.start.device)
