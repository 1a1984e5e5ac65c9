"""The coordinatewise trimmed mean: the largest and the smallest values of each number are left out.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
arXiv 1803.01498. Clients count equally.
"""

import math

from torch import Tensor

from flrl.aggregation.rows import RowRule, sorted_columns


class TrimmedMean(RowRule):
    """The mean of each number over the clients without its extremes: of 1, 2, 3, 90 with `share=0.25` it is 2.5.

    Args:
        share: share of the clients left out at each end, in [0, 0.5); rounded down to whole clients.

    Raises:
        ValueError: `share` is out of range.
    """

    coordinatewise = True

    def __init__(self, *, share: float) -> None:
        if not 0 <= share < 0.5:
            raise ValueError(f"strategy.aggregator.share={share}: must be at least 0 and below 0.5")
        self.share = share

    def rule(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The mean of each column of `[n, d]` without its extremes, as `[d]`."""
        trimmed = math.floor(self.share * len(rows))
        return sorted_columns(rows)[trimmed : len(rows) - trimmed].mean(dim=0)
