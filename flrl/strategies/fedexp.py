"""FedExP: the server's step is the longer, the more the clients' updates differ from their mean.

Jhunjhunwala, Wang, Joshi, "FedExP: Speeding Up Federated Averaging via Extrapolation", ICLR 2023, arXiv 2301.09604. The
mean update is multiplied by `max(1, sum_i p_i ||update_i||^2 / (2 * (||mean update||^2 + eps)))`, over the trainable
part; p_i are shares of samples. The paper evaluates the mean of the last two models; here it is the last one.
"""

from dataclasses import replace
from typing import Any

from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.checking import check_mean
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, ServerState


class FedExP(FedAvg):
    """FedAvg with an extrapolated server step.

    Args:
        eps: keeps the step short once updates are small; positive, in the units of a squared update.
        options: as for `FedAvg`; the step is times `server_optimizer.lr`, 1 in the paper.

    Raises:
        ValueError: a setting is invalid.
    """

    beyond_means = "the server's step needs the norms of single updates"

    def __init__(self, *, eps: float = 1e-3, **options: Any) -> None:
        super().__init__(**options)
        if not eps > 0:
            raise ValueError(f"strategy.eps={eps}: must be positive")
        self.eps = eps

    def check(self, setup: Setup) -> None:
        """Refuse all rules but the mean, and transforms: clients send the norms of updates that are sent as they are.

        Raises:
            ValueError: there is one, or as for `FedAvg`.
        """
        super().check(setup)
        check_mean(setup.aggregator, "FedExP's norms")
        if setup.transforms:
            raise ValueError(
                f"strategy.transforms={list(setup.transforms)}: must be none, FedExP's step needs the norms of updates "
                "as they are sent"
            )

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the update, and of its squared norm."""
        return {**super().vector_sizes(layout), "squared_norm": 1}

    def local(self, problem: LocalProblem) -> Local:
        """Train, and send the update's squared norm besides."""
        trained = yield problem
        squared = trained.difference[: problem.num_trainable].square().sum().reshape(1)
        return trained.update(problem, vectors={"squared_norm": squared}, payload={"squared_norm": squared.nbytes})

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step along the extrapolated mean update."""
        update = aggregate.vectors["update"].clone()
        mean = update[: layout.num_trainable]
        mean *= max(1.0, float(aggregate.vectors["squared_norm"]) / (2 * (float(mean.square().sum()) + self.eps)))
        return super().aggregate(state, replace(aggregate, vectors={"update": update}), layout)
