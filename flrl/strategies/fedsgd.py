"""Federated SGD: each client sends the gradient of its whole local loss; the server takes one step a round.

McMahan et al., AISTATS 2017, arXiv 1602.05629, section 2: `w <- w - lr * sum_c (n_c / N) * grad_c(w)`.
"""

from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem, Trainer
from flrl.trainers.full_gradient import full_gradient
from flrl.types import ClientUpdate


class FedSGD(FedAvg):
    """FedAvg whose clients send minus a full-batch gradient; the server optimizer's `lr` is the learning rate.

    Of the trainer's settings only `batch_size` (to bound memory) and `precision` matter; the model's optimizer is not
    used. Arguments as for `FedAvg`.
    """

    def train(self, problem: LocalProblem, trainer: Trainer) -> ClientUpdate:
        """Minus the gradient of the client's whole loss at the global model."""
        return self.finish(full_gradient(problem, trainer), problem)
