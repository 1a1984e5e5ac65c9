"""FedGEMS: a larger model on the server selects what it learns from clients, and teaches them in turn.

Cheng, Wu, Xiao, Liu, "FedGEMS: Federated Learning of Larger Server Models via Selective Knowledge Fusion", 2021, arXiv
2110.11027. Public samples have classes. Those that the server's model classifies correctly it learns with their class,
and remembers its scores; a wrong one is learnt with `epsilon * CE(class) + (1 - epsilon) * CE(teacher)`, where the
teacher is what it remembers of that sample, or else the clients' fused scores. A client's scores of a sample weigh
`exp(1 / entropy)` there if its own class is correct, else `exp(0)`. Clients learn public samples with the server's
scores likewise. Here samples are selected once a round, before the server trains; 1 / entropy is at most 10, so that
weights can be summed exactly; clients' numbers of samples weigh in the fusion too.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.devices import Work
from flrl.layout import ParameterLayout
from flrl.strategies.base import Local, OnServer
from flrl.strategies.distilling import PublicExchange, check_numbers, in_turn, on_public, one_hot
from flrl.strategies.workload import has
from flrl.trainers import LocalProblem
from flrl.trainers.predicting import predictions
from flrl.types import Aggregate, ServerState

MOST_CERTAIN = 10.0
"""The largest value of 1 / entropy."""


class FedGEMS(PublicExchange):
    """Exchanges scores of public samples; the server's model, of a network of its own, is the global one.

    Args:
        public_samples: number of public samples, whose classes are known.
        num_classes: numbers in a sample's scores.
        epsilon: weight of the class beside a teacher, in [0, 1].
        server_epochs: the server's passes over the public samples in a round.
        distill_epochs: a client's passes over them.
        options: as for `Strategy`, without `personal`.

    Raises:
        ValueError: a setting is invalid.
    """

    beyond_means = "the server divides by sums of clients' weights"
    shared = "scores"

    def __init__(
        self,
        *,
        public_samples: int,
        num_classes: int,
        epsilon: float = 0.75,
        server_epochs: int = 1,
        distill_epochs: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(public_samples=public_samples, num_classes=num_classes, personal=(), **options)
        check_numbers(1, server_epochs=server_epochs, distill_epochs=distill_epochs)
        if not 0 <= epsilon <= 1:
            raise ValueError(f"strategy.epsilon={epsilon}: must be from 0 to 1")
        self.epsilon, self.server_epochs, self.distill_epochs = epsilon, server_epochs, distill_epochs

    @property
    def needs_classes(self) -> bool:
        """Always: the server's model learns them."""
        return True

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the weighted scores, and of their weights."""
        return {**super().vector_sizes(layout), "certainty": self.public_samples}

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """The public ones too, once there is something to distil."""
        return work.samples(sizes) + self.distill_epochs * self.public_samples * has(sent, self.shared)

    def local(self, problem: LocalProblem) -> Local:
        """Learn the public samples from the server, then the client's own, and send weighted scores."""
        classes, sent, stages = self._classes(problem), problem.broadcast.variables, []
        if "scores" in sent:
            scores = sent["scores"].view(-1, self.num_classes)
            stages.append(on_public(problem, self._taught(classes.to(scores.device), scores), self.distill_epochs))
        trained = yield from in_turn(problem, [*stages, {}])
        scores = predictions(problem, trained.vector).double()
        weights = certainty(scores, classes.to(scores.device))
        weighted = (weights[:, None] * scores).float()
        return trained.update(
            problem,
            vectors={"predictions": weighted.flatten().double(), "certainty": weights.float().double()},
            payload={"predictions": weighted.nbytes, "certainty": 4 * len(weights)},
        )

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """Fuse the clients' scores, for `server`."""
        if not aggregate.total_weight:
            return state
        weighted = aggregate.vectors["predictions"].view(-1, self.num_classes)
        fused = weighted / aggregate.vectors["certainty"][:, None]
        return replace(state, variables={**state.variables, "fused": fused.flatten()})

    def server(self, state: ServerState, problem: LocalProblem) -> OnServer:
        """Select teachers, train the server's model, and compute what it teaches."""
        variables = dict(state.variables)
        if "fused" not in variables:
            return state
        fused = variables.pop("fused").view(-1, self.num_classes)
        classes, own = self._classes(problem).to(fused.device), predictions(problem, problem.start).double()
        remembered = variables.get("remembered", torch.zeros_like(own).flatten()).view(-1, self.num_classes)
        known = variables.get("known", torch.zeros(len(own), dtype=torch.float64, device=own.device))
        correct = own.argmax(dim=1) == classes.argmax(dim=1)
        teacher = torch.where(known[:, None] > 0, remembered, fused)
        targets = torch.where(correct[:, None], classes, self._taught(classes, teacher))
        variables["remembered"] = torch.where(correct[:, None], own, remembered).flatten()
        variables["known"] = torch.maximum(known, correct.double())
        trained = yield replace(problem, **on_public(problem, targets, self.server_epochs))
        variables["scores"] = predictions(problem, trained.vector).double().flatten()
        return replace(state, vector=trained.vector, variables=variables)

    def _classes(self, problem: LocalProblem) -> Tensor:
        assert problem.public is not None, "`check_public` refuses this"
        return one_hot(problem.public.labels, self.num_classes).double()

    def _taught(self, classes: Tensor, scores: Tensor) -> Tensor:
        return self.epsilon * classes + (1 - self.epsilon) * scores.softmax(dim=1)


def certainty(scores: Tensor, classes: Tensor) -> Tensor:
    """A client's weights `[n]` in the fusion of scores `[n, classes]`, given the classes as probabilities."""
    logs = scores.log_softmax(dim=1)
    entropy = -(logs.exp() * logs).sum(dim=1)
    correct = scores.argmax(dim=1) == classes.argmax(dim=1)
    return torch.where(correct, (1 / entropy).clamp(max=MOST_CERTAIN), torch.zeros_like(entropy)).exp()
