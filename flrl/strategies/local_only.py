"""Local training, a baseline: each client trains a model of its own on its own samples, and nothing is sent.

All start from the initial model, which stays the global one: `test/...` and `clients/global/...` are of that, and what
is learned is in `clients/personal/...`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.strategies.base import Local, Strategy
from flrl.trainers import LocalProblem
from flrl.types import Aggregate, Broadcast, ClientUpdate, ServerState


class LocalOnly(Strategy):
    """Each client of a cohort goes on training its own model; arguments as for `Strategy`."""

    evaluates: Sequence[str] = ("own",)

    def check(self, setup: Setup) -> None:
        """Refuse transforms, of which there is nothing to transform.

        Raises:
            ValueError: there are some, or as for `Strategy`.
        """
        super().check(setup)
        if self.transforms:
            raise ValueError(f"strategy.transforms={list(self.transforms)}: clients of strategy=local send nothing")

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """The initial model, which clients have already: no bytes."""
        return replace(super().broadcast(state, round, total_weight), payload={"vector": 0})

    def personal_model(self, problem: LocalProblem) -> Tensor:
        """The client's own model; before the client has taken part, the initial one."""
        return problem.task.memory.get("own", problem.start)

    def local(self, problem: LocalProblem) -> Local:
        """Go on with the client's own model."""
        trained = yield replace(problem, start=self.personal_model(problem))
        return ClientUpdate(
            client_id=problem.task.client_id,
            weight=problem.task.weight,
            vectors={"update": torch.zeros_like(problem.broadcast.vector, dtype=torch.float64)},
            metrics=trained.metrics,
            num_steps=trained.num_steps,
            memory={**trained.memory, "own": trained.vector.cpu()},
        )

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """The state as it is."""
        return state
