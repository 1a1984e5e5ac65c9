"""What stands between a client's training and the aggregate: clipping, noise, compression, masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flrl.layout import ParameterLayout
from flrl.types import ClientUpdate, Metrics, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


@dataclass(frozen=True, slots=True)
class Context:
    """What a transform may know of the round.

    Attributes:
        round: the round, counted from 1.
        seed: the run's seed.
        layout: of the vectors.
        cohort: ids of the clients that take part, ascending.
        total_weight: the sum of their weights, were every update to arrive.
        generator: of random numbers, from (seed, round, client or server, the transform's name) alone; on the CPU.
    """

    round: int
    seed: int
    layout: ParameterLayout
    cohort: Sequence[int]
    total_weight: float
    generator: torch.Generator


class Transform:
    """Base class whose methods do nothing; a transform holds settings, and what changes goes in and comes out.

    Transforms stand in `strategy.transforms` by name, in order. Each client's update goes through their `client` in
    this order where the client is; what the aggregator makes of them goes through their `server` in reverse order.
    Both return numbers to report, `transforms/<name>/<number>`: those of clients are summed over the cohort.
    """

    def check(self, setup: "Setup") -> None:
        """Raise ValueError, with the reason, for what it cannot go with; before any round."""

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """What the client sends instead.

        Args:
            update: what it would send; `payload` says how many bytes each of its vectors takes.
            memory: what this transform has the client remember from the last round it took part in.
            context: the round.

        Returns:
            The update, with the payload that it has now; what the client is to remember; numbers to report.
        """
        return update, memory, {}

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """What the server goes on with.

        Args:
            vectors: what the aggregator has made of the updates, float64, by name.
            state: what this transform has the server remember from the last round.
            context: the round.

        Returns:
            The vectors; what the server is to remember; numbers to report.
        """
        return vectors, state, {}


COVERS = ("trainable", "update", "all")
"""What of an update a transform covers: its trainable part, buffers too, or all vectors that are sent with it."""


def check_covers(name: str, covers: str) -> None:
    """Raise ValueError for a setting `covers` that is none of `COVERS`."""
    if covers not in COVERS:
        raise ValueError(f"strategy.transforms.{name}.covers={covers!r}: must be one of {', '.join(COVERS)}")


def covered(vectors: Tensors, covers: str, layout: ParameterLayout) -> list[tuple[str, slice]]:
    """The vectors that a transform covers, by name, and which part of each."""
    if covers == "trainable":
        return [("update", slice(layout.num_trainable))]
    return [(name, slice(None)) for name in vectors if covers == "all" or name == "update"]
