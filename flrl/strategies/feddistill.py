"""FedDistill: clients exchange their mean scores for each class, without public samples and without models.

Seo, Park, Oh, Bennis, Kim, "Federated Knowledge Distillation", 2020, arXiv 2011.02367 (first in arXiv 1811.11479), as
the baseline of Zhu, Hong, Zhou, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", ICML 2021,
arXiv 2105.10056. A client minimises `CE(classes) + gamma * CE(softmax(mean scores of the sample's class))`. The means
are over samples, so over clients weighted by how many samples of the class they have; they include the client's own,
which Seo et al. leave out, and are computed once after training, not along the way.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.data.retargeted import retargeted
from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local, Strategy
from flrl.strategies.distilling import check_exchange, one_hot
from flrl.trainers import LocalProblem
from flrl.trainers.predicting import check_distillable, predictions
from flrl.types import Aggregate, Broadcast, ServerState, Tensors


class FedDistill(Strategy):
    """Exchanges mean scores by class; there is no global model, and nothing to evaluate centrally.

    Args:
        num_classes: number of classes, and numbers in a sample's scores.
        gamma: weight of the mean scores in the loss; with 0 every client trains alone.
        options: as for `Strategy`, without `personal`.

    Raises:
        ValueError: a setting is invalid.
    """

    beyond_means = "the server divides by counts of clients' classes"
    sends_model = False

    def __init__(self, *, num_classes: int, gamma: float = 1.0, **options: Any) -> None:
        super().__init__(personal=["*"], **options)
        if num_classes < 1:
            raise ValueError(f"strategy.num_classes={num_classes}: must be at least 1")
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"strategy.gamma={gamma}: must be at least 0 and finite")
        self.num_classes, self.gamma = num_classes, gamma

    def check(self, setup: Setup) -> None:
        """Refuse what acts on models' updates.

        Raises:
            ValueError: as for `check_exchange`.
        """
        super().check(setup)
        check_exchange(setup)

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Sums of scores by class, and counts, both over the client's number of samples."""
        return {**super().vector_sizes(layout), "sums": self.num_classes**2, "counts": self.num_classes}

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The classes' mean scores, and which classes have some."""
        sent = {name: state.variables[name].float() for name in ("scores", "seen") if name in state.variables}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def local(self, problem: LocalProblem) -> Local:
        """Train with the classes' mean scores, and send those of the trained model.

        Raises:
            ValueError: samples have no classes, or the module cannot be trained on probabilities.
        """
        if problem.source.labels is None:
            raise ValueError("strategy: FedDistill needs the classes of all samples, and they have none")
        labels, sent = problem.source.labels[problem.indices], problem.broadcast.variables
        if problem.task.round == 1:
            check_distillable(problem.module, problem.source.subset(problem.indices[:2]), self.num_classes)
        changes: dict[str, Any] = {}
        if "scores" in sent and self.gamma:
            changes["source"] = retargeted(problem.source.subset(problem.indices), self._targets(labels, sent))
            changes["indices"] = np.arange(len(labels))
        trained = yield replace(problem, **changes)
        scores = predictions(problem, trained.vector, problem.source, problem.indices)
        own = one_hot(labels, self.num_classes).double()
        sums, counts = (own.T @ scores.cpu().double() / len(labels)).float(), own.mean(dim=0).float()
        return trained.update(
            problem,
            vectors={"sums": sums.flatten().double(), "counts": counts.double()},
            payload={"sums": sums.nbytes, "counts": counts.nbytes},
        )

    def _targets(self, labels: np.ndarray, sent: Tensors) -> Tensor:
        """Targets for which cross-entropy is the loss: those of the class, and gamma times those of its mean scores."""
        scores, seen = sent["scores"].cpu().view(-1, self.num_classes), sent["seen"].cpu()
        added = self.gamma * scores.softmax(dim=1) * seen[:, None]
        return one_hot(labels, self.num_classes) + added[torch.from_numpy(labels)]

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """Divide the mean sums by the mean counts; a class that nobody has had keeps its scores of before."""
        if not aggregate.total_weight:
            return state
        sums, counts = aggregate.vectors["sums"].view(-1, self.num_classes), aggregate.vectors["counts"]
        present = counts > 0
        before = state.variables.get("scores", torch.zeros_like(sums)).view(-1, self.num_classes)
        scores = torch.where(present[:, None], sums / counts.clamp(min=1e-300)[:, None], before)
        seen = torch.maximum(present.double(), state.variables.get("seen", torch.zeros_like(counts)))
        return replace(state, variables={**state.variables, "scores": scores.flatten(), "seen": seen})
