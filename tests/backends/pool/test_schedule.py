"""Which worker gets which job; that no result depends on it is shown where workers train."""

import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flrl.backends.pool.schedule import at_random, contiguous, longest_first


@given(st.lists(st.integers(1, 1000), max_size=6), st.integers(1, 3))
@settings(deadline=None, max_examples=50)
def test_longest_first_is_within_a_third_of_the_best_assignment(sizes: list[int], workers: int) -> None:
    """Of all assignments: at most 4/3 - 1/(3 workers) times as long, which is Graham's theorem."""

    def longest(owners: Sequence[int]) -> int:
        return max(sum(size for size, owner in zip(sizes, owners, strict=True) if owner == w) for w in range(workers))

    assigned = longest_first(sizes, workers)
    found = max(sum(sizes[job] for job in jobs) for jobs in assigned)
    best = min(longest(owners) for owners in itertools.product(range(workers), repeat=len(sizes)))
    assert 3 * workers * found <= (4 * workers - 1) * best


@given(st.lists(st.integers(1, 1000), max_size=30), st.integers(1, 8))
def test_every_job_is_assigned_once_and_nobody_waits_for_more_than_one(sizes: list[int], workers: int) -> None:
    assigned = longest_first(sizes, workers)
    assert sorted(job for jobs in assigned for job in jobs) == list(range(len(sizes)))
    assert all(jobs == sorted(jobs) for jobs in assigned)
    loads = [sum(sizes[job] for job in jobs) for jobs in assigned]
    assert workers * max(loads) <= sum(sizes) + (workers - 1) * max(sizes, default=0)


def test_longest_first_by_hand() -> None:
    assert longest_first([1, 9, 5, 5], 2) == [[0, 1], [2, 3]]
    assert longest_first([600, 500, 300, 300, 200, 100], 3) == [[0, 5], [1, 4], [2, 3]]
    assert longest_first([2, 2, 2], 5) == [[0], [1], [2], [], []]
    assert [len(jobs) for jobs in longest_first([1] * 5, 2)] == [3, 2]


def test_contiguous_by_hand() -> None:
    assert contiguous(10, 3) == [range(0, 3), range(3, 6), range(6, 10)]
    assert contiguous(7, 3) == [range(0, 2), range(2, 4), range(4, 7)]
    assert contiguous(1, 3) == [range(0, 0), range(0, 0), range(0, 1)]


def test_a_random_assignment_is_uniform_and_in_any_order() -> None:
    """A standard deviation of a worker's share of 3000 is sqrt(1/3 * 2/3 / 3000) = 0.009."""
    assigned = at_random([1] * 3000, 3, np.random.default_rng(0))
    assert sorted(job for jobs in assigned for job in jobs) == list(range(3000))
    assert all(abs(len(jobs) / 3000 - 1 / 3) < 0.035 for jobs in assigned)
    assert any(jobs != sorted(jobs) for jobs in assigned)
    assert assigned == at_random([1] * 3000, 3, np.random.default_rng(0))
