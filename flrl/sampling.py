"""Samplers: which clients take part in a round, as a function of (seed, round)."""

from typing import Protocol

import numpy as np

from flrl.seeding import SERVER, generator_for


class Sampler(Protocol):
    """Chooses a round's cohort."""

    def check(self, num_clients: int) -> None:
        """Raise ValueError if no such cohort can be drawn from so many clients."""

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """The cohort's client ids, ascending."""


class AllClients:
    """Full participation: every client in every round."""

    def check(self, num_clients: int) -> None:
        """Any number of clients will do."""

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """All client ids."""
        return np.arange(num_clients)


class UniformSampler:
    """A cohort drawn uniformly without replacement; everybody, where neither `num` nor `fraction` is given.

    Args:
        num: clients a round.
        fraction: share of the clients in (0, 1], rounded to the nearest number, at least one.
    """

    def __init__(self, *, num: int | None = None, fraction: float | None = None) -> None:
        if num is not None and fraction is not None:
            raise ValueError(f"strategy.sampler: num={num} and fraction={fraction} exclude each other")
        if num is not None and num < 1:
            raise ValueError(f"strategy.sampler.num={num}: must be at least 1")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"strategy.sampler.fraction={fraction}: must be above 0 and at most 1")
        self.num = num
        self.fraction = fraction

    def check(self, num_clients: int) -> None:
        """Raise ValueError if the cohort is larger than the population."""
        if self.num is not None and self.num > num_clients:
            raise ValueError(f"strategy.sampler.num={self.num}: there are only {num_clients} clients")

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """The cohort's client ids, ascending."""
        self.check(num_clients)
        size = num_clients
        if self.num is not None:
            size = self.num
        elif self.fraction is not None:
            size = max(1, int(np.rint(self.fraction * num_clients)))
        if size == num_clients:
            return np.arange(num_clients)
        rng = generator_for(seed, round, SERVER, "cohort")
        return np.sort(rng.choice(num_clients, size, replace=False, shuffle=False))
