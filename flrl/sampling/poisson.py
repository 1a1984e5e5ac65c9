"""Clients that take part independently of each other."""

import numpy as np

from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup


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

    def __call__(self, num_clients: int, *, seed: int, round: int, available: np.ndarray | None = None) -> np.ndarray:
        """The cohort's client ids, ascending; may be empty. An available client's probability is as ever."""
        rng = generator_for(seed, round, SERVER, "cohort")
        drawn = rng.random(num_clients) < self.probability
        return np.flatnonzero(drawn if available is None else drawn & available)
