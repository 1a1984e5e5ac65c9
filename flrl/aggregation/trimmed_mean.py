"""The coordinatewise trimmed mean: the largest and the smallest values of each number are left out.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
arXiv 1803.01498. Clients count equally.
"""

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from flrl.aggregation.bearing import check_cohort, rows_of
from flrl.aggregation.columns import sorted_columns
from flrl.aggregation.rows import RowRule, Rows

if TYPE_CHECKING:
    from flrl.setup import Setup


class TrimmedMean(RowRule):
    """The mean of each number over the clients without its extremes: of 1, 2, 3, 90 with `share=0.25` it is 2.5.

    Args:
        share: share of the clients left out at each end, in [0, 0.5); rounded down to whole clients.
        num_malicious: how many clients are left out at each end, instead of `share`.

    Raises:
        ValueError: both are given or none, or one is out of range.
    """

    coordinatewise = True

    def __init__(self, *, share: float | None = None, num_malicious: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        if (share is None) == (num_malicious is None):
            raise ValueError("strategy.aggregator: TrimmedMean takes share or num_malicious, the other is null")
        if share is not None and not 0 <= share < 0.5:
            raise ValueError(f"strategy.aggregator.share={share}: must be at least 0 and below 0.5")
        if num_malicious is not None and num_malicious < 0:
            raise ValueError(f"strategy.aggregator.num_malicious={num_malicious}: must be at least 0")
        self.share, self.num_malicious = share, num_malicious

    def check(self, setup: "Setup") -> None:
        """Refuse cohorts of which nothing would be left."""
        super().check(setup)
        if self.num_malicious is not None:
            part = f"num_malicious={self.num_malicious}: TrimmedMean"
            check_cohort(setup, part, 2 * self.num_malicious + 1, "Yin et al., 2018", self.before)

    def enough(self, updates: int) -> bool:
        """Whether something is left, where it is told how many clients may be malicious."""
        return super().enough(updates) and rows_of(updates, self.before) >= 2 * (self.num_malicious or 0) + 1

    def rule(self, rows: Rows) -> Tensor:
        """The mean of each column without its extremes, `[d]`."""
        trimmed = math.floor((self.share or 0.0) * len(rows)) if self.num_malicious is None else self.num_malicious
        return trimmed_mean_of(rows.values, trimmed)


def trimmed_mean_of(values: Tensor, trimmed: int) -> Tensor:
    """The mean of each column of `[n, d]` without so many of its largest and of its smallest numbers.

    Raises:
        ValueError: nothing is left.
    """
    if 2 * trimmed >= len(values):
        raise ValueError(f"a trimmed mean of {len(values)} rows cannot leave out {trimmed} at each end")
    return sorted_columns(values)[trimmed : len(values) - trimmed].mean(dim=0)
