"""Cohorts where some clients are away: drawn among the others, by the same law."""

from typing import Any

import numpy as np
import pytest
import torch

from flrl.sampling import (
    LOSSES,
    NORMS,
    AllClients,
    ImportanceSampler,
    PoissonSampler,
    PowerOfChoice,
    RoundRobin,
    UniformSampler,
    WeightedSampler,
    draw,
)

SIZES = np.array([10, 20, 30, 40, 50, 60, 70, 80])
VARIABLES = {
    LOSSES: torch.tensor([0.5, 0.1, np.inf, 0.7, 0.3, 0.2, 0.9, np.inf]).double(),
    NORMS: torch.tensor([3.0, 2.0, 1.0, np.inf, 1.0, 2.0, 3.0, 4.0]).double(),
}
SOME = np.array([True, False, True, True, False, True, True, False])
SAMPLERS = {
    "all": (AllClients(), 5),
    "uniform": (UniformSampler(num=3), 3),
    "fraction": (UniformSampler(fraction=0.5), 4),
    "poisson": (PoissonSampler(probability=0.6), None),
    "power_of_choice": (PowerOfChoice(num=2, candidates=4), 2),
    "round_robin": (RoundRobin(num=3), 3),
    "weighted": (WeightedSampler(num=3), None),
    "weighted without replacement": (WeightedSampler(num=3, replace=False), 3),
    "importance by norm": (ImportanceSampler(num=3), None),
    "importance by loss": (ImportanceSampler(num=3, by="loss", uniform=0.5), None),
}
MAY_BE_EMPTY = {"poisson"}
"""Each sampler, and the size of its cohorts where five of eight clients are available; None: it varies."""


def cohort(sampler: Any, round: int, available: np.ndarray | None = None) -> list[int]:
    found: list[int] = draw(sampler, VARIABLES, SIZES, seed=3, round=round, available=available).tolist()
    return found


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_cohort_is_drawn_among_the_available(name: str) -> None:
    sampler, size = SAMPLERS[name]
    seen: set[int] = set()
    for round in range(1, 80):
        drawn = cohort(sampler, round, SOME)
        assert drawn == sorted(set(drawn))
        assert set(drawn) <= {0, 2, 3, 5, 6}
        assert size is None or len(drawn) == size
        seen |= {*drawn}
    largest = {2, 3, 6}  # of any four of the five, two of these have the largest losses
    assert seen == (largest if name == "power_of_choice" else {0, 2, 3, 5, 6})


@pytest.mark.parametrize("name", SAMPLERS)
def test_where_all_are_available_nothing_changes(name: str) -> None:
    sampler, everybody = SAMPLERS[name][0], np.ones(8, bool)
    for round in range(1, 20):
        expected = cohort(sampler, round)
        assert cohort(sampler, round, everybody) == expected
        assert sampler(8, seed=3, round=round, available=everybody, **given(sampler)).tolist() == expected


def given(sampler: Any) -> dict[str, Any]:
    known = {"sizes": SIZES, "losses": VARIABLES[LOSSES].numpy(), "norms": VARIABLES[NORMS].numpy()}
    return {name: known[name] for name in getattr(sampler, "needs", ())}


@pytest.mark.parametrize("name", SAMPLERS)
def test_fewer_than_asked_for_are_all_and_none_is_an_empty_cohort(name: str) -> None:
    sampler, one = SAMPLERS[name][0], np.arange(8) == 6
    cohorts = [cohort(sampler, round, one) for round in range(1, 9)]
    assert [6] in cohorts
    if name not in MAY_BE_EMPTY:
        assert cohorts == [[6]] * 8
    assert cohort(sampler, 1, np.zeros(8, bool)) == []


def test_a_client_of_a_poisson_cohort_has_the_same_probability_whoever_is_away() -> None:
    sampler = PoissonSampler(probability=0.3)
    assert all(cohort(sampler, r, SOME) == [c for c in cohort(sampler, r) if SOME[c]] for r in range(1, 50))


class Own:
    """Needs to know nothing."""

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        return np.arange(num_clients)


class Deaf(Own):
    def __call__(self, num_clients: int, *, seed: int, round: int, available: Any = None) -> np.ndarray:
        return np.arange(num_clients)


def test_a_sampler_that_cannot_leave_clients_out_is_refused_where_some_are_away() -> None:
    assert cohort(Own(), 1, np.ones(8, bool)) == [*range(8)]
    with pytest.raises(ValueError, match=r"^strategy\.sampler: Own\.__call__ has no keyword `available`, and not all"):
        cohort(Own(), 1, SOME)
    with pytest.raises(ValueError, match=r"^strategy\.sampler: Deaf gives \[1, 4, 7\], which are not available in rou"):
        cohort(Deaf(), 1, SOME)


def test_what_a_sampler_needs_is_among_what_there_is() -> None:
    sampler = Own()
    sampler.needs = ("speeds",)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^strategy\.sampler: Own\.needs=\('speeds',\): must be of \('sizes', 'losse"):
        cohort(sampler, 1)
