"""Mime: MimeLite with steps that the noise of batches and the drift of clients are taken out of.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, arXiv 2008.03606, algorithm 1 with the correction of SVRG: the
gradient of a batch at the client's model y becomes `gradient(y) - gradient(x) + c`, where x is the global model, both
gradients are of the same batch, and c is the mean of the cohort's full gradients at x. A round of the paper has two
exchanges, which are two rounds here: in the odd ones clients send their full gradients and the model stays; in the even
ones they step. In the paper both have one cohort; here each round has its own, which changes nothing where all clients
take part. Clients are weighted by samples, not equally.
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from torch import Tensor

from flrl.devices import Work
from flrl.layout import ParameterLayout
from flrl.lightning.local_step import LocalStep
from flrl.lightning.plain_sgd import require_plain_sgd
from flrl.strategies.base import Local
from flrl.strategies.exchange import gradient_update
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.mimelite import MimeLite
from flrl.strategies.workload import has
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ServerState, Tensors


class Mime(MimeLite):
    """MimeLite with SVRG's correction; c is in the state's variables between the two exchanges, float64.

    Each local step costs a second gradient, of the same batch at the global model. Dropout is drawn anew for it, and
    BatchNorm's statistics are those of the batch. Arguments as for `MimeLite`.
    """

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The model alone; or with c and the statistics, in the model's dtype."""
        sent = super().broadcast(state, round, total_weight)
        if "mean_gradient" not in state.variables:
            return replace(sent, variables={})
        mean = state.variables["mean_gradient"].to(state.vector.dtype)
        return replace(sent, variables={**sent.variables, "mean_gradient": mean})

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the update, in whose place a gradient is sent in odd rounds."""
        return FedAvg.vector_sizes(self, layout)

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """A full gradient; or two of each batch, once there is the mean one."""
        training = replace(work, passes=2.0, gradients=0.0) if has(sent, "mean_gradient") else replace(work, passes=0.0)
        return training.samples(sizes)

    def local(self, problem: LocalProblem) -> Local:
        """Compute the full gradient; or train with corrected gradients, once there is the mean one.

        Raises:
            ValueError: the client's optimizer was not plain SGD.
        """
        sent = problem.broadcast.variables
        if sent:
            trained = yield replace(problem, values={**sent, "global": problem.start})
            require_plain_sgd(trained.not_plain_sgd)
            return trained.update(problem)
        full = yield replace(problem, only_gradient=True)
        return gradient_update(problem, full)

    def adjust_loss(self, loss: Tensor, step: LocalStep) -> Tensor:
        """Subtract a linear function of the parameters whose gradient is that of the batch at the global model."""
        gradients = step.gradients_with(step.values["global"])
        return loss - sum((gradients[name] * parameter).sum() for name, parameter in step.parameters.items())

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add c, and make a step of it as in MimeLite."""
        super().adjust_gradient(gradient.add_(values["mean_gradient"]), parameters, values)

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """Keep the mean gradient and the model; or take FedAvg's step, and renew the statistics with that gradient."""
        variables = dict(state.variables)
        if "mean_gradient" not in variables:
            mean = -aggregate.vectors["update"][: layout.num_trainable]
            return replace(state, variables={**variables, "mean_gradient": mean})
        gradient = variables.pop("mean_gradient")
        return replace(FedAvg.aggregate(self, state, aggregate, layout), variables=self.renewed(variables, gradient))
