"""CFL: clients whose updates point in different directions are divided into clusters, again and again.

Sattler, Müller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multi-Task Optimization Under Privacy
Constraints", IEEE TNNLS 2020, arXiv 1910.01991. A cluster is divided where its mean update is short and one of its
clients' is long: it is stationary for the cluster and not for its clients. The paper's bound of the cluster's
separation (gamma) is not part of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from flrl.aggregation import EveryUpdate
from flrl.aggregation.every_update import updates_of
from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_every_update
from flrl.strategies.clusters import CLUSTERS, joined, models_of, parts_of
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ServerState


class CFL(FedAvg):
    """FedAvg within each cluster; all clients begin in one, and a cluster of two or more may be divided in each round.

    A division needs the updates of all clients, so it happens only in rounds in which all took part. Its two halves
    begin with the cluster's model and optimizer state, and step in the same round. `test/...` is the model of the
    cluster of client 0; a client's personal model is its cluster's, which alone is sent to it and counted. Each
    server optimizer's step is along the mean by samples.

    Args:
        eps1: a cluster is divided where its mean update's norm is below; 0 never divides, and is FedAvg, to the bit.
        eps2: and the norm of one of its clients' updates above.
        options: as for `FedAvg`; the aggregator is `EveryUpdate`.

    Raises:
        ValueError: a setting is invalid.
    """

    beyond_means = "the server divides clients by their updates"

    def __init__(self, *, eps1: float = 0.4, eps2: float = 1.6, **options: Any) -> None:
        super().__init__(**{"aggregator": EveryUpdate(), **options})
        for name, value in (("eps1", eps1), ("eps2", eps2)):
            if not value >= 0:
                raise ValueError(f"strategy.{name}={value}: must be at least 0")
        self.eps1 = eps1
        self.eps2 = eps2

    def check(self, setup: Setup) -> None:
        """Refuse other rules, cohorts that are never complete, and transforms of the mean.

        Raises:
            ValueError: one of them, or as for `FedAvg`.
        """
        super().check(setup)
        check_every_update(setup, "CFL")
        most = setup.most_updates
        if most < setup.num_clients:
            raise ValueError(
                f"strategy.sampler: {most} of {setup.num_clients} clients take part in a round, CFL compares all: "
                "strategy/sampler=all"
            )

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The models of all clusters, and who is in which; counted is the one that a client is sent."""
        sent = {name: state.variables[name] for name in (CLUSTERS, "assigned") if name in state.variables}
        whole = super().broadcast(state, round, total_weight)
        return replace(whole, variables=sent, payload=dict.fromkeys(sent, 0))

    def local(self, problem: LocalProblem) -> Local:
        """Train the model of the client's cluster."""
        trained = yield replace(problem, start=self.personal_model(problem))
        change = trained.difference[: problem.model.layout.size]
        return trained.update(problem, vectors={"update": change})

    def personal_model(self, problem: LocalProblem) -> Tensor:
        """The model of the client's cluster."""
        assigned = problem.broadcast.variables.get("assigned")
        return models_of(problem)[0 if assigned is None else int(assigned[problem.task.client_id])]

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """Divide clusters, then step each along the mean of its members; one without any steps along zeros."""
        updates = updates_of(aggregate.vectors)
        weights = {report.client_id: self.weight(report.num_samples) for report in aggregate.reports}
        parts, assigned = parts_of(state), state.variables.get("assigned", torch.zeros(len(weights), dtype=torch.int64))
        if aggregate.share == 1 and updates:
            for cluster in range(len(parts)):
                members = [client for client in updates if assigned[client] == cluster]
                leaving = self._leaving(
                    [updates[m][: layout.num_trainable] for m in members], _shares(members, weights)
                )
                if leaving:
                    assigned = assigned.clone()
                    assigned[[members[place] for place in leaving]] = len(parts)
                    parts.append(parts[cluster])
        means = [aggregate.vectors["update"]]
        if len(parts) > 1:
            state = replace(state, variables={**state.variables, "assigned": assigned})
            means = [self._mean(updates, weights, assigned == cluster, means[0]) for cluster in range(len(parts))]
        stepped = [
            super(CFL, self).aggregate(part, replace(aggregate, vectors={"update": mean}), layout)
            for part, mean in zip(parts, means, strict=True)
        ]
        return joined(state, stepped)

    def _mean(self, updates: dict[int, Tensor], weights: dict[int, float], chosen: Tensor, like: Tensor) -> Tensor:
        """The mean of the chosen clients' updates; zeros without any."""
        members = [client for client in updates if chosen[client]]
        shares = _shares(members, weights)
        return sum((s * updates[m] for s, m in zip(shares, members, strict=True)), torch.zeros_like(like))

    def _leaving(self, updates: Sequence[Tensor], shares: Sequence[float]) -> list[int]:
        """The places of a cluster's members that leave it; none if it is not divided."""
        if len(updates) < 2:
            return []
        rows = torch.stack(list(updates))
        mean = float((torch.tensor(shares, dtype=rows.dtype) @ rows).norm())
        if not (mean < self.eps1 and float(rows.norm(dim=1).max()) > self.eps2):
            return []
        directions = normalize(rows, dim=1)
        return bipartition(directions @ directions.T)


def _shares(members: Sequence[int], weights: dict[int, float]) -> list[float]:
    total = sum(weights[client] for client in members)
    return [weights[client] / total for client in members]


def bipartition(similarities: Tensor) -> list[int]:
    """The half without the first row of the division whose largest similarity across is smallest (algorithm 1).

    The most similar are joined first, until two groups are left.

    Args:
        similarities: symmetric, `[n, n]` with n at least 2.
    """
    count = len(similarities)
    first, second = torch.triu_indices(count, count, 1)
    order = torch.argsort(similarities[first, second], descending=True, stable=True)
    group = list(range(count))
    for one, other in zip(first[order].tolist(), second[order].tolist(), strict=True):
        if len(set(group)) == 2:
            break
        kept, gone = sorted((group[one], group[other]))
        group = [kept if own == gone else own for own in group]
    return [place for place in range(count) if group[place] != group[0]]
