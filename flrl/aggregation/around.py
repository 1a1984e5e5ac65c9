"""Means of the numbers nearest to a robust centre: meamed (around the median) and phocas (around the trimmed mean).

Meamed: Xie, Koyejo, Gupta, "Generalized Byzantine-tolerant SGD", 2018, arXiv 1802.10116. Phocas: Xie, Koyejo, Gupta,
"Phocas: dimensional Byzantine-resilient stochastic gradient descent", 2018, arXiv 1805.09682. Clients count equally.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from flrl.aggregation.bearing import BearingRule
from flrl.aggregation.columns import sorted_columns
from flrl.aggregation.median import median_of
from flrl.aggregation.rows import Rows
from flrl.aggregation.trimmed_mean import trimmed_mean_of


class MeanAround(BearingRule):
    """Base class: of each number, the mean of the n - f values that are nearest to a centre.

    Args:
        num_malicious: f, how many clients may be malicious.
    """

    coordinatewise = True

    bound = (2, 1, "Xie et al., 2018")

    @abstractmethod
    def centre(self, values: Tensor) -> Tensor:
        """The centre of each column of `[n, d]`, as `[d]`."""

    def rule(self, rows: Rows) -> Tensor:
        """The mean of the nearest numbers of each column, `[d]`; of two as near the smaller one comes first."""
        return nearest_mean(rows.values, self.centre(rows.values), len(rows) - self.num_malicious)


class Meamed(MeanAround):
    """Around the median: of 1, 4, 7 with f = 1 the mean of 4 and 1."""

    def centre(self, values: Tensor) -> Tensor:
        """The median."""
        return median_of(values)


class Phocas(MeanAround):
    """Around the trimmed mean without f numbers at each end: of 0, 1, 2, 9 with f = 1 the mean of 0, 1, 2."""

    def centre(self, values: Tensor) -> Tensor:
        """The trimmed mean."""
        return trimmed_mean_of(values, self.num_malicious)


def nearest_mean(values: Tensor, centre: Tensor, count: int) -> Tensor:
    """Of each column of `[n, d]`, the mean of the `count` numbers nearest to `centre` `[d]`.

    In a sorted column these lie side by side: the window whose farther end is nearest.

    Raises:
        ValueError: no number would be left.
    """
    if count < 1:
        raise ValueError(f"of {len(values)} rows none would be left: num_malicious is too large")
    ordered = sorted_columns(values)
    below, above = centre - ordered[: len(values) - count + 1], ordered[count - 1 :] - centre
    first = torch.maximum(below, above).argmin(dim=0)  # argmin gives the first one of equals on the CPU
    windows = ordered.t().unfold(1, count, 1)
    return windows[torch.arange(len(first), device=first.device), first].mean(dim=1)
