"""The coordinatewise median: if fewer than half of the clients are Byzantine, it stays in the range of the others.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
arXiv 1803.01498. Clients count equally; for an even number of clients it is the mean of the two in the middle.
"""

from torch import Tensor

from flrl.aggregation.columns import sorted_columns
from flrl.aggregation.rows import RowRule, Rows


class Median(RowRule):
    """The median of each number over the clients: of rows (1, 9), (2, 0), (6, 5) it is (2, 5)."""

    coordinatewise = True

    def rule(self, rows: Rows) -> Tensor:
        """The middle of each column, `[d]`."""
        return median_of(rows.values)


def median_of(values: Tensor) -> Tensor:
    """The median of each column of `[n, d]`; the mean of the two in the middle for an even n."""
    ordered, count = sorted_columns(values), len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
