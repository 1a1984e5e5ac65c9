"""SignSGD with majority vote: each client votes for the sign of each number.

Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with Majority Vote is Communication Efficient And Fault
Tolerant", ICLR 2019, arXiv 1810.05291. Clients count equally; the result has -1, 0 and 1, so the server's learning
rate is the step of each number.
"""

from torch import Tensor

from flrl.aggregation.rows import RowRule, Rows


class SignMajority(RowRule):
    """The sign of the sum of signs; 0 where votes are even."""

    coordinatewise = True

    def rule(self, rows: Rows) -> Tensor:
        """The votes' signs, `[d]`."""
        return rows.values.sign().sum(dim=0).sign()
