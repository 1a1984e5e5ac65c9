"""The weighted mean of rows: what `mean` computes, for adversaries that need sight of each update of a round.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, arXiv 1602.05629. It costs the memory of all rows, and its sum is not exact: without an adversary
`mean` is the better choice.
"""

from torch import Tensor

from flrl.aggregation.rows import RowRule, Rows


class RowMean(RowRule):
    """The mean by weights: of 1 and 4 with weights 2 and 1 it is 2."""

    coordinatewise = True

    def rule(self, rows: Rows) -> Tensor:
        """The mean, `[d]`."""
        return (rows.weights @ rows.values) / rows.weights.sum()
