"""The interface of aggregators: a rule that aggregates a round's updates, and its reducers on every worker."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from flrl.kernels import VectorStats, vector_stats
from flrl.types import ClientUpdate, Context, Known, Metrics, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup

Stats = Mapping[str, VectorStats]
"""The stats of an update's vectors, by name."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a worker's reducer sends to the controller's.

    Attributes:
        summand: float64 or int64 tensor that the backend adds to those of the other workers, element by element; None
            where the rule needs more than a sum.
        extras: further tensors by name: clients' whole updates, for instance.
        numbers: whole numbers by name: bounds of sums, for instance.
    """

    summand: Tensor | None
    extras: Tensors = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)


class Reducer(Protocol):
    """Reduces the updates of one worker's clients as they arrive, and merges with the reducers of other workers.

    Its result must not depend on which worker added which update, nor on the order.
    """

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """The rejection reason of an update that must be left out (not finite, too large), or None.

        Args:
            update: the update, before it is added.
            stats: the stats of its vectors, by name.
        """

    def add(self, update: ClientUpdate, stats: Stats) -> None:
        """Add one update; arguments as for `rejection`.

        Raises:
            ValueError: its vectors are not those announced.
        """

    def parcel(self) -> Parcel:
        """All that has been added, in a form that can be sent to the controller's reducer."""

    def merge(self, others: "list[Parcel]") -> Tensor | None:
        """Merge the parcels of the other workers, without their summands.

        Returns:
            The tensor that the caller adds the other workers' summands to, in place; None if there are no summands.
        """

    def result(self) -> tuple[dict[str, Tensor], float]:
        """The aggregated vectors, float64 by name, and the sum of weights; no vectors if nothing was added."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What was sealed, once it is opened.

    Attributes:
        reducer: what the aggregator's own reducer would be.
        numbers: to report.
        down_bytes: bytes that clients were sent for it.
    """

    reducer: Reducer
    numbers: Metrics = field(default_factory=dict)
    down_bytes: int = 0


class SealedReducer(ABC):
    """A reducer of updates that the server must not see: it is opened once all of them are in it."""

    @abstractmethod
    def opened(self) -> Opened:
        """The aggregator's own reducer, with all that has been added, on the controller."""


@dataclass(frozen=True, slots=True)
class Combined:
    """What an aggregator makes of a round's updates.

    Attributes:
        vectors: the aggregated vectors, float64 on the CPU, by name; none if there was no update.
        total_weight: the sum of the updates' weights.
        state: the aggregator's variables for the next round, by name.
        filtered: ids of the clients whose updates a rule that selects left out, ascending; None for other rules.
        numbers: to report.
        down_bytes: bytes that clients were sent besides the broadcast.
    """

    vectors: Tensors
    total_weight: float
    state: Tensors = field(default_factory=dict)
    filtered: Sequence[int] | None = None
    numbers: Metrics = field(default_factory=dict)
    down_bytes: int = 0


class Aggregator(ABC):
    """A rule that aggregates updates; makes a reducer for each worker."""

    needs_root = False
    """Whether it is given the update of the server's root samples in every round, as `Context.root`."""

    def check(self, setup: "Setup") -> None:  # noqa: B027
        """Raise ValueError for parts of a setup that the rule cannot be combined with; called before any round."""

    def enough(self, updates: int) -> bool:
        """Whether so many updates are enough for what is proved of the rule; a round with fewer is abandoned."""
        return True

    def combine(self, reducer: Reducer, state: Tensors, context: Context) -> Combined:
        """The aggregate of a round's updates, on the controller, once the reducers of all workers have been merged.

        Args:
            reducer: holds all updates of the round.
            state: the aggregator's variables as the round before left them, by name; empty in the first round.
            context: the round; its generator is the aggregator's own.
        """
        return Combined(*reducer.result())

    @abstractmethod
    def reducer(self, sizes: Mapping[str, int], *, total_weight: float, device: torch.device | str = "cpu") -> Reducer:
        """An empty reducer for a round.

        Args:
            sizes: number of elements of each vector in the updates, by name.
            total_weight: the sum of the cohort's weights, rejected updates included.
            device: where sums are kept.
        """


def merged(reducers: Sequence[Reducer]) -> Reducer:
    """One reducer with all that several have, each of which holds all workers' updates of some clients."""
    first, *others = reducers
    if others:
        parcels = [reducer.parcel() for reducer in others]
        parts = first.merge(parcels)
        if parts is not None:
            for parcel in parcels:
                assert parcel.summand is not None
                parts.add_(parcel.summand)
    return first


def stats_of(update: ClientUpdate) -> dict[str, VectorStats]:
    """The stats of an update's vectors, by name."""
    found = {}
    for name, vector in update.vectors.items():
        known = known_of(update, name)
        found[name] = known.stats or vector_stats(vector, known.places)
    return found


def known_of(update: ClientUpdate, name: str) -> Known:
    """What is known of one of an update's vectors."""
    vector, known = update.vectors[name], update.known.get(name)
    return known if known is not None and known.vector is vector else Known(vector)


def check_sizes(update: ClientUpdate, sizes: Mapping[str, int]) -> None:
    """Raise ValueError unless an update has the vectors that the strategy announced, by name and number of elements."""
    found = {name: vector.numel() for name, vector in update.vectors.items()}
    if found != sizes:
        raise ValueError(f"client {update.client_id} sent vectors {found}, expected {dict(sizes)}")


def not_usable(update: ClientUpdate, stats: Stats) -> str | None:
    """The rejection reason of an update that no reducer can use (weight not positive, values not finite), or None."""
    if not 0 < update.weight < float("inf"):
        return f"weight {update.weight} is not positive and finite"
    infinite = [name for name, known in stats.items() if not known.largest < float("inf")]
    return f"{infinite[0]} is not finite" if infinite else None
