"""What the privacy audit is given, and what it gives back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flrl.attacks.base import Attack
from flrl.audit.canary_scores import SEES

Row = dict[str, Any]
COLUMNS = (
    "setting", "part", "number", "value", "low", "high", "confidence", "delta", "unit", "runs", "canaries", "guesses",
    "correct", "verdict", "sees", "missing",
)  # fmt: skip
"""The columns of the table; `missing` is the reason why a part has no number."""
UPPER, GUESSES, RATES, SEEN = "upper bound", "lower bound by guesses", "lower bound by rates", "canaries"


@dataclass(frozen=True, slots=True)
class Stated:
    """An upper bound of epsilon.

    Attributes:
        epsilon: the bound; None if nothing is promised.
        delta: its delta.
        unit: "client" or "sample": what neighbours differ by.
    """

    epsilon: float | None
    delta: float
    unit: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What is audited, and how.

    Attributes:
        attacks: attacks of the group `attack`, by name.
        round: the round that they observe; None for the last one.
        client: the client that they observe; None for the first honest one of the cohort.
        seed: of what they draw.
        candidates: of membership attacks, at most so many members, and at most so many others.
        released: "last" or "all": the models that an observer of sample canaries sees besides the first one.
        confidence: of each lower bound.
        guesses: shares of the canaries that are guessed, of which the best counts.
        epsilon: an upper bound to be tested instead of the run's own; None for that.
        delta: its delta, and that of lower bounds of runs that state none.
        unit: its unit, "client" or "sample".
        device: where attacks compute.
        data_dir: where the data is; None for where the run had it.

    Raises:
        ValueError: a setting is invalid.
    """

    attacks: Mapping[str, Attack] = field(default_factory=dict)
    round: int | None = None
    client: int | None = None
    seed: int = 0
    candidates: int = 1000
    released: str = "last"
    confidence: float = 0.95
    guesses: Sequence[float] = (0.1, 0.5, 0.8)
    epsilon: float | None = None
    delta: float = 1e-5
    unit: str = "client"
    device: str = "cpu"
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.released not in ("last", "all"):
            raise ValueError(f"released={self.released}: must be last or all")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence={self.confidence}: must be above 0 and below 1")
        if not self.guesses or not all(0 < share <= 1 for share in self.guesses):
            raise ValueError(f"guesses={list(self.guesses)}: must be shares of the canaries, above 0 and at most 1")
        if self.epsilon is not None and not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon={self.epsilon}: must be at least 0 and finite, or null")
        if not 0 <= self.delta < 1:
            raise ValueError(f"delta={self.delta}: must be at least 0 and below 1")
        if self.unit not in SEES:
            raise ValueError(f"unit={self.unit}: must be {' or '.join(SEES)}")
        for name in ("round", "client", "candidates"):
            value, least = getattr(self, name), int(name != "client")
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: must be at least {least}")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be at least 0")


@dataclass(frozen=True, slots=True)
class Curve:
    """A ROC curve: false and true positive rates, `[n]` each, of a setting under a name."""

    setting: str
    name: str
    false: np.ndarray
    true: np.ndarray


@dataclass(frozen=True, slots=True)
class Audited:
    """What an audit has found.

    Attributes:
        rows: the table.
        curves: the ROC curves.
        canaries: a row for each canary of each run: its coin and its score.
    """

    rows: list[Row]
    curves: list[Curve]
    canaries: list[Row]
