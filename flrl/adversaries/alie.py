"""A little is enough: the honest mean, off by so few standard deviations that a robust rule takes it for honest.

Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019, arXiv
1902.06156. Knows: all honest updates of the round. Sign: `mean + tau * std` as in ByzFL, where the paper's code has
`mean - z * std`: `tau=-z`. The deviation is the unbiased one (divided by h - 1). Clients count equally.
"""

import math
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import Colluder, checked_number


class ALIE(Colluder):
    """Sends the mean plus tau deviations: of (1, 2, 3), (4, 5, 6), (7, 8, 9) with `tau=1.5` it is (8.5, 9.5, 10.5).

    Args:
        tau: how many deviations; null is the paper's z_max for the clients of the round.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(self, *, tau: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.tau = None if tau is None else checked_number("tau", tau)

    def row(self, honest: Tensor, num_malicious: int, context: AdversaryContext) -> Tensor:
        """The shifted mean."""
        tau = z_max(len(honest), num_malicious) if self.tau is None else self.tau
        return honest.mean(dim=0) + tau * std_of(honest)


def std_of(rows: Tensor) -> Tensor:
    """The unbiased standard deviation of each column, `[d]`; zeros for one row."""
    return rows.std(dim=0) if len(rows) > 1 else torch.zeros_like(rows[0])


def z_max(num_honest: int, num_malicious: int) -> float:
    """The paper's z_max: with s = floor(n / 2 + 1) - m supporters, the normal quantile of (n - m - s) / (n - m).

    Example:
        >>> round(z_max(26, 24), 3)  # the paper's example: 50 workers, 24 of them corrupt
        1.426
    """
    count = num_honest + num_malicious
    supporters = max(1, math.floor(count / 2 + 1) - num_malicious)
    share = (num_honest - supporters) / num_honest
    return NormalDist().inv_cdf(share) if 0 < share < 1 else 0.0
