"""q-FedAvg: clients with a large loss count for more, so that losses become more equal.

Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020, arXiv 1905.10497, algorithm 2.
With F_k the client's loss at the global model w, w_k its model after training and L = 1 / lr: `d_k = L (w - w_k)`,
`D_k = F_k^q d_k`, `h_k = q F_k^(q-1) |d_k|^2 + L F_k^q`, and the server steps to `w - sum_k D_k / sum_k h_k`. The paper
draws clients by their samples and then counts them equally; here the cohort's sums weigh D_k and h_k by samples. Both
are steps for the same objective, `sum_k n_k / n F_k^(q+1) / (q + 1)`. With q = 0 it is FedAvg.
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

_LEAST_LOSS = 1e-10
"""Losses below are taken for this, as in the authors' code: a power of zero may be infinite."""


class QFedAvg(FedAvg):
    """FedAvg with updates scaled by powers of the clients' losses; each client sends D_k / L and the number h_k / L.

    The loss at the global model costs a forward pass over the client's samples. The server optimizer at learning rate 1
    is the paper's step; buffers are averaged as in FedAvg.

    Args:
        q: how much large losses count for more, at least 0.
        lipschitz: L, positive; None: one over the mean learning rate of the client's steps.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    reads_samples = True
    beyond_means = "the server divides by a mean of clients' losses"

    def __init__(self, *, q: float, lipschitz: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        if not q >= 0:
            raise ValueError(f"strategy.q={q}: must be at least 0")
        if lipschitz is not None and not lipschitz > 0:
            raise ValueError(f"strategy.lipschitz={lipschitz}: must be positive, or null for 1 / learning rate")
        self.q, self.lipschitz = q, lipschitz

    def check(self, setup: Setup) -> None:
        """Refuse all rules but the mean, as the step is a quotient of two sums.

        Raises:
            ValueError: there is one, or as for `FedAvg`.
        """
        super().check(setup)
        check_mean(setup.aggregator, "q-FedAvg's sums")

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the scaled update, and of h_k."""
        return {**super().vector_sizes(layout), "h": 1}

    def local(self, problem: LocalProblem) -> Local:
        """Compute the loss of the global model, train, and scale the update.

        Raises:
            ValueError: the loss is negative, so that it has no such powers.
        """
        before = yield replace(problem, only_gradient=True, trainable=frozenset())
        trained = yield problem
        loss, size = before.metrics["train/loss"], problem.num_trainable
        if loss < 0:
            raise ValueError(f"q-FedAvg needs losses of at least 0, the global model has {loss}")
        loss = max(loss, _LEAST_LOSS)
        update = trained.update(problem)
        scaled = update.vectors["update"].clone()
        scaled[:size] *= loss**self.q
        h = scaled.new_full((1,), loss**self.q)
        if trained.lr_sum > 0:  # without a step there is no update either
            lipschitz = self.lipschitz or trained.num_steps / trained.lr_sum
            moved = update.vectors["update"][:size].square().sum()
            h += self.q * loss ** (self.q - 1) * lipschitz * moved
        return replace(update, vectors={"update": scaled, "h": h}, payload={**update.payload, "h": h.nbytes})

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step along `sum D_k / sum h_k`; no step for an empty cohort, whose sums are zero."""
        update, h = aggregate.vectors["update"].clone(), float(aggregate.vectors["h"])
        if h > 0:
            update[: layout.num_trainable] /= h
        return super().aggregate(state, replace(aggregate, vectors={"update": update}), layout)
