"""FedAMP: each client gets a cloud model of its own, to which the models most like its own contribute most.

Huang, Chu, Zhou, Wang, Liu, Pei, Zhang, "Personalized Cross-Silo Federated Learning on Non-IID Data", AAAI 2021, arXiv
2007.03797, algorithm 1. With `A(x) = 1 - exp(-x / sigma)`, the cloud model of client i is
`u_i = (1 - sum_j m_ij) w_i + sum_j m_ij w_j` with messages `m_ij = alpha A'(||w_i - w_j||^2)` of the other clients, and
the client minimises `loss(w) + lam / (2 alpha) * ||w - u_i||^2`. Messages are not weighted by samples, as in the paper.
"""

from dataclasses import replace
from math import exp
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.aggregation import EveryUpdate
from flrl.aggregation.every_update import updates_of
from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_every_update
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.stepping import refuse_personal
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ClientTask, ServerState, Tensors

_PREFIX = "model/"


class FedAMP(FedAvg):
    """Personal models that exchange messages through the server; `test/...` is the model that FedAvg makes of them.

    The server keeps the last model of every client, in the model's dtype: 80 MB for 100 of McMahan's 2NN, in its
    checkpoints too; a round takes 8 bytes more for each number and client of the cohort, and each client's memory has
    its model again, for its evaluation. One model is sent and counted each way. A client that has no model yet begins
    with the average one. Where messages to a client would weigh more than 1 together they are scaled to 1.

    Args:
        alpha: step size of the messages, positive.
        sigma: squared distance over which messages fade, positive.
        lam: weight of the proximal term, at least 0.
        options: as for `FedAvg`; the aggregator is `EveryUpdate`.

    Raises:
        ValueError: a setting is invalid.
    """

    beyond_means = "the server compares clients' models"
    evaluates = ("own",)

    def __init__(self, *, alpha: float = 0.1, sigma: float = 1.0, lam: float = 0.1, **options: Any) -> None:
        super().__init__(**{"aggregator": EveryUpdate(), **options})
        for name, value in (("alpha", alpha), ("sigma", sigma)):
            if not value > 0:
                raise ValueError(f"strategy.{name}={value}: must be positive")
        if not lam >= 0:
            raise ValueError(f"strategy.lam={lam}: must be at least 0")
        self.alpha = alpha
        self.sigma = sigma
        self.lam = lam

    def check(self, setup: Setup) -> None:
        """Refuse other rules, transforms of the mean, and personal parameters.

        Raises:
            ValueError: one of them, or as for `FedAvg`.
        """
        super().check(setup)
        check_every_update(setup, "FedAMP")
        refuse_personal(self)

    def plan(
        self,
        state: ServerState,
        sizes: np.ndarray,
        seed: int,
        layout: ParameterLayout,
        available: np.ndarray | None = None,
    ) -> tuple[Broadcast, list[ClientTask]]:
        """Tasks with each client's cloud model, which takes the place of the global one."""
        sent, tasks = super().plan(state, sizes, seed, layout, available)
        models = {int(n.removeprefix(_PREFIX)): m for n, m in state.variables.items() if n.startswith(_PREFIX)}
        clouds = [self.cloud(models, task.client_id, layout) if task.client_id in models else {} for task in tasks]
        return sent, [replace(t, memory={**t.memory, **own}) for t, own in zip(tasks, clouds, strict=True)]

    def cloud(self, models: dict[int, Tensor], client_id: int, layout: ParameterLayout) -> Tensors:
        """The cloud model of a client, as `cloud`.

        Args:
            models: the last models of clients, `[layout.size]`, by client id; the client's own among them.
            client_id: its id.
            layout: of the models.
        """
        own = models[client_id].double()
        others = [models[other].double() for other in sorted(models) if other != client_id]
        compared = slice(layout.num_trainable)
        distances = [float((own[compared] - other[compared]).square().sum()) for other in others]
        messages = [self.alpha * exp(-distance / self.sigma) / self.sigma for distance in distances]
        scale = max(1.0, sum(messages))
        found = (1 - sum(messages) / scale) * own
        for message, other in zip(messages, others, strict=True):
            found += message / scale * other
        return {"cloud": found.to(layout.dtype)}

    def local(self, problem: LocalProblem) -> Local:
        """Train near the cloud model, from it on."""
        cloud = problem.task.memory.get("cloud", problem.start)
        trained = yield replace(problem, start=cloud, values={"near": cloud[: problem.num_trainable]})
        return trained.update(problem, memory={"own": trained.vector.cpu()})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Add the proximal term's gradient, `lam / alpha * (w - u_i)`."""
        if "near" in values:
            gradient.add_(parameters - values["near"], alpha=self.lam / self.alpha)

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step, and the clients' models."""
        vector = state.vector.to(torch.float64)
        models = {
            f"{_PREFIX}{client}": (vector + update).to(layout.dtype)
            for client, update in updates_of(aggregate.vectors).items()
        }
        return replace(super().aggregate(state, aggregate, layout), variables={**state.variables, **models})

    def personal_model(self, problem: LocalProblem) -> Tensor:
        """The client's model as it trained it last; before it has taken part the global model."""
        return problem.task.memory.get("own", problem.start).to(problem.start.device)
