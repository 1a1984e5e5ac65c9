"""(f, kappa)-robustness, by brute force over all subsets of few rows.

Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Fixing by Mixing: A Recipe for Optimal Byzantine ML under
Heterogeneity", AISTATS 2023, arXiv 2302.01772: for all rows and every S of n - f of them, the squared distance of the
result from the mean of S is at most kappa times the mean squared distance of S from it. The values of kappa are those
of its propositions, and with NNM of its lemma 1. For MDA Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, "Byzantine
Machine Learning Made Easy by Resilient Averaging of Momentums", ICML 2022, arXiv 2205.12173: no farther than
`2 f / (n - f)` times the diameter of S.
"""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from flrl.aggregation import MDA, NNM, Before, GeometricMedian, Krum, Median, RowMean, RowRule, TrimmedMean

SIZES = ((4, 1), (7, 2), (7, 3), (9, 4))
Make = Callable[[int, Before | None], RowRule]
PROVED: dict[str, tuple[Make, Callable[[float], float]]] = {  # kappa as a function of f / (n - 2 f)
    "trimmed mean": (lambda f, before: TrimmedMean(num_malicious=f, before=before), lambda q: 6 * q * (1 + q)),
    "krum": (lambda f, before: Krum(num_malicious=f, before=before), lambda q: 6 * (1 + q)),
    "geometric median": (lambda f, before: GeometricMedian(iterations=60, before=before), lambda q: 4 * (1 + q) ** 2),
    "median": (lambda f, before: Median(before=before), lambda q: 4 * (1 + q) ** 2),
}


def inputs(count: int, f: int) -> Iterator[Tensor]:
    """Rows `[count, 2]`: at random, with f of them away, in two camps, on a line, on a grid."""
    generator = torch.Generator().manual_seed(100 * count + f)
    for away in (0.0, 1.0, 3.0, 1e3):
        rows = torch.randn(count, 2, dtype=torch.float64, generator=generator)
        rows[:f] += away
        yield rows
    camps = torch.zeros(count, 2, dtype=torch.float64)
    camps[: count // 2] = 1.0
    yield camps
    line = torch.arange(float(count), dtype=torch.float64)
    yield torch.stack([line, line.square()], dim=1)
    yield torch.randint(-2, 3, (count, 2), generator=generator).double()


def excess(rule: RowRule, f: int, count: int, kappa: float) -> float:
    """The largest of `|R - mean|^2 - kappa * (mean squared distance)` over all inputs and subsets, relative to rows."""
    subsets = torch.tensor(list(itertools.combinations(range(count), count - f)))
    worst = -float("inf")
    for rows in inputs(count, f):
        found = rule(rows)
        sets = rows[subsets]  # [subsets, n - f, 2]
        means = sets.mean(dim=1)
        spread = (sets - means[:, None]).square().sum(dim=2).mean(dim=1)
        beyond = (found - means).square().sum(dim=1) - kappa * spread
        worst = max(worst, float(beyond.max()) / float(rows.square().sum()))
    return worst


@pytest.mark.parametrize("mixed", [False, True], ids=["alone", "after nnm"])
@pytest.mark.parametrize("name", PROVED)
def test_no_subset_is_farther_than_its_kappa(name: str, mixed: bool) -> None:
    make, kappa = PROVED[name]
    for count, f in SIZES:
        bound = kappa(f / (count - 2 * f))
        if mixed:
            bound = 8 * f / (count - f) * (bound + 1)
        assert excess(make(f, NNM(num_malicious=f) if mixed else None), f, count, bound) < 1e-9


def test_the_mean_has_no_kappa_and_none_is_below_the_least() -> None:
    """No rule can have less than f / (n - 2 f)."""
    assert excess(RowMean(), 2, 7, 4 * (1 + 2 / 3) ** 2) > 1e-3
    for name, (make, _) in PROVED.items():
        assert excess(make(2, None), 2, 7, 0.5 * 2 / 3) > 0, name


def test_the_least_diameter_is_near_every_subset() -> None:
    for count, f in SIZES:
        for rows in inputs(count, f):
            found = MDA(num_malicious=f)(rows)
            for own in itertools.combinations(range(count), count - f):
                chosen = rows[list(own)]
                diameter = float(torch.cdist(chosen, chosen, compute_mode="donot_use_mm_for_euclid_dist").max())
                assert float((found - chosen.mean(dim=0)).norm()) <= 2 * f / (count - f) * diameter + 1e-9
