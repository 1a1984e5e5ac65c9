"""The weighted mean of client updates, exact in its sum: the accumulator of every averaging strategy."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flrl.aggregation.exact_sum import LIMIT, ExactSum
from flrl.kernels import Survey, survey
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

    def objection(self, update: ClientUpdate, surveys: Mapping[str, Survey] | None = None) -> str | None:
        """Why an update cannot be summed (not finite, too large), or None.

        Args:
            update: what may be added.
            surveys: of its vectors, by name, where they are known.
        """
        if not (update.weight > 0 and math.isfinite(update.weight)):
            return f"weight {update.weight} is not positive and finite"
        for name, seen in (surveyed(update) if surveys is None else surveys).items():
            if not math.isfinite(seen.largest):
                return f"{name} is not finite"
            if seen.largest * update.weight * self.scale > LIMIT:
                return f"{name} is too large to be summed exactly ({seen.largest:.3g})"
        return None

    def add(self, update: ClientUpdate, surveys: Mapping[str, Survey] | None = None) -> None:
        """Fold one update; arguments as for `objection`.

        Raises:
            ValueError: its vectors are not those announced, or are not finite.
            OverflowError: the sum leaves the exact range.
        """
        found = {name: vector.numel() for name, vector in update.vectors.items()}
        if found != self.sizes:
            raise ValueError(f"client {update.client_id} sent vectors {found}, expected {self.sizes}")
        start, surveys = 0, surveyed(update) if surveys is None else surveys
        for name, size in self.sizes.items():
            largest = surveys[name].largest
            self.sum.add(update.vectors[name], update.weight * self.scale, start=start, largest=largest)
            start += size
        weight = torch.tensor([update.weight], dtype=torch.float64, device=self.sum.parts.device)
        self.sum.add(weight, self.scale, start=start, largest=update.weight)

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


def surveyed(update: ClientUpdate) -> dict[str, Survey]:
    """The surveys of an update's vectors, by name."""
    return {name: survey(vector) for name, vector in update.vectors.items()}
