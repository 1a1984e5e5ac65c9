"""Means, intervals and tests over runs that differ by their seeds."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """A mean over runs.

    Attributes:
        n: number of runs.
        mean: their mean.
        std: standard deviation, with n - 1; NaN for one run.
        half: half the width of the 95 % interval of the mean, by Student's t; NaN for one run.
    """

    n: int
    mean: float
    std: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        n = len(values)
        if n < 2:
            return cls(n, float(values[0]), math.nan, math.nan)
        std = float(np.std(values, ddof=1))
        return cls(n, float(np.mean(values)), std, float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * std / math.sqrt(n))


@dataclass(frozen=True)
class Difference:
    """Two groups beside each other.

    Attributes:
        one, other: the groups' names.
        mean: mean of `one` minus mean of `other`; of the pairs, where runs are paired.
        test: "paired t", "Welch's t", or why there is none.
        n: number of pairs, or of runs of both.
        alone: number of runs without a partner in the other group, which a paired test leaves out.
        p: the test's two-sided p value; NaN without a test.
        corrected: that value after Holm's correction for all pairs of groups.
    """

    one: str
    other: str
    mean: float
    test: str
    n: int
    alone: int = 0
    p: float = math.nan
    corrected: float = math.nan

    @property
    def verdict(self) -> str:
        """In words, at the 5 % level."""
        if math.isnan(self.p):
            return self.test
        if self.corrected >= 1 - LEVEL:
            return "not significant"
        return f"{self.one} is {'higher' if self.mean > 0 else 'lower'}"


def differences(groups: Mapping[str, Mapping[str, float]]) -> list[Difference]:
    """All pairs of groups, tested.

    Args:
        groups: by name of the group, values of runs by what pairs them (their seed and whatever else differs within a
            group). Groups that share at least two of these are compared by the paired t test over the shared ones,
            others by Welch's.

    Returns:
        The pairs in the groups' order, with p values corrected by Holm's method (Scandinavian J. of Statistics, 1979).
    """
    found = [_tested(*pair) for pair in itertools.combinations(groups.items(), 2)]
    corrected = iter(holm([pair.p for pair in found if not math.isnan(pair.p)]))
    return [pair if math.isnan(pair.p) else replace(pair, corrected=next(corrected)) for pair in found]


def _tested(first: tuple[str, Mapping[str, float]], second: tuple[str, Mapping[str, float]]) -> Difference:
    (one, a), (other, b) = first, second
    shared = [key for key in a if key in b]
    if len(shared) >= 2:
        gaps = np.array([a[key] - b[key] for key in shared])
        found = Difference(one, other, float(gaps.mean()), "paired t", len(gaps), len(a) + len(b) - 2 * len(gaps))
        if _constant(gaps, max(abs(a[key]) for key in shared)):
            return replace(found, test="equal" if found.mean == 0 else "the same difference in every pair")
        return replace(found, p=float(stats.ttest_1samp(gaps, 0.0).pvalue))
    ours, theirs = np.array([*a.values()]), np.array([*b.values()])
    found = Difference(one, other, float(ours.mean() - theirs.mean()), "Welch's t", len(a) + len(b))
    if min(len(a), len(b)) < 2:
        return replace(found, test="too few runs for a test")
    if all(_constant(values, abs(values).max()) for values in (ours, theirs)):
        return replace(found, test="no variance within the groups")
    return replace(found, p=float(stats.ttest_ind(ours, theirs, equal_var=False).pvalue))


def _constant(values: np.ndarray, scale: float) -> bool:
    """Whether values differ by no more than by rounding."""
    return bool(np.ptp(values) <= 1e-12 * scale)


def holm(p: Sequence[float]) -> list[float]:
    """P values corrected by Holm's step-down method.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    corrected, largest = [0.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = largest
    return corrected
