"""A cohort in which every client is equally likely."""

import numpy as np

from flrl.sampling.base import everybody_of
from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup


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

    def __call__(self, num_clients: int, *, seed: int, round: int, available: np.ndarray | None = None) -> np.ndarray:
        """The cohort's client ids, ascending: `num`, or a fraction of all clients, drawn among the available ones."""
        count = num_clients if available is None else int(np.count_nonzero(available))
        size = min(self.largest(num_clients), count)
        if size == count:
            return everybody_of(num_clients, available)
        rng = generator_for(seed, round, SERVER, "cohort")
        places = np.sort(rng.choice(count, size, replace=False, shuffle=False))
        return places if available is None else np.flatnonzero(available)[places]
