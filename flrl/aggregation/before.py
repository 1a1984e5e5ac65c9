"""What happens to rows before a rule: buckets, mixing of neighbours, clipping. `strategy.aggregator.before`."""

from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flrl.aggregation.bearing import check_cohort
from flrl.aggregation.columns import weighted_sums
from flrl.aggregation.distances import nearest, squared_distances
from flrl.aggregation.rows import Before, Rows

if TYPE_CHECKING:
    from flrl.setup import Setup


def nothing() -> None:
    """What `before=none` stands for: the rule is given the rows as they are."""


class Bearing(Before):
    """Base class of what is told how many clients may be malicious.

    Args:
        num_malicious: f, at least 0.
    """

    def __init__(self, *, num_malicious: int) -> None:
        if num_malicious < 0:
            raise ValueError(f"strategy.aggregator.before.num_malicious={num_malicious}: must be at least 0")
        self.num_malicious = num_malicious

    def check(self, setup: "Setup") -> None:
        """Refuse cohorts in which honest clients would not be the majority."""
        part = f"before.num_malicious={self.num_malicious}: {type(self).__name__}"
        check_cohort(setup, part, 2 * self.num_malicious + 1, "an honest majority")

    def enough(self, updates: int) -> bool:
        """Whether honest clients are the majority."""
        return updates >= 2 * self.num_malicious + 1


class Bucketing(Before):
    """Means of buckets of rows that are drawn by seed (Karimireddy, He, Jaggi, ICLR 2022, arXiv 2006.09365).

    Args:
        size: s, rows of a bucket; the last one may have fewer.
    """

    def __init__(self, *, size: int = 2) -> None:
        if size < 1:
            raise ValueError(f"strategy.aggregator.before.size={size}: must be at least 1")
        self.size = size

    def count(self, rows: int) -> int:
        """As many as there are buckets."""
        return ceil(rows / self.size)

    def __call__(self, rows: Rows) -> Rows:
        """The buckets' means; a bucket weighs what its rows weigh together."""
        order = torch.randperm(len(rows), generator=rows.generator)
        buckets = sorted(own.tolist() for own in torch.split(order, self.size))
        for first, *others in buckets:
            for other in others:
                rows.values[first].add_(rows.values[other])
            rows.values[first].div_(1 + len(others))
        for place, (first, *_) in enumerate(buckets):  # no first one comes before its place
            rows.values[place].copy_(rows.values[first])
        weights = torch.stack([rows.weights[own].sum() for own in buckets])
        return replace(rows, values=rows.values[: len(buckets)], weights=weights, clients=range(len(buckets)))


class NNM(Bearing):
    """Nearest-neighbour mixing: each row becomes the mean of its n - f nearest (Allouah et al., AISTATS 2023).

    "Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity", arXiv 2302.01772.

    Args:
        num_malicious: f.
    """

    def __call__(self, rows: Rows) -> Rows:
        """The mixed rows."""
        count = max(1, len(rows) - self.num_malicious)
        places = nearest(squared_distances(rows.values), count)
        among = rows.values.new_zeros(len(rows), len(rows)).scatter_(1, places, 1.0)
        return replace(rows, values=weighted_sums(among, rows.values).div_(count))


class Clip(Before):
    """Rows are scaled down to a fixed norm.

    Args:
        max_norm: the bound, positive.
    """

    def __init__(self, *, max_norm: float) -> None:
        if not max_norm > 0:
            raise ValueError(f"strategy.aggregator.before.max_norm={max_norm}: must be positive")
        self.max_norm = max_norm

    def __call__(self, rows: Rows) -> Rows:
        """The clipped rows."""
        return clipped(rows, rows.values.norm(dim=1), self.max_norm)


class ARC(Bearing):
    """Adaptive robust clipping: the longest rows are clipped to the norm of the longest of the others.

    Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, "Adaptive Gradient Clipping for Robust Federated Learning",
    ICLR 2025, arXiv 2405.14432: `floor(2 f / n * (n - f))` rows are clipped.

    Args:
        num_malicious: f.
    """

    def __call__(self, rows: Rows) -> Rows:
        """The clipped rows."""
        count = len(rows)
        longest = min(count - 1, 2 * self.num_malicious * max(0, count - self.num_malicious) // count)
        norms = rows.values.norm(dim=1)
        return clipped(rows, norms, float(norms.sort(descending=True).values[longest]))


def clipped(rows: Rows, norms: Tensor, max_norm: float) -> Rows:
    """The rows, of which `norms` `[n]` are the norms, none longer than `max_norm`: changed in place."""
    for row, norm in zip(rows.values, norms.tolist(), strict=True):
        if norm > max_norm:
            row.mul_(max_norm / norm)
    return rows
