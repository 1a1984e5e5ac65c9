"""IFCA: several models, of which each client trains the one that fits its samples best.

Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020, arXiv
2006.04088, algorithm 1 with model averaging. Clients are weighted by samples within their cluster; in the paper
equally.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flrl.adversaries import Nobody
from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_mean
from flrl.strategies.clusters import CLUSTERS, joined, models_of, parts_of
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ServerState


class IFCA(FedAvg):
    """FedAvg within each cluster; a client's cluster is the one of least training loss, anew in every round.

    The first cluster begins with the initial model, the others with the elements of each of its parameters in another
    order, drawn by the run's seed: as independent an initialisation, where elements are drawn alike. A client is sent
    all models and computes the loss of each over all its samples, in training mode. `test/...` is the first cluster's
    model; a client's personal model is that of the cluster that it was in last, before that the first.

    Args:
        clusters: number of models; 1 is FedAvg, to the bit.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    reads_samples = True
    beyond_means = "clients choose their cluster by loss, and the server divides by the clusters' shares"
    evaluates = ("cluster",)

    def __init__(self, *, clusters: int = 2, **options: Any) -> None:
        super().__init__(**options)
        if clusters < 1:
            raise ValueError(f"strategy.clusters={clusters}: must be at least 1")
        self.clusters = clusters

    def check(self, setup: Setup) -> None:
        """Refuse what changes or aggregates updates without knowing of clusters, unless there is one.

        Raises:
            ValueError: a rule other than the mean, transforms, an adversary, or as for `FedAvg`.
        """
        super().check(setup)
        if self.clusters == 1:
            return
        check_mean(setup.aggregator, "IFCA's clusters")
        if setup.transforms:
            raise ValueError(
                f"strategy.transforms={list(setup.transforms)}: must be none, IFCA's updates lie by cluster"
            )
        if setup.adversary is not None and not isinstance(setup.adversary, Nobody):
            raise ValueError("adversary: must be none with strategy=ifca, whose updates lie by cluster")

    def initialize(self, vector: Tensor, layout: ParameterLayout) -> ServerState:
        """The initial model, and those of the other clusters."""
        first = super().initialize(vector, layout)
        others = [replace(first, vector=_reordered(vector, layout)) for _ in range(1, self.clusters)]
        return joined(first, [first, *others])

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """All models."""
        sent = {CLUSTERS: state.variables[CLUSTERS]} if self.clusters > 1 else {}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of each cluster's update, and of the client's membership."""
        return {**dict.fromkeys(self._names, layout.size), "members": self.clusters}

    @property
    def _names(self) -> list[str]:
        return ["update", *(f"update/{index}" for index in range(1, self.clusters))]

    def local(self, problem: LocalProblem) -> Local:
        """Choose a cluster and train its model; the update is sent in the cluster's place, the other places are 0."""
        models, losses = models_of(problem), []
        for model in models if self.clusters > 1 else []:
            seen = yield replace(problem, start=model, only_gradient=True)
            loss = seen.metrics["train/loss"]
            losses.append(math.inf if math.isnan(loss) else loss)
        chosen = losses.index(min(losses)) if losses else 0
        trained = yield replace(problem, start=models[chosen])
        change = trained.difference[: problem.model.layout.size]
        vectors = dict.fromkeys(self._names, torch.zeros_like(change))
        vectors[self._names[chosen]] = change
        vectors["members"] = torch.nn.functional.one_hot(torch.tensor(chosen), self.clusters).to(change)
        return trained.update(
            problem,
            vectors=vectors,
            memory={"cluster": torch.tensor(chosen)},
            payload={"members": 8} if self.clusters > 1 else {},
        )

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step of each cluster along the mean of its members; one without any steps along zeros."""
        parts = []
        for name, share, part in zip(self._names, aggregate.vectors["members"], parts_of(state), strict=True):
            mean = aggregate.vectors[name] / (share if share > 0 else 1.0)
            parts.append(super().aggregate(part, replace(aggregate, vectors={"update": mean}), layout))
        return joined(state, parts)

    def personal_model(self, problem: LocalProblem) -> Tensor:
        """The model of the cluster that the client was in last; before it has taken part the first cluster's."""
        return models_of(problem)[int(problem.task.memory.get("cluster", 0))]


def _reordered(vector: Tensor, layout: ParameterLayout) -> Tensor:
    """A vector with the elements of each trainable parameter in another order."""
    other = vector.clone()
    for entry in layout.entries:
        if entry.kind == "trainable":
            other[entry.slice] = vector[entry.slice][torch.randperm(entry.size)]
    return other
