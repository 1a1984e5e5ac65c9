"""MimeLite: clients step with the server's momentum, which stays as it is while they train.

Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, "Mime: Mimicking Centralized Stochastic Algorithms in Federated
Learning", arXiv 2008.03606 (NeurIPS 2021 as "Breaking the Centralized Barrier for Cross-Device Federated Learning"),
algorithm 1. With the statistics s of the server, a client steps along U(g, s), and the server renews s by V(g, s) with
g the mean of the clients' full gradients at the model that it sent:

- momentum: `U = (1 - b1) g + b1 m`, and V makes it the new m;
- adam: `U = ((1 - b1) g + b1 m) / (sqrt(v) + eps)`, and V also makes `v <- (1 - b2) g^2 + b2 v`; no bias is corrected.

Clients are weighted by samples, not equally.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.lightning.plain_sgd import check_plain_sgd, require_plain_sgd
from flrl.setup import Setup
from flrl.strategies.base import Local
from flrl.strategies.fedavg import FedAvg
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ServerState, Tensors


class MimeLite(FedAvg):
    """FedAvg with momentum that all clients share; the statistics are in the state's variables, float64.

    They are sent with the model, in its dtype. A client's full gradient costs a pass over its samples, and is sent too.

    Args:
        statistics: "momentum" or "adam".
        betas: decay of the momentum, and of the squares; each in [0, 1).
        eps: added to the root of the second moment, positive.
        initial_accumulator: the second moment before the first round, at least 0; 0 in the paper.
        options: as for `FedAvg`.

    Raises:
        ValueError: a setting is invalid.
    """

    gradients = 1.0

    def __init__(
        self,
        *,
        statistics: str = "momentum",
        betas: Sequence[float] = (0.9, 0.99),
        eps: float = 1e-3,
        initial_accumulator: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if statistics not in ("momentum", "adam"):
            raise ValueError(f"strategy.statistics={statistics!r}: must be 'momentum' or 'adam'")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"strategy.betas={list(betas)}: must be two numbers of at least 0 and below 1")
        if not eps > 0:
            raise ValueError(f"strategy.eps={eps}: must be positive")
        if not initial_accumulator >= 0:
            raise ValueError(f"strategy.initial_accumulator={initial_accumulator}: must be at least 0")
        self.adam, self.betas, self.eps = statistics == "adam", tuple(betas), eps
        self.initial_accumulator = initial_accumulator

    def check(self, setup: Setup) -> None:
        """Refuse local optimizers but plain SGD, which U takes the place of, and personal parameters, which have no s.

        Raises:
            ValueError: one of them, or as for `FedAvg`.
        """
        super().check(setup)
        check_plain_sgd(setup.module, setup.trainer)
        if self.personal:
            raise ValueError(f"strategy.personal={list(self.personal)}: must be [], they would have no statistics")

    def initialize(self, vector: Tensor, layout: ParameterLayout) -> ServerState:
        """The state with statistics of no gradient."""
        first = torch.zeros(layout.num_trainable, dtype=torch.float64)
        second = {"second": torch.full_like(first, self.initial_accumulator)} if self.adam else {}
        return replace(super().initialize(vector, layout), variables={"first": first, **second})

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The model and the statistics, in the model's dtype."""
        sent = {name: state.variables[name].to(state.vector.dtype) for name in ("first", "second")[: 1 + self.adam]}
        return replace(super().broadcast(state, round, total_weight), variables=sent)

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """Number of elements of the update, and of the gradient."""
        return {**super().vector_sizes(layout), "gradient": layout.num_trainable}

    def local(self, problem: LocalProblem) -> Local:
        """Compute the full gradient at the global model, and train with the server's statistics.

        Raises:
            ValueError: the client's optimizer was not plain SGD.
        """
        full = yield replace(problem, only_gradient=True)
        trained = yield replace(problem, values=problem.broadcast.variables)
        require_plain_sgd(trained.not_plain_sgd)
        gradient = -full.difference[: problem.num_trainable]
        nbytes = gradient.numel() * problem.start.element_size()
        return trained.update(problem, vectors={"gradient": gradient}, payload={"gradient": nbytes})

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """U: from a gradient to a step."""
        gradient.mul_(1 - self.betas[0]).add_(values["first"], alpha=self.betas[0])
        if self.adam:
            gradient.div_(values["second"].sqrt() + self.eps)

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """FedAvg's step, and V."""
        after = super().aggregate(state, aggregate, layout)
        return replace(after, variables=self.renewed(state.variables, aggregate.vectors["gradient"]))

    def renewed(self, variables: Tensors, gradient: Tensor) -> dict[str, Tensor]:
        """V: the variables with statistics that a gradient has been added to, float64 `[num_trainable]`."""
        moments = {"first": gradient, "second": gradient.square()}
        new = {
            name: beta * variables[name] + (1 - beta) * moments[name]
            for name, beta in zip(moments, self.betas, strict=True)
            if name in variables
        }
        return {**variables, **new}
