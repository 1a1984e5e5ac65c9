"""Clients that take part independently, the more likely the more their updates are expected to matter."""

from typing import Any

import numpy as np

from flrl.sampling.base import at_least_one, at_most_all
from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup


class ImportanceSampler:
    """Each client takes part by itself, with a probability by what it last reported, and weighs w / probability.

    Chen, Horváth, Richtárik, "Optimal Client Sampling for Federated Learning", TMLR 2022, arXiv 2010.13723. The sum of
    w_k / p_k times updates, over the weight of all clients, is an unbiased estimate of the mean of all; with p_k by the
    norms of weighted updates, as in their equation 7, it has the least variance for an expected cohort. There every
    client computes its update first. Here scores are the norms, or losses, of when a client last took part, times its
    samples; one that has reported none counts as the largest known. A part `uniform` of the scores is by samples alone,
    so that nobody's probability is 0.

    A cohort has `num` clients on average, and may be empty. Where some clients are away, the estimate is of the mean of
    the others. The server keeps 8 bytes a client; a loss is 8 bytes of each update, a norm it computes itself.

    Args:
        num: expected number of clients per round, m in the paper.
        by: "norm" or "loss".
        uniform: the part of the probabilities that does not follow from reports, in (0, 1].

    Raises:
        ValueError: a setting is out of range.
    """

    estimates_sum = True

    def __init__(self, *, num: int, by: str = "norm", uniform: float = 0.1) -> None:
        if by not in ("norm", "loss"):
            raise ValueError(f"strategy.sampler.by={by}: must be norm or loss")
        if not 0 < uniform <= 1:
            raise ValueError(f"strategy.sampler.uniform={uniform}: must be above 0 and at most 1")
        self.num, self.by, self.uniform = at_least_one(num), by, uniform

    @property
    def needs(self) -> tuple[str, str]:
        """The clients' samples, and what the probabilities follow from."""
        return "sizes", "norms" if self.by == "norm" else "losses"

    def check(self, setup: Setup) -> None:
        """Raise ValueError if there are fewer clients than `num`, or if the server does not see what it needs."""
        at_most_all(self.num, setup.num_clients)
        sizes = setup.strategy.vector_sizes(setup.layout)
        if [*sizes] != ["update"] or not sizes["update"]:
            raise ValueError(
                f"strategy.sampler: ImportanceSampler weighs the updates of models alone, and "
                f"{type(setup.strategy).__name__} has {', '.join(sizes)} of sizes {[*sizes.values()]}"
            )
        hiding = [name for name, transform in setup.transforms.items() if transform.hides_updates]
        if hiding and self.by == "norm":
            raise ValueError(
                f"strategy.sampler.by=norm: {hiding[0]} hides updates from the server; by=loss goes with it"
            )

    def largest(self, num_clients: int) -> int:
        """The number of all clients."""
        return num_clients

    def __call__(
        self,
        num_clients: int,
        *,
        seed: int,
        round: int,
        sizes: np.ndarray | None = None,
        norms: np.ndarray | None = None,
        losses: np.ndarray | None = None,
        available: np.ndarray | None = None,
    ) -> np.ndarray:
        """The cohort's client ids, ascending; may be empty.

        Args:
            num_clients: number of all clients.
            seed: of the cohorts.
            round: counted from 1.
            sizes: samples of every client, int64 `[num_clients]`; equal ones by default.
            norms: the last norm of every client's update, float64 `[num_clients]`; infinite where unknown, by default.
            losses: its last loss, likewise.
            available: whether each client is available, bool `[num_clients]`; all are by default.
        """
        chances = self.probabilities(num_clients, sizes=sizes, norms=norms, losses=losses, available=available)
        return np.flatnonzero(generator_for(seed, round, SERVER, "cohort").random(num_clients) < chances)

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
        **reported: Any,
    ) -> np.ndarray:
        """The cohort's own weights over their probabilities, times all samples over those of the available clients."""
        chances = self.probabilities(num_clients, sizes=sizes, available=available, **reported)
        known = np.ones(num_clients) if sizes is None else sizes
        whole = 1.0 if available is None else float(known.sum() / known[available].sum())
        found: np.ndarray = own / chances[cohort] * whole
        return found

    def probabilities(
        self,
        num_clients: int,
        *,
        sizes: np.ndarray | None = None,
        norms: np.ndarray | None = None,
        losses: np.ndarray | None = None,
        available: np.ndarray | None = None,
    ) -> np.ndarray:
        """Each client's probability, float64 `[num_clients]`; arguments as for the call."""
        known = np.ones(num_clients) if sizes is None else sizes.astype(np.float64)
        if available is not None:
            known = known * available
        reported = norms if self.by == "norm" else losses
        scores = np.ones(num_clients) if reported is None else np.maximum(reported, 0.0)
        finite = np.isfinite(scores)
        largest = float(scores[finite].max(initial=0.0))
        scores = known * np.where(finite, scores, largest if largest > 0 else 1.0)
        if scores.sum() > 0:
            scores = (1 - self.uniform) * scores / scores.sum()
        return cut_off(scores + self.uniform * known / max(known.sum(), 1.0), self.num)


def cut_off(scores: np.ndarray, num: int) -> np.ndarray:
    """Probabilities in proportion to scores that sum to `num`, those above 1 cut off and given to the others.

    Chen, Horváth, Richtárik, equation 7: with the scores in ascending order, the largest number l of the first of them
    with `0 < num + l - n <= sum of the first l / the l-th` share what the others, at probability 1, leave.

    Args:
        scores: float64 `[n]`, not negative.
        num: the sum; where fewer scores are positive, each of those gets 1.

    Example:
        >>> cut_off(np.array([1.0, 1.0, 2.0, 8.0]), 2).tolist()
        [0.25, 0.25, 0.5, 1.0]
    """
    positive = scores > 0
    if np.count_nonzero(positive) <= num:
        return positive.astype(np.float64)
    ascending = np.sort(scores[positive])
    count, sums = len(ascending), np.cumsum(ascending)
    left = num + np.arange(1, count + 1) - count
    last = int(np.flatnonzero((left > 0) & (left * ascending <= sums))[-1])
    found: np.ndarray = np.minimum(1.0, left[last] * scores / sums[last])
    return found
