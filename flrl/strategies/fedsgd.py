"""Federated SGD: each client sends the gradient of its whole local loss; the server takes one step a round.

McMahan et al., AISTATS 2017, arXiv 1602.05629, section 2: `w <- w - lr * sum_c (n_c / N) * grad_c(w)`.
"""

from dataclasses import replace

from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem


class FedSGD(FedAvg):
    """FedAvg whose clients send minus a full-batch gradient; the server optimizer's `lr` is the learning rate.

    Of the trainer's settings only `batch_size` (to bound memory) and `precision` matter; the model's optimizer is not
    used. Arguments as for `FedAvg`.
    """

    passes, gradients = 0.0, 1.0

    def check(self, setup: Setup) -> None:
        """Refuse personal parameters, which clients of FedSGD would never step.

        Raises:
            ValueError: there are some, or as for `FedAvg`.
        """
        super().check(setup)
        if self.personal:
            raise ValueError(f"strategy.personal={list(self.personal)}: must be [], clients of FedSGD take no steps")

    def local(self, problem: LocalProblem) -> Local:
        """Compute the gradient of the client's mean loss over all its samples, at the global model."""
        return super().local(replace(problem, only_gradient=True))
