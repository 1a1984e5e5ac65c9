"""Samplers: choose the clients of a round, as a function of (seed, round)."""

from typing import Protocol

import numpy as np

from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup


class Sampler(Protocol):
    """Chooses a round's cohort."""

    def check(self, setup: Setup) -> None:
        """Raise ValueError if the setup has too few clients for such a cohort."""

    def largest(self, num_clients: int) -> int:
        """The largest possible number of clients in one round."""

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """The cohort's client ids, ascending, int64 `[cohort]`."""


class AllClients:
    """Full participation: every client in every round."""

    def check(self, setup: Setup) -> None:
        """Accept any number of clients."""

    def largest(self, num_clients: int) -> int:
        """The number of all clients."""
        return num_clients

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """All client ids."""
        return np.arange(num_clients)


class UniformSampler:
    """A cohort drawn uniformly without replacement; all clients if neither `num` nor `fraction` is given.

    Args:
        num: number of clients per round.
        fraction: share of the clients in (0, 1], rounded to the nearest whole number, at least one.

    Raises:
        ValueError: a setting is out of range, or both are given.
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

    def check(self, setup: Setup) -> None:
        """Raise ValueError if the cohort is larger than the population."""
        self.largest(setup.num_clients)

    def largest(self, num_clients: int) -> int:
        """The size of every cohort.

        Raises:
            ValueError: it is larger than the population.
        """
        if self.num is not None and self.num > num_clients:
            raise ValueError(f"strategy.sampler.num={self.num}: there are only {num_clients} clients")
        if self.num is not None:
            return self.num
        return num_clients if self.fraction is None else max(1, int(np.rint(self.fraction * num_clients)))

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """The cohort's client ids, ascending."""
        size = self.largest(num_clients)
        if size == num_clients:
            return np.arange(num_clients)
        rng = generator_for(seed, round, SERVER, "cohort")
        return np.sort(rng.choice(num_clients, size, replace=False, shuffle=False))


class PoissonSampler:
    """Each client takes part independently with the same probability; a cohort may be empty.

    Privacy accounting of subsampled mechanisms assumes this: McMahan, Ramage, Talwar, Zhang, "Learning Differentially
    Private Recurrent Language Models", ICLR 2018, arXiv 1710.06963.

    Args:
        probability: the probability of each client in each round, in (0, 1].

    Raises:
        ValueError: it is out of range.
    """

    def __init__(self, *, probability: float) -> None:
        if not 0 < probability <= 1:
            raise ValueError(f"strategy.sampler.probability={probability}: must be above 0 and at most 1")
        self.probability = probability

    def check(self, setup: Setup) -> None:
        """Accept any number of clients."""

    def largest(self, num_clients: int) -> int:
        """The number of all clients."""
        return num_clients

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """The cohort's client ids, ascending; may be empty."""
        rng = generator_for(seed, round, SERVER, "cohort")
        return np.flatnonzero(rng.random(num_clients) < self.probability)
