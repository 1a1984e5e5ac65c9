"""The weighted mean of client updates, exact in its sum."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flrl.aggregation.base import (
    Aggregator,
    Combined,
    Parcel,
    Reducer,
    Stats,
    check_sizes,
    known_of,
    not_usable,
    stats_of,
)
from flrl.aggregation.exact_sum import LIMIT, ExactSum
from flrl.aggregation.row_mean import RowMean
from flrl.aggregation.rows import RowsReducer
from flrl.types import ClientUpdate, Context, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup

# A sum of so few addends is not carried before it is sent: the controller can add a thousand such sums exactly. It
# holds the vectors and weights of one or two clients, where two more passes over the sum would take notable time.
_FEW_ADDENDS = 4


class Mean(Aggregator):
    """The mean, weighted by the clients' weights; the same bits in any order and on any number of workers.

    Args:
        cosines: report the cosines of updates with their mean. Each update then goes to the controller, which holds 8
            bytes a number and client of the cohort; the mean has the same bits as without.
    """

    def __init__(self, *, cosines: bool = False) -> None:
        self.cosines = cosines

    def check(self, setup: "Setup") -> None:
        """Raise ValueError if updates are to be compared with their mean, and a transform hides them."""
        hiding = [name for name, transform in setup.transforms.items() if transform.hides_updates]
        if self.cosines and hiding:
            raise ValueError(f"strategy.aggregator.cosines=true: {hiding[0]} hides updates from the server")

    def reducer(self, sizes: Mapping[str, int], *, total_weight: float, device: torch.device | str = "cpu") -> Reducer:
        """An empty exact sum; one that keeps all updates, for cosines."""
        if self.cosines:
            return SummableRows(sizes, total_weight=total_weight)
        return MeanReducer(sizes, total_weight=total_weight, device=device)

    def combine(self, reducer: Reducer, state: Tensors, context: Context) -> Combined:
        """The means of all vectors."""
        if isinstance(reducer, RowsReducer):
            reducer = summed(reducer, context.total_weight)
        return Combined(*reducer.result())


class MeanReducer:
    """Adds weighted updates one by one.

    All vectors and the weights lie in one `ExactSum`, so that workers' sums are added in one operation. Weights are
    scaled by a power of two, which is exact, so that range and resolution of the sum hold for the mean.

    Args:
        sizes: number of elements of each vector in the updates, by name.
        total_weight: the sum of the cohort's weights, rejected updates included.
        device: where the sum is kept.

    Raises:
        ValueError: `total_weight` is not positive and finite.
    """

    def __init__(self, sizes: Mapping[str, int], *, total_weight: float, device: torch.device | str = "cpu") -> None:
        if not (total_weight > 0 and math.isfinite(total_weight)):
            raise ValueError(f"total_weight must be positive and finite, got {total_weight}")
        self.sizes, self.total_weight = dict(sizes), total_weight
        self.scale = _scale(total_weight)
        self.sum = ExactSum(sum(self.sizes.values()) + 1, device=device)

    def empty(self, sizes: Mapping[str, int]) -> "MeanReducer":
        """An empty reducer of other vectors, on the CPU, with the same scale of weights."""
        return MeanReducer(sizes, total_weight=self.total_weight)

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """The rejection reason of an update that cannot be summed (not finite, too large), or None."""
        return _rejection(update, stats, self.scale)

    def add(self, update: ClientUpdate, stats: Stats) -> None:
        """Add one update.

        Raises:
            ValueError: its vectors are not those announced, or are not finite.
            OverflowError: the sum leaves the exact range.
        """
        check_sizes(update, self.sizes)
        start = 0
        for name, size in self.sizes.items():
            weight, largest, places = update.weight * self.scale, stats[name].largest, known_of(update, name).places
            self.sum.add(update.vectors[name], weight, start=start, largest=largest, places=places)
            start += size
        self.sum.add_number(update.weight * self.scale, start)

    def parcel(self) -> Parcel:
        """Both parts of the sum, and their bounds; carried first, unless they hold few addends."""
        if self.sum.pending > _FEW_ADDENDS:
            self.sum.carry()
        numbers = {"bound": self.sum.bound, "pending": self.sum.pending}
        return Parcel(self.sum.parts.cpu(), numbers=numbers)

    def merge(self, others: list[Parcel]) -> Tensor | None:
        """Prepare for the other workers' sums, which the caller adds to the returned parts (float64 `[2, n + 1]`).

        Raises:
            OverflowError: the sum leaves the exact range.
        """
        bound, pending = (sum(parcel.numbers[name] for parcel in others) for name in ("bound", "pending"))
        self.sum.expect(bound, pending)
        self.sum.parts = self.sum.parts.cpu()
        return self.sum.parts

    def result(self) -> tuple[dict[str, Tensor], float]:
        """The weighted mean of each vector (float64), and the sum of weights; no means if nothing was added."""
        total = self.sum.value()
        weight = total[-1]
        if float(weight) == 0.0:
            return {}, 0.0
        means = torch.split(total[:-1].div_(weight), list(self.sizes.values()))
        return {n: mean.cpu() for n, mean in zip(self.sizes, means, strict=True)}, float(weight) / self.scale


class SummableRows(RowsReducer):
    """Keeps every update that `MeanReducer` would add.

    Args:
        sizes: number of elements of each vector in the updates, by name.
        total_weight: the sum of the cohort's weights, rejected updates included.
    """

    def __init__(self, sizes: Mapping[str, int], *, total_weight: float) -> None:
        super().__init__(sizes, RowMean())
        self.scale = _scale(total_weight)

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """The rejection reason of an update that cannot be summed, or None."""
        return _rejection(update, stats, self.scale)


def summed(rows: RowsReducer, total_weight: float) -> MeanReducer:
    """The exact sum of kept updates, in the order of clients' ids; `total_weight` is the cohort's."""
    mean = MeanReducer(rows.sizes, total_weight=total_weight)
    for client_id, row in sorted(rows.rows.items()):
        *vectors, weight = torch.split(row, [*rows.sizes.values(), 1])
        update = ClientUpdate(client_id, float(weight), dict(zip(rows.sizes, vectors, strict=True)), {}, 0)
        mean.add(update, stats_of(update))
    return mean


def _scale(total_weight: float) -> float:
    return 2.0 ** -math.ceil(math.log2(total_weight))


def _rejection(update: ClientUpdate, stats: Stats, scale: float) -> str | None:
    for name, known in stats.items():
        if math.isfinite(known.largest) and known.largest * update.weight * scale > LIMIT:
            return f"{name} is too large to be summed exactly ({known.largest:.3g})"
    return not_usable(update, stats)
