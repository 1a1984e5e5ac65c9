"""How a round's updates become one: what every aggregator and its reducers do."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from flrl.kernels import VectorStats, vector_stats
from flrl.types import ClientUpdate, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup

Stats = Mapping[str, VectorStats]


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a worker's reducer sends to the controller's.

    Attributes:
        summand: float64, to be added to those of the other workers element by element, by whatever adds fastest; None
            where nothing can be added.
        extras: what travels besides: whole rows, say.
        numbers: whole numbers that go with them: bounds of sums, say.
    """

    summand: Tensor | None
    extras: Tensors = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)


class Reducer(Protocol):
    """Takes the updates of one worker's clients as they come, and merges with those of the other workers.

    Its result must not depend on which worker took which update, nor in which order.
    """

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """Why an update must be left out (not finite, too large), or None.

        Args:
            update: what may be added.
            stats: of its vectors, by name.
        """

    def add(self, update: ClientUpdate, stats: Stats) -> None:
        """Add one update; arguments as for `rejection`.

        Raises:
            ValueError: its vectors are not those announced.
        """

    def parcel(self) -> Parcel:
        """All that has been added, to be sent."""

    def merge(self, others: "list[Parcel]") -> Tensor | None:
        """Take what the other workers sent; the tensor that their summands are to be added to, if there are any."""

    def result(self) -> tuple[dict[str, Tensor], float]:
        """What the vectors have become, float64 by name, and the sum of weights; no vectors if nothing was added."""


class Aggregator(ABC):
    """Says how updates become one, and makes a reducer for each worker."""

    def check(self, setup: "Setup") -> None:  # noqa: B027
        """Raise ValueError, with the reason, for what it cannot go with; before any round."""

    @abstractmethod
    def reducer(self, sizes: Mapping[str, int], *, total_weight: float, device: torch.device | str = "cpu") -> Reducer:
        """A reducer for a round.

        Args:
            sizes: elements of each vector that the updates carry, by name.
            total_weight: the sum of weights were every update to arrive.
            device: where sums live.
        """


def stats_of(update: ClientUpdate) -> dict[str, VectorStats]:
    """The stats of an update's vectors, by name."""
    return {name: vector_stats(vector) for name, vector in update.vectors.items()}


def check_sizes(update: ClientUpdate, sizes: Mapping[str, int]) -> None:
    """Raise ValueError unless an update carries the vectors that were announced."""
    found = {name: vector.numel() for name, vector in update.vectors.items()}
    if found != sizes:
        raise ValueError(f"client {update.client_id} sent vectors {found}, expected {dict(sizes)}")


def not_usable(update: ClientUpdate, stats: Stats) -> str | None:
    """Why no reducer can use an update: a weight that is none, or numbers that are not finite."""
    if not 0 < update.weight < float("inf"):
        return f"weight {update.weight} is not positive and finite"
    infinite = [name for name, seen in stats.items() if not seen.largest < float("inf")]
    return f"{infinite[0]} is not finite" if infinite else None
