"""Clients take turns."""

import numpy as np

from flrl.sampling.base import at_least_one, at_most_all, everybody_of
from flrl.setup import Setup


class RoundRobin:
    """`num` clients after one another by their ids, and from the beginning again: nothing is drawn.

    Where some are away, the next available ones take their places; whose turn it was waits for the next time.

    Args:
        num: number of clients per round.

    Raises:
        ValueError: it is out of range.
    """

    def __init__(self, *, num: int) -> None:
        self.num = at_least_one(num)

    def check(self, setup: Setup) -> None:
        """Raise ValueError if the cohort is larger than the population."""
        self.largest(setup.num_clients)

    def largest(self, num_clients: int) -> int:
        """The size of every cohort; ValueError if it is larger than the population."""
        return at_most_all(self.num, num_clients)

    def __call__(self, num_clients: int, *, seed: int, round: int, available: np.ndarray | None = None) -> np.ndarray:
        """The cohort's client ids, ascending."""
        size, first = self.largest(num_clients), (round - 1) * self.num % num_clients
        if available is None:
            return np.sort((first + np.arange(size)) % num_clients)
        present = everybody_of(num_clients, available)
        return np.sort(np.roll(present, -int(np.searchsorted(present, first)))[:size])
