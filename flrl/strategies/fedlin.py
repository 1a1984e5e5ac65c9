"""FedLin: clients correct their steps by the gradients of all clients at the present global model.

Mitra, Jaafar, Pappas, Hassani, "Linear Convergence in Federated Learning: Tackling Client Heterogeneity and Sparse
Gradients", NeurIPS 2021, arXiv 2102.07053, algorithm 1 without sparsification. A round of the paper has two exchanges,
which are two rounds here: in the odd ones clients send their full gradients and the model stays; in the even ones they
step along `gradient - gradient_i(w_global) + mean gradient(w_global)`. Differs from the paper: clients are weighted by
samples, not equally; their learning rate is the module's, and not divided by their number of steps; and the model is
sent in both exchanges, as a client keeps nothing but its gradient.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from torch import Tensor

from flrl.devices import Work
from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_everybody
from flrl.strategies.exchange import gradient_update
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.workload import has
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ServerState, Tensors


class FedLin(FedAvg):
    """FedAvg with gradients of the present model; the mean one is in the state's variables between the two exchanges.

    Arguments as for `FedAvg`; any local optimizer goes, as nothing is computed from the updates.
    """

    reads_samples = True

    def check(self, setup: Setup) -> None:
        """Refuse cohorts: the gradient of the mean loss is that of all clients.

        Raises:
            ValueError: not all clients take part in every round, or as for `FedAvg`.
        """
        super().check(setup)
        check_everybody(setup, "FedLin")

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The model, and in a round of training the mean gradient in the model's dtype."""
        mean = state.variables.get("mean_gradient")
        sent = {} if mean is None else {"mean_gradient": mean.to(state.vector.dtype)}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """A full gradient; or a training, once there is the mean one."""
        training = work if has(sent, "mean_gradient") else replace(work, passes=0.0, gradients=1.0)
        return training.samples(sizes)

    def local(self, problem: LocalProblem) -> Local:
        """Compute the full gradient; or train with corrected gradients, once there is the mean one."""
        sent, own = problem.broadcast.variables, problem.task.memory.get("gradient")
        if own is None or not sent:
            gradient = yield replace(problem, only_gradient=True)
            own = -gradient.difference[: problem.num_trainable].to(problem.start.dtype)
            if not sent:
                return gradient_update(problem, gradient, {"gradient": own.cpu()})
        trained = yield replace(problem, values={"correction": sent["mean_gradient"] - own})
        return trained.update(problem)

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add the mean gradient minus the client's own, both at the global model."""
        gradient.add_(values["correction"])

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """Keep the mean gradient and the model; or take FedAvg's step and forget the gradient, which is an old one."""
        variables = dict(state.variables)
        if variables.pop("mean_gradient", None) is not None:
            return replace(super().aggregate(state, aggregate, layout), variables=variables)
        mean = -aggregate.vectors["update"][: layout.num_trainable]
        return replace(state, variables={**variables, "mean_gradient": mean})
