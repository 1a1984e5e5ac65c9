"""FedALA: a client begins with a mixture of its own model and the global one whose weights it learns, number by number.

Zhang, Hua, Wang, Song, Xue, Ma, Guan, "FedALA: Adaptive Local Aggregation for Personalized Federated Learning", AAAI
2023, arXiv 2212.01197, algorithm 1. With Theta_i the client's model and W in [0, 1], its higher layers begin as
`Theta_i + (Theta - Theta_i) * W`, the lower ones as the global Theta's; `W <- clip(W - eta * g * (Theta - Theta_i))`,
where g is the gradient at that beginning on some of the client's samples: on all of them at once, as in the paper's
formula 5, while its code takes batches.
"""

from collections.abc import Generator
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.seeding import generator_for
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.strategies.stepping import refuse_personal
from flrl.trainers import LocalProblem, Trained

_LOSSES = 10
"""Of so many losses in a row the spread shows that the weights have been learnt."""


class FedALA(FedAvg):
    """FedAvg from beginnings of the clients' own. A client remembers its model, which is its personal one, and W.

    When a client first takes part it begins with the global model; the next time W begins with ones, the global model,
    and is learnt until the loss stays; afterwards it takes one step a round. The samples are drawn anew each round.

    Args:
        layers: p, number of the last layers (modules with parameters) that are mixed.
        eta: learning rate of W, at least 0; with 0 it is FedAvg, to the bit.
        share: of the samples that W is learnt from, in (0, 1].
        threshold: standard deviation of ten losses in a row below which W has been learnt.
        most_steps: largest number of steps of W in a round.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    reads_samples = True
    evaluates = ("own",)

    def __init__(
        self,
        *,
        layers: int = 1,
        eta: float = 1.0,
        share: float = 0.8,
        threshold: float = 0.1,
        most_steps: int = 100,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        for name, value in (("layers", layers), ("most_steps", most_steps)):
            if value < 1:
                raise ValueError(f"strategy.{name}={value}: must be at least 1")
        for name, number in (("eta", eta), ("threshold", threshold)):
            if not number >= 0:
                raise ValueError(f"strategy.{name}={number}: must be at least 0")
        if not 0 < share <= 1:
            raise ValueError(f"strategy.share={share}: must be in (0, 1]")
        self.layers = layers
        self.eta = eta
        self.share = share
        self.threshold = threshold
        self.most_steps = most_steps

    def check(self, setup: Setup) -> None:
        """Refuse personal parameters.

        Raises:
            ValueError: there are some, or as for `FedAvg`.
        """
        super().check(setup)
        refuse_personal(self)

    def local(self, problem: LocalProblem) -> Local:
        """Learn W, then train from the mixture."""
        memory, kept = problem.task.memory, {}
        start = problem.start
        if "own" in memory:
            top = slice(_first(problem.model.layout, self.layers), problem.num_trainable)
            own = memory["own"].to(start.device)[top]
            weights = yield from self._weights(problem, own, top, memory.get("weights"))
            start, kept = mixed(problem.start, own, weights, top), {"weights": weights.cpu()}
        trained = yield replace(problem, start=start)
        return trained.update(problem, memory={**kept, "own": trained.vector.cpu()})

    def _weights(
        self, problem: LocalProblem, own: Tensor, top: slice, kept: Tensor | None
    ) -> Generator[LocalProblem, Trained, Tensor]:
        """W after this round's steps, `[top]`."""
        weights = torch.ones_like(own) if kept is None else kept.to(own.device)
        rng = generator_for(problem.seed, problem.task.round, problem.task.client_id, "fedala")
        size = len(problem.indices)
        chosen = problem.indices[np.sort(rng.choice(size, ceil(self.share * size), replace=False))]
        losses: list[float] = []
        for _ in range(1 if kept is not None else self.most_steps):
            beginning = mixed(problem.start, own, weights, top)
            seen = yield replace(problem, start=beginning, indices=chosen, only_gradient=True)
            downhill = (seen.difference[top] * (problem.start[top] - own)).to(own.dtype)
            weights = (weights + self.eta * downhill).clamp(0, 1)
            losses.append(seen.metrics["train/loss"])
            if len(losses) > _LOSSES and np.std(losses[-_LOSSES:]) < self.threshold:
                break
        return weights

    def personal_model(self, problem: LocalProblem) -> Tensor:
        """The client's model as it trained it last; before it has taken part the global model."""
        return problem.task.memory.get("own", problem.start).to(problem.start.device)


def mixed(shared: Tensor, own: Tensor, weights: Tensor, top: slice) -> Tensor:
    """The global model with `own + (shared - own) * weights` in `top`: at weights 0 and 1 one of them to the bit.

    Args:
        shared: the global model, `[layout.size]`.
        own: the client's numbers in `top`.
        weights: W, of the same shape.
        top: a part of the vector.
    """
    beginning = shared.clone()
    beginning[top] = torch.lerp(own, shared[top], weights)
    return beginning


def _first(layout: ParameterLayout, layers: int) -> int:
    """Where the last layers' parameters begin; the trainable part is in the order of the model's layers."""
    starts: dict[str, int] = {}
    for entry in layout.entries:
        if entry.kind == "trainable":
            starts.setdefault(entry.name.rpartition(".")[0], entry.start)
    return [*starts.values()][-layers:][0]
