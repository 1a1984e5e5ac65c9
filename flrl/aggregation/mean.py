"""The weighted mean of client updates, exact in its sum."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flrl.aggregation.base import Aggregator, Parcel, Stats, check_sizes, not_usable
from flrl.aggregation.exact_sum import LIMIT, ExactSum
from flrl.types import ClientUpdate

# A sum of so few addends is not carried before it is sent: the controller can add a thousand such sums exactly. It
# holds the vectors and weights of one or two clients, where two more passes over the sum would take notable time.
_FEW_ADDENDS = 4


class Mean(Aggregator):
    """The mean, weighted by the clients' weights; the same bits in any order and on any number of workers."""

    def reducer(
        self, sizes: Mapping[str, int], *, total_weight: float, device: torch.device | str = "cpu"
    ) -> "MeanReducer":
        """An empty exact sum."""
        return MeanReducer(sizes, total_weight=total_weight, device=device)


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
        self.sizes = dict(sizes)
        self.scale = 2.0 ** -math.ceil(math.log2(total_weight))
        self.sum = ExactSum(sum(self.sizes.values()) + 1, device=device)

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """The rejection reason of an update that cannot be summed (not finite, too large), or None."""
        for name, known in stats.items():
            if math.isfinite(known.largest) and known.largest * update.weight * self.scale > LIMIT:
                return f"{name} is too large to be summed exactly ({known.largest:.3g})"
        return not_usable(update, stats)

    def add(self, update: ClientUpdate, stats: Stats) -> None:
        """Add one update.

        Raises:
            ValueError: its vectors are not those announced, or are not finite.
            OverflowError: the sum leaves the exact range.
        """
        check_sizes(update, self.sizes)
        start = 0
        for name, size in self.sizes.items():
            largest = stats[name].largest
            self.sum.add(update.vectors[name], update.weight * self.scale, start=start, largest=largest)
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
