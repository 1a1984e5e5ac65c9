"""Algorithms that ask most of `Strategy.local`: several trainings, other starts, parts of the model, former models."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flrl.lightning.local_step import LocalStep
from flrl.strategies import FedAvg
from flrl.strategies.base import Local
from flrl.trainers import LocalProblem
from flrl.types import Tensors


class Ditto(FedAvg):
    """Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021.

    A client trains the global model, and beside it one of its own that a proximal term keeps near the global one.
    """

    def __init__(self, *, lam: float, **options: Any) -> None:
        super().__init__(**options)
        self.lam = lam

    def local(self, problem: LocalProblem) -> Local:
        trained = yield problem
        start = problem.task.memory.get("own", problem.start)
        near = {"global": problem.start[: problem.num_trainable]}
        own = yield replace(problem, start=start, values=near)
        return trained.update(problem, memory={"own": own.vector.cpu()})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        if "global" in values:
            gradient.add_(parameters - values["global"], alpha=self.lam)


class FedRep(FedAvg):
    """Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning",
    ICML 2021: the personal head is trained first, then, for one epoch, what is shared."""

    def __init__(self, *, head_epochs: int, **options: Any) -> None:
        super().__init__(**options)
        self.head_epochs = head_epochs

    def local(self, problem: LocalProblem) -> Local:
        layout = problem.model.layout
        head = frozenset(entry.name for entry in layout.personal)
        body = frozenset(entry.name for entry in layout.entries)
        first = yield replace(problem, trainable=head, epochs=self.head_epochs)
        second = yield first.next(problem, trainable=body, epochs=1)
        return second.update(problem)


class Moon(FedAvg):
    """Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021: features near those of the global model, far
    from those of the client's last one."""

    def __init__(self, *, layer: str, mu: float, temperature: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        self.observes = (layer,)
        self.layer, self.mu, self.temperature = layer, mu, temperature

    def local(self, problem: LocalProblem) -> Local:
        last = problem.task.memory.get("last", problem.start).to(problem.start.device)
        trained = yield replace(problem, values={"global": problem.start, "last": last})
        return trained.update(problem, memory={"last": trained.vector.cpu()})

    def adjust_loss(self, loss: Tensor, step: LocalStep) -> Tensor:
        features = step.outputs[self.layer]
        near, far = (
            cosine_similarity(features, step.outputs_with(step.values[name])[self.layer]) / self.temperature
            for name in ("global", "last")
        )
        contrast = -torch.log_softmax(torch.stack([near, far], dim=1), dim=1)[:, 0].mean()
        return loss + self.mu * contrast
