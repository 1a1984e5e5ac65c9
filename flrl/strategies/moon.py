"""MOON: a contrastive term draws features to those of the global model, away from those of the client's previous one.

Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv 2103.16257. With the features z of a sample under
the model in training, z_glob under the global one and z_prev under the one that the client last ended with, a client
minimises `loss + mu * -log(e(z, z_glob) / (e(z, z_glob) + e(z, z_prev)))`, where `e(a, b) = exp(cos(a, b) /
temperature)`. The paper puts a projection head into the model; here the features are the outputs of a layer of any
model.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from flrl.lightning.local_step import LocalStep
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem


class Moon(FedAvg):
    """FedAvg with the contrastive term; a client remembers the model it ended with, `[layout.local_size]`.

    The previous model of a client that takes part for the first time is the global one: its term has no gradient then,
    and is left out.

    Args:
        layer: name of the module's layer whose outputs are the features; `[batch, ...]`, flattened.
        mu: weight of the term, at least 0.
        temperature: divides the cosines, positive.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, layer: str, mu: float, temperature: float = 0.5, **options: Any) -> None:
        super().__init__(**options)
        if not mu >= 0:
            raise ValueError(f"strategy.mu={mu}: must be at least 0")
        if not temperature > 0:
            raise ValueError(f"strategy.temperature={temperature}: must be positive")
        self.observes = (layer,)
        self.layer, self.mu, self.temperature = layer, mu, temperature

    def check(self, setup: Setup) -> None:
        """Refuse a layer that the model does not have; raises ValueError, also as for `FedAvg`."""
        known = [name for name, _ in setup.module.named_modules() if name]
        if self.layer not in known:
            raise ValueError(f"strategy.layer={self.layer}: the model has no such layer; it has {', '.join(known)}")
        super().check(setup)

    def local(self, problem: LocalProblem) -> Local:
        """Train with the global and the previous model among the values, and remember what came of it."""
        memory = problem.task.memory
        values = {"global": problem.start, "previous": memory["previous"]} if "previous" in memory else {}
        trained = yield replace(problem, values=values)
        return trained.update(problem, memory={"previous": trained.vector.cpu()})

    def adjust_loss(self, loss: Tensor, step: LocalStep) -> Tensor:
        """Add `mu` times the mean contrastive loss of the batch."""
        if not step.values:
            return loss
        features = step.outputs[self.layer].flatten(1)
        near, far = (
            cosine_similarity(features, step.outputs_with(step.values[name])[self.layer].flatten(1)) / self.temperature
            for name in ("global", "previous")
        )
        contrast = -torch.log_softmax(torch.stack([near, far], dim=1), dim=1)[:, 0].mean()
        return loss + self.mu * contrast
