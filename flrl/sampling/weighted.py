"""A cohort drawn by clients' numbers of samples."""

import numpy as np

from flrl.sampling.base import at_least_one, at_most_all, everybody_of
from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup


class WeightedSampler:
    """A cohort drawn by samples, n_k / n for client k, whose updates are averaged without weights.

    With replacement it is scheme I of Li, Huang, Yang, Wang, Zhang, "On the Convergence of FedAvg on Non-IID Data",
    ICLR 2020, arXiv 1907.02189: `num` independent draws, and the mean over draws, in which a client that was drawn
    twice counts twice (it trains once, and its weight is the number of its draws). This mean is an unbiased estimate of
    that of all clients by samples. Without replacement, one client after the other among those that are left, it is the
    sampling of FedProx (Li et al., MLSys 2020, arXiv 1812.06127, algorithm 2); among unequal clients its mean is biased
    towards small ones, since a large one counts once at most.

    If `num` clients are not there, all take part, and are weighted by samples as without a sampler.

    Args:
        num: number of draws per round, K in the paper.
        replace: whether a client may be drawn more than once; the cohort may then have fewer clients than `num`.

    Raises:
        ValueError: a setting is out of range.
    """

    needs = ("sizes",)

    def __init__(self, *, num: int, replace: bool = True) -> None:
        self.num = at_least_one(num)
        self.replace = replace

    def check(self, setup: Setup) -> None:
        """Raise ValueError if the cohort is larger than the population."""
        self.largest(setup.num_clients)

    def largest(self, num_clients: int) -> int:
        """The largest cohort: `num`; ValueError if it is larger than the population."""
        return at_most_all(self.num, num_clients)

    def __call__(
        self,
        num_clients: int,
        *,
        seed: int,
        round: int,
        sizes: np.ndarray | None = None,
        available: np.ndarray | None = None,
    ) -> np.ndarray:
        """The ids of the clients that were drawn at least once, ascending.

        Args:
            num_clients: number of all clients.
            seed: of the cohorts.
            round: counted from 1.
            sizes: samples of every client, int64 `[num_clients]`; equal ones by default.
            available: whether each client is available, bool `[num_clients]`; all are by default.
        """
        return np.unique(self._draws(num_clients, seed, round, sizes, available))

    def weights(
        self,
        cohort: np.ndarray,
        own: np.ndarray,
        num_clients: int,
        *,
        seed: int,
        round: int,
        sizes: np.ndarray | None = None,
        available: np.ndarray | None = None,
    ) -> np.ndarray:
        """How often each client of the cohort was drawn, float64 `[cohort]`; their own weights where all take part."""
        draws = self._draws(num_clients, seed, round, sizes, available)
        if len(draws) < self.num:
            return own
        ids, counts = np.unique(draws, return_counts=True)
        found: np.ndarray = counts[np.searchsorted(ids, cohort)].astype(np.float64)
        return found

    def _draws(
        self, num_clients: int, seed: int, round: int, sizes: np.ndarray | None, available: np.ndarray | None
    ) -> np.ndarray:
        """The ids of `num` draws; of all clients where there are fewer. Clients without samples are never drawn."""
        self.largest(num_clients)
        present = everybody_of(num_clients, available)
        known = np.ones(num_clients) if sizes is None else sizes
        present = present[known[present] > 0]
        if len(present) < self.num:
            return np.asarray(present)
        rng = generator_for(seed, round, SERVER, "cohort")
        shares = known[present] / known[present].sum()
        found: np.ndarray = present[rng.choice(len(present), self.num, replace=self.replace, p=shares)]
        return found
