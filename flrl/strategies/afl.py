"""AFL, agnostic federated learning: the mixture of the clients' losses that is worst for the model is minimised.

Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, arXiv 1902.00146. The server holds a mixture lambda of
the clients. A round steps w down `sum_k lambda_k F_k(w)`, and lambda up it: `lambda <- P(lambda + mixture_lr * F(w))`,
where P is the Euclidean projection onto the allowed mixtures and F(w) are the losses at the model that was sent. The
paper steps w along one stochastic gradient; here clients train as in FedAvg, one full-batch step being the paper's.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_everybody, check_mean
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ClientTask, ServerState

_LOSS = "train/loss_before"


class AFL(FedAvg):
    """FedAvg whose clients' weights are a mixture that follows their losses; it begins with their shares of samples.

    The mixture is in the state's variables as `mixture`, float64 `[num_clients]`, times the number of all samples. A
    client's loss costs a forward pass over its samples; it is reported as `train/loss_before`.

    Args:
        mixture_lr: the mixture's learning rate, at least 0; 0 is FedAvg.
        least: allowed mixtures give each client at least `least / num_clients`, in (0, 1]; the paper's are any convex
            set of mixtures. A client without weight could not be averaged.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    reads_samples = True
    beyond_means = "the clients' weights follow their losses"

    def __init__(self, *, mixture_lr: float, least: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        if not mixture_lr >= 0:
            raise ValueError(f"strategy.mixture_lr={mixture_lr}: must be at least 0")
        if not 0 < least <= 1:
            raise ValueError(f"strategy.least={least}: must be above 0 and at most 1")
        self.mixture_lr, self.least = mixture_lr, least

    def check(self, setup: Setup) -> None:
        """Refuse cohorts, since the mixture follows the losses of all clients, and rules that have no such weights.

        Raises:
            ValueError: one of them, or as for `FedAvg`.
        """
        super().check(setup)
        check_everybody(setup, "AFL")
        check_mean(setup.aggregator, "AFL's weights")

    def _planned(
        self, state: ServerState, round: int, cohort: Sequence[int], sizes: np.ndarray, layout: ParameterLayout
    ) -> tuple[Broadcast, list[ClientTask]]:
        broadcast, tasks = super()._planned(state, round, cohort, sizes, layout)
        if "mixture" not in state.variables:
            return broadcast, tasks
        mixture = state.variables["mixture"].tolist()
        tasks = [replace(task, weight=mixture[task.client_id]) for task in tasks]
        return replace(broadcast, total_weight=math.fsum(task.weight for task in tasks)), tasks

    def local(self, problem: LocalProblem) -> Local:
        """Compute the loss of the global model, train, and report both."""
        before = yield replace(problem, only_gradient=True, trainable=frozenset())
        trained = yield problem
        update = trained.update(problem, payload={"loss": 8})
        return replace(update, metrics={**update.metrics, _LOSS: before.metrics["train/loss"]})

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step; the mixture goes up along the losses, of which a client that was left out has none."""
        after = super().aggregate(state, aggregate, layout)
        reports = sorted(aggregate.reports, key=lambda report: report.client_id)
        samples = torch.tensor([report.num_samples for report in reports], dtype=torch.float64)
        losses = [report.metrics.get(_LOSS, 0.0) if report.rejected is None else 0.0 for report in reports]
        mixture = state.variables.get("mixture", samples)
        if not reports:
            return after
        total = float(samples.sum())
        mixture = mixture + self.mixture_lr * total * torch.tensor(losses, dtype=torch.float64)
        mixture = projected(mixture, total, self.least * total / len(reports))
        return replace(after, variables={**after.variables, "mixture": mixture})


def projected(vector: Tensor, total: float, least: float) -> Tensor:
    """The nearest vector whose elements are at least `least` and sum to `total`; float64 `[n]`, `n * least <= total`.

    Duchi, Shalev-Shwartz, Singer, Chandra, "Efficient Projections onto the l1-Ball for Learning in High Dimensions",
    ICML 2008: all elements lose the same number, those that would fall below `least` end there.
    """
    falling = torch.sort(vector, descending=True).values
    counts = torch.arange(1, len(vector) + 1, dtype=torch.float64)
    lost = (falling.cumsum(0) - (total - (len(vector) - counts) * least)) / counts
    last = int(torch.nonzero(falling - lost >= least)[-1])
    return (vector - lost[last]).clamp_(min=least)
