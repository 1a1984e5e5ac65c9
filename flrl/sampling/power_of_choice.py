"""A cohort of those whose losses are largest."""

import math

import numpy as np

from flrl.sampling.base import at_least_one, everybody_of
from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup


class PowerOfChoice:
    """Of some candidates, drawn by their samples, those with the largest losses take part.

    Cho, Wang, Joshi, "Towards Understanding Biased Client Selection in Federated Learning", AISTATS 2022, arXiv
    2010.01243; the variant rpow-d, which asks candidates nothing: a client's loss is the mean training loss of its
    local steps when it last took part, infinite before. It is 8 bytes of each update; the server keeps 8 a client.

    Args:
        num: number of clients per round, m in the paper.
        candidates: number of candidates, d in the paper, at least `num`; `num` itself samples without bias.

    Raises:
        ValueError: a setting is out of range.
    """

    needs = ("sizes", "losses")

    def __init__(self, *, num: int, candidates: int) -> None:
        at_least_one(num)
        if candidates < num:
            raise ValueError(f"strategy.sampler.candidates={candidates}: must be at least num, which is {num}")
        self.num, self.candidates = num, candidates

    def check(self, setup: Setup) -> None:
        """Raise ValueError if there are fewer clients than candidates."""
        self.largest(setup.num_clients)

    def largest(self, num_clients: int) -> int:
        """The size of every cohort.

        Raises:
            ValueError: there are fewer clients than candidates.
        """
        if self.candidates > num_clients:
            raise ValueError(f"strategy.sampler.candidates={self.candidates}: there are only {num_clients} clients")
        return self.num

    def __call__(
        self,
        num_clients: int,
        *,
        seed: int,
        round: int,
        sizes: np.ndarray | None = None,
        losses: np.ndarray | None = None,
        available: np.ndarray | None = None,
    ) -> np.ndarray:
        """The cohort's client ids, ascending; candidates are drawn among the available clients.

        Args:
            num_clients: number of all clients.
            seed: of the cohorts.
            round: counted from 1.
            sizes: samples of every client, int64 `[num_clients]`; equal ones by default.
            losses: the last loss of every client, float64 `[num_clients]`; unknown ones, infinite, by default.
            available: whether each client is available, bool `[num_clients]`; all are by default.
        """
        self.largest(num_clients)
        present = everybody_of(num_clients, available)
        rng = generator_for(seed, round, SERVER, "cohort")
        shares = None if sizes is None or not len(present) else sizes[present] / sizes[present].sum()
        candidates = min(self.candidates, len(present))
        drawn = present[rng.choice(len(present), candidates, replace=False, p=shares)]
        known = np.full(candidates, math.inf) if losses is None else losses[drawn]
        return np.sort(drawn[np.argsort(-known, kind="stable")[: self.num]])  # of equal ones those drawn first
