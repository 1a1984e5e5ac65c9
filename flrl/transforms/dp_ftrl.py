"""DP-FTRL: noise that is correlated over rounds, so that sums over rounds have little, without sampling.

Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, "Practical and Private (Deep) Learning without Sampling or Shuffling",
ICML 2021, arXiv 2103.00039, with the banded Toeplitz factorisation in the place of trees: Choquette-Choo, Ganesh,
McKenna, McMahan, Rush, Thakurta, Xu, "(Amplified) Banded Matrix Factorization", NeurIPS 2023, arXiv 2306.08153. The
prefix sums A = C C have the square root C, lower triangular and Toeplitz with `c_k = binom(2k, k) / 4^k`
(Fichtenberger, Henzinger, Upadhyay, 2022, arXiv 2202.11205); the first `bands` of them are kept. What is released is
`G + C^-1 Z`, where G has a row for each round's sum and the rows z of Z are independent noise, which is as private as
`C G + Z`. Row t of C^-1 Z is `w_t = z_t - sum_{0 < k < bands} c_k w_{t - k}`.

A client that takes part in the rounds S moves C G by at most `clip * sqrt(sum_{i, j in S} <C[:, i], C[:, j]>)`, as no
entry of C is negative; where its rounds are `bands` or more apart that is `clip * sqrt(sum_{i in S} |C[:, i]|^2)`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from flrl.privacy.mechanism import Charged
from flrl.transforms.bounding import Bounding, shares
from flrl.transforms.dp import sampled
from flrl.transforms.noise import normal
from flrl.types import Context, Metrics, Tensors

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup


class FTRL(Bounding):
    """Clips clients, and adds noise on the server that takes back a part of that of the rounds before.

    Its variables are the noise of the last `bands - 1` rounds, each as large as what a client sends.

    Args:
        clip: as for `Bounding`.
        noise_multiplier: standard deviation of the rows of Z over `clip` times `sensitivity`.
        bands: number of coefficients of C that are kept, at least 1; 1 is independent noise.
        sensitivity: of C to a client, over `clip`: at least that of the run's cohorts; None: that one, see `filled`.
        per_layer: as for `Bounding`.
        secure_noise: must be false: noise is used again in later rounds.

    Raises:
        ValueError: a setting is invalid.
    """

    name, cohorts = "dp_ftrl", "planned"

    def __init__(
        self,
        *,
        clip: float,
        noise_multiplier: float | None = None,
        bands: int = 8,
        sensitivity: float | None = None,
        per_layer: bool = False,
        secure_noise: bool = False,
    ) -> None:
        super().__init__(clip=clip, noise_multiplier=noise_multiplier, per_layer=per_layer, secure_noise=secure_noise)
        if secure_noise:
            raise ValueError(
                "privacy.secure_noise=true: dp_ftrl uses the noise of a round again in later ones, which a resumed run "
                "could not; must be false"
            )
        if bands < 1:
            raise ValueError(f"strategy.transforms.dp_ftrl.bands={bands}: must be at least 1")
        if sensitivity is not None and not 0 < sensitivity < math.inf:
            raise ValueError(f"strategy.transforms.dp_ftrl.sensitivity={sensitivity}: must be positive, or null")
        self.bands, self.sensitivity = bands, sensitivity

    def check(self, setup: "Setup") -> None:
        """Raise ValueError if the run's cohorts have clients take part more often than the sensitivity allows."""
        if self.sensitivity is None:
            return
        found = self._found(setup)
        if found > self.sensitivity * (1 + 1e-9):
            raise ValueError(
                f"strategy.transforms.dp_ftrl.sensitivity={self.sensitivity:g}: the cohorts of strategy.rounds="
                f"{setup.strategy.rounds} have {found:g}; a new run with null computes it"
            )

    def filled(self, setup: "Setup") -> Mapping[str, float]:
        """The sensitivity of the run's cohorts, if none is set."""
        return {"sensitivity": self._found(setup)} if self.sensitivity is None else {}

    def events(self, setup: "Setup", charged: Charged, noise_multiplier: float) -> "Sequence[DpEvent]":
        """One release of the whole run's C G + Z, of which the rounds so far are a part."""
        return [sampled("gaussian", noise_multiplier, 1.0, 1)]

    def described(self) -> Mapping[str, Any]:
        """Its settings, for `summary.json`."""
        return {**super().described(), "bands": self.bands, "sensitivity": self.sensitivity}

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """Divide the sum by the expected number of clients, and add the round's row of C^-1 Z."""
        if self.sensitivity is None:
            raise ValueError("strategy.transforms.dp_ftrl.sensitivity=null: flrl-train computes it; else set it")
        sums, kept = shares(vectors, context), dict[str, Tensor]()
        scale, coefficients = self.multiplier() * self.clip * self.sensitivity, root_of_sums(self.bands)
        for name, vector in sums.items():
            row = normal(vector.numel(), context.generator)
            before = [state[f"{name}/{k}"] for k in range(1, self.bands) if f"{name}/{k}" in state]
            for k, earlier in enumerate(before, start=1):
                row.sub_(earlier, alpha=float(coefficients[k]))
            kept |= {f"{name}/{k}": each for k, each in enumerate([row, *before][: self.bands - 1], start=1)}
            if scale:
                vector.add_(row, alpha=scale / context.expected)
        return sums, kept, {"scale": scale / context.expected}

    def _found(self, setup: "Setup") -> float:
        from_sizes: dict[str, Any] = {"sizes": setup.sizes} if getattr(setup.sampler, "needs", ()) else {}
        taken: dict[int, list[int]] = {}
        for round in range(1, setup.strategy.rounds + 1):
            for client in setup.sampler(setup.num_clients, seed=setup.sampling_seed, round=round, **from_sizes):
                taken.setdefault(int(client), []).append(round)
        return sensitivity(taken.values(), self.bands, setup.strategy.rounds)


def root_of_sums(bands: int) -> np.ndarray:
    """The first coefficients of the square root of prefix sums, `binom(2k, k) / 4^k`, float64 `[bands]`.

    Example:
        >>> root_of_sums(4).tolist()
        [1.0, 0.5, 0.375, 0.3125]
    """
    k = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])


def sensitivity(participations: Iterable[Sequence[int]], bands: int, rounds: int) -> float:
    """The largest Euclidean norm by which a client of contributions of norm 1 can move C G; 1 if nobody takes part.

    Args:
        participations: for each client the rounds that it takes part in, ascending, counted from 1.
        bands: number of coefficients of C.
        rounds: of the run, n: C is `[n, n]`.

    Example:
        >>> sensitivity([[1], [2]], 2, 2), sensitivity([[1, 2]], 1, 2) == 2**0.5
        (1.118033988749895, True)
    """
    coefficients, largest = root_of_sums(min(bands, rounds)), 0.0
    for taken in {tuple(rounds_of) for rounds_of in participations}:
        total = np.zeros(rounds)
        for round in taken:
            column = coefficients[: rounds - round + 1]
            total[round - 1 : round - 1 + len(column)] += column
        largest = max(largest, float(np.linalg.norm(total)))
    return largest or 1.0
