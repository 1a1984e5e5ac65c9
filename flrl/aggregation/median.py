"""The coordinatewise median: half of the clients may send anything, and no number leaves the range of the others.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
arXiv 1803.01498. Clients count equally; for an even number it is the mean of the two in the middle.
"""

from torch import Tensor

from flrl.aggregation.rows import RowRule, sorted_columns


class Median(RowRule):
    """The median of each number over the clients: of rows (1, 9), (2, 0), (6, 5) it is (2, 5)."""

    coordinatewise = True

    def rule(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The middle of each column."""
        ordered, count = sorted_columns(rows), len(rows)
        return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
