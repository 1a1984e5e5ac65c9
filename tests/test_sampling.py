"""Cohorts: a function of (seed, round), of the right size, drawn uniformly."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flrl.sampling import AllClients, PoissonSampler, UniformSampler
from tests.toys import setup_of


def test_all_clients_take_part() -> None:
    sampler = AllClients()
    sampler.check(setup_of(sizes=(1,)))
    for round in (1, 2, 99):
        assert sampler(4, seed=round, round=round).tolist() == [0, 1, 2, 3]


@given(st.integers(1, 60), st.data(), st.integers(0, 2**60), st.integers(1, 10**6))
def test_a_cohort_is_distinct_ascending_and_fixed_by_seed_and_round(
    num_clients: int, data: st.DataObject, seed: int, round: int
) -> None:
    num = data.draw(st.integers(1, num_clients))
    sampler = UniformSampler(num=num)
    assert sampler.largest(num_clients) == num
    cohort = sampler(num_clients, seed=seed, round=round)
    assert len(cohort) == num
    assert np.all(np.diff(cohort) > 0)
    assert cohort.min() >= 0
    assert cohort.max() < num_clients
    sampler(num_clients, seed=seed, round=round + 1)
    assert np.array_equal(UniformSampler(num=num)(num_clients, seed=seed, round=round), cohort)


def test_cohorts_are_pinned() -> None:
    cohorts = [UniformSampler(num=3)(10, seed=0, round=round).tolist() for round in range(1, 6)]
    assert cohorts == [[4, 6, 8], [3, 4, 7], [5, 6, 7], [1, 2, 8], [3, 5, 6]]
    many = np.concatenate([UniformSampler(num=20)(100, seed=7, round=round) for round in range(1, 101)])
    digest = hashlib.sha256(many.astype("<i8").tobytes()).hexdigest()
    assert digest == "e7f3b1fb852ad93bd517bd5a6b3a31834ad49aa0a885b6e2dc2050a60331c411"


def test_seeds_and_rounds_have_different_cohorts() -> None:
    sampler = UniformSampler(num=10)
    cohorts = {tuple(sampler(1000, seed=seed, round=round).tolist()) for seed in range(10) for round in range(1, 11)}
    assert len(cohorts) == 100


def test_every_client_and_every_pair_is_drawn_equally_often() -> None:
    sampler, rounds = UniformSampler(num=3), 4000
    counts, pairs = np.zeros(6), np.zeros((6, 6))
    for round in range(1, rounds + 1):
        cohort = sampler(6, seed=1, round=round)
        counts[cohort] += 1
        pairs[np.ix_(cohort, cohort)] += 1
    # Standard deviations: sqrt(1/2 * 1/2 / 4000) = 0.008 and sqrt(1/5 * 4/5 / 4000) = 0.006.
    assert counts / rounds == pytest.approx([0.5] * 6, abs=0.035)
    assert pairs[np.triu_indices(6, 1)] / rounds == pytest.approx([0.2] * 15, abs=0.028)


@pytest.mark.parametrize(
    ("fraction", "num_clients", "size"),
    [
        (0.1, 100, 10),
        (0.1, 14, 1),
        (0.1, 16, 2),
        (0.01, 10, 1),
        (1e-9, 10, 1),
        (0.34, 10, 3),
        (0.999, 10, 10),
        (1.0, 7, 7),
    ],
)
def test_a_fraction_is_rounded_to_the_nearest_number(fraction: float, num_clients: int, size: int) -> None:
    cohort = UniformSampler(fraction=fraction)(num_clients, seed=0, round=1)
    assert len(cohort) == size
    assert np.array_equal(UniformSampler(num=size)(num_clients, seed=0, round=1), cohort)


@pytest.mark.parametrize("sampler", [UniformSampler(), UniformSampler(num=5), UniformSampler(fraction=1.0)])
def test_everybody_is_everybody(sampler: UniformSampler) -> None:
    sampler.check(setup_of(sizes=[2] * 5))
    assert sampler(5, seed=3, round=8).tolist() == [0, 1, 2, 3, 4]


def test_a_cohort_larger_than_the_population_is_refused() -> None:
    message = r"^strategy\.sampler\.num=6: there are only 5 clients$"
    with pytest.raises(ValueError, match=message):
        UniformSampler(num=6).check(setup_of(sizes=[2] * 5))
    with pytest.raises(ValueError, match=message):
        UniformSampler(num=6)(5, seed=0, round=1)


@pytest.mark.parametrize("num", [0, -3])
def test_num_is_at_least_one(num: int) -> None:
    with pytest.raises(ValueError, match=rf"^strategy\.sampler\.num={num}: must be at least 1$"):
        UniformSampler(num=num)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_fraction_is_a_share(fraction: float) -> None:
    message = rf"^strategy\.sampler\.fraction={fraction}: must be above 0 and at most 1$"
    with pytest.raises(ValueError, match=message):
        UniformSampler(fraction=fraction)


def test_num_and_fraction_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"^strategy\.sampler: num=2 and fraction=0\.5 exclude each other$"):
        UniformSampler(num=2, fraction=0.5)


def test_a_poisson_cohort_is_drawn_client_by_client() -> None:
    sampler, rounds = PoissonSampler(probability=0.3), 4000
    sampler.check(setup_of(sizes=(1,)))
    assert sampler.largest(6) == 6
    cohorts = [sampler(6, seed=1, round=round) for round in range(1, rounds + 1)]
    assert all(np.array_equal(cohort, sampler(6, seed=1, round=r)) for r, cohort in enumerate(cohorts[:5], 1))
    assert sum(len(cohort) == 0 for cohort in cohorts) / rounds == pytest.approx(0.7**6, abs=0.025)
    taking_part = np.zeros((rounds, 6))
    for row, cohort in zip(taking_part, cohorts, strict=True):
        row[cohort] = 1
    # Standard deviations: sqrt(0.3 * 0.7 / 4000) = 0.007, and of pairs sqrt(0.09 * 0.91 / 4000) = 0.005.
    assert taking_part.mean(0) == pytest.approx([0.3] * 6, abs=0.03)
    pairs = (taking_part.T @ taking_part / rounds)[np.triu_indices(6, 1)]
    assert pairs == pytest.approx([0.09] * 15, abs=0.02)
    assert PoissonSampler(probability=1.0)(4, seed=0, round=1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_a_probability_is_above_0_and_at_most_1(probability: float) -> None:
    with pytest.raises(ValueError, match=r"strategy\.sampler\.probability=.*: must be above 0 and at most 1"):
        PoissonSampler(probability=probability)
