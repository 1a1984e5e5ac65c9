"""An algorithm that asks much of `Strategy.local`: former models."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flrl.lightning.local_step import LocalStep
from flrl.strategies import FedAvg
from flrl.strategies.base import Local
from flrl.trainers import LocalProblem


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
