"""Who is dealt what; that no result depends on it is shown where workers train."""

import numpy as np

from flrl.backends.pool.schedule import at_random, contiguous, longest_first


def test_by_hand() -> None:
    assert longest_first([1, 9, 5, 5], 2) == [[0, 1], [2, 3]]
    assert longest_first([2, 2, 2], 5) == [[0], [1], [2], [], []]
    assert contiguous(7, 3) == [range(0, 2), range(2, 4), range(4, 7)]


def test_random_dealing_is_uniform() -> None:
    """A standard deviation of a worker's share of 3000 is sqrt(1/3 * 2/3 / 3000) = 0.009."""
    hands = at_random([1] * 3000, 3, np.random.default_rng(0))
    assert sorted(job for hand in hands for job in hand) == list(range(3000))
    assert all(abs(len(hand) / 3000 - 1 / 3) < 0.035 for hand in hands)
    again = at_random([1] * 3000, 3, np.random.default_rng(0))
    assert hands == again
