"""The weighted mean of client updates, exact in its sum: the accumulator of every averaging strategy."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flrl.aggregation.exact_sum import LIMIT, ExactSum, largest_magnitude
from flrl.types import ClientUpdate


class WeightedMean:
    """Folds client updates one by one; accumulators of several workers merge; the mean does not depend on how.

    All vectors and the weights lie in one `ExactSum`, so a backend has one buffer pair to reduce. Weights are scaled by
    a power of two, which is exact, so that range and resolution of the sum hold for the mean.

    Args:
        sizes: elements of each vector that the updates carry, by name.
        total_weight: the sum of weights were every update to arrive.
        device: where the sum lives.
    """

    def __init__(self, sizes: Mapping[str, int], *, total_weight: float, device: torch.device | str = "cpu") -> None:
        if not (total_weight > 0 and math.isfinite(total_weight)):
            raise ValueError(f"total_weight must be positive and finite, got {total_weight}")
        self.sizes = dict(sizes)
        self.scale = 2.0 ** -math.ceil(math.log2(total_weight))
        self.sum = ExactSum(sum(self.sizes.values()) + 1, device=device)
        self._seen: tuple[ClientUpdate, dict[str, float]] | None = None

    def objection(self, update: ClientUpdate) -> str | None:
        """Why an update cannot be summed (not finite, too large), or None."""
        if not (update.weight > 0 and math.isfinite(update.weight)):
            return f"weight {update.weight} is not positive and finite"
        for name, largest in self._largest(update).items():
            if not math.isfinite(largest):
                return f"{name} is not finite"
            if largest * update.weight * self.scale > LIMIT:
                return f"{name} is too large to be summed exactly ({largest:.3g})"
        return None

    def add(self, update: ClientUpdate) -> None:
        """Fold one update.

        Raises:
            ValueError: its vectors are not those announced, or are not finite.
            OverflowError: the sum leaves the exact range.
        """
        found = {name: vector.numel() for name, vector in update.vectors.items()}
        if found != self.sizes:
            raise ValueError(f"client {update.client_id} sent vectors {found}, expected {self.sizes}")
        start, largest = 0, self._largest(update)
        for name, size in self.sizes.items():
            self.sum.add(update.vectors[name], update.weight * self.scale, start=start, largest=largest[name])
            start += size
        self._seen = None  # it holds the update's vectors alive
        weight = torch.tensor([update.weight], dtype=torch.float64, device=self.sum.parts.device)
        self.sum.add(weight, self.scale, start=start)

    def _largest(self, update: ClientUpdate) -> dict[str, float]:
        """The largest magnitude in each vector; kept from `objection` for the `add` that follows."""
        if self._seen is None or self._seen[0] is not update:
            self._seen = update, {name: largest_magnitude(vector) for name, vector in update.vectors.items()}
        return self._seen[1]

    def merge(self, other: "WeightedMean") -> None:
        """Fold all that another accumulator holds."""
        self.sum.merge(other.sum)

    def result(self) -> tuple[dict[str, Tensor], float]:
        """The weighted mean of each vector (float64), and the sum of weights; no means if nothing was added."""
        total = self.sum.value()
        weight = total[-1]
        if float(weight) == 0.0:
            return {}, 0.0
        means = torch.split(total[:-1].div_(weight), list(self.sizes.values()))
        return dict(zip(self.sizes, means, strict=True)), float(weight) / self.scale
