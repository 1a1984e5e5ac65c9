"""Samplers: choose the clients of a round, as a function of (seed, round), or also of losses that clients reported."""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup
from flrl.types import ClientReport, Tensors

LOSSES = "sampler/losses"
"""The name among a state's variables of the last losses reported, float64 `[num_clients]`; infinite where none was."""
LOSS_BYTES = 8
"""What a client's loss costs to send."""


class Sampler(Protocol):
    """Chooses a round's cohort."""

    def check(self, setup: Setup) -> None:
        """Raise ValueError if the setup has too few clients for such a cohort."""

    def largest(self, num_clients: int) -> int:
        """The largest possible number of clients in one round."""

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """The cohort's client ids, ascending, int64 `[cohort]`; with `sizes` and `losses` too, see `draw`."""


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

    needs_losses = True

    def __init__(self, *, num: int, candidates: int) -> None:
        if num < 1:
            raise ValueError(f"strategy.sampler.num={num}: must be at least 1")
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
    ) -> np.ndarray:
        """The cohort's client ids, ascending.

        Args:
            num_clients: number of all clients.
            seed: of the cohorts.
            round: counted from 1.
            sizes: samples of every client, int64 `[num_clients]`; equal ones by default.
            losses: the last loss of every client, float64 `[num_clients]`; unknown ones, infinite, by default.
        """
        self.largest(num_clients)
        rng = generator_for(seed, round, SERVER, "cohort")
        shares = None if sizes is None else sizes / sizes.sum()
        drawn = rng.choice(num_clients, self.candidates, replace=False, p=shares)
        known = np.full(self.candidates, math.inf) if losses is None else losses[drawn]
        return np.sort(drawn[np.argsort(-known, kind="stable")[: self.num]])  # of equal ones those drawn first


def needs_losses(sampler: Any) -> bool:
    """Whether a sampler is called with `sizes` and `losses` too: its class has the attribute `needs_losses`."""
    return bool(getattr(sampler, "needs_losses", False))


def draw(sampler: Sampler, variables: Tensors, sizes: np.ndarray, *, seed: int, round: int) -> np.ndarray:
    """The cohort of a round. A sampler with the attribute `needs_losses` is called with `sizes` and `losses` as well.

    Args:
        sampler: the run's.
        variables: of the server's state before the round.
        sizes: training samples of every client, int64 `[num_clients]`.
        seed: of the cohorts.
        round: counted from 1.
    """
    if not needs_losses(sampler):
        return sampler(len(sizes), seed=seed, round=round)
    more: dict[str, Any] = {"sizes": sizes, "losses": variables[LOSSES].numpy() if LOSSES in variables else None}
    return sampler(len(sizes), seed=seed, round=round, **more)


def noted(sampler: Sampler, variables: Tensors, reports: Sequence[ClientReport], num_clients: int) -> dict[str, Any]:
    """The sampler's variables after a round; none unless it needs losses.

    A client that was left out, or whose loss is not finite, keeps its last one.

    Args:
        sampler: the run's.
        variables: of the server's state before the round.
        reports: of the cohort.
        num_clients: number of all clients.
    """
    if not needs_losses(sampler):
        return {}
    unknown = torch.full((num_clients,), math.inf, dtype=torch.float64)
    losses = variables.get(LOSSES, unknown).clone()
    for report in reports:
        loss = report.metrics.get("train/loss", math.nan)
        if report.rejected is None and math.isfinite(loss):
            losses[report.client_id] = loss
    return {LOSSES: losses}
