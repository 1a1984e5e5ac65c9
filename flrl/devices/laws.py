"""Laws that devices' numbers are drawn from; a plain number in a yaml is the same for all."""

import math
from abc import ABC, abstractmethod

import numpy as np


class Law(ABC):
    """A distribution of positive numbers."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    @abstractmethod
    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """So many numbers, float64 `[size]`."""


class Constant(Law):
    """The same number for all.

    Args:
        value: at least 0; may be infinite.

    Raises:
        ValueError: it is negative or no number.
    """

    def __init__(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"devices: {value} must be at least 0")
        self.value = float(value)

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """The number, so many times."""
        return np.full(size, self.value)


class LogNormal(Law):
    """A log-normal distribution, as measured for the speed of phones and of their networks.

    Args:
        median: its median, positive.
        sigma: standard deviation of the logarithm, at least 0.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, *, median: float, sigma: float) -> None:
        _positive(median=median)
        if not (sigma >= 0 and math.isfinite(sigma)):
            raise ValueError(f"devices: sigma={sigma} of a LogNormal must be at least 0")
        self.median, self.sigma = median, sigma

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw so many."""
        with np.errstate(over="ignore"):
            return self.median * np.exp(self.sigma * rng.standard_normal(size))


class Pareto(Law):
    """Speeds of which few are very slow: `best` over a Pareto variable that is at least 1, so times are heavy-tailed.

    Args:
        best: the largest possible speed, positive.
        alpha: the tail's exponent, positive; with 1 or less the mean time is infinite.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, *, best: float, alpha: float) -> None:
        _positive(best=best, alpha=alpha)
        self.best, self.alpha = best, alpha

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw so many."""
        return self.best / (1 + rng.pareto(self.alpha, size))


class Uniform(Law):
    """A uniform distribution.

    Args:
        low: smallest number, at least 0.
        high: largest number, at least `low`.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, *, low: float, high: float) -> None:
        if not 0 <= low <= high < math.inf:
            raise ValueError(f"devices: low={low}, high={high} of a Uniform: 0 <= low <= high must hold")
        self.low, self.high = low, high

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw so many."""
        return rng.uniform(self.low, self.high, size)


def law_of(value: "Law | float | None", name: str) -> Law:
    """A law from a setting: itself, the constant of a number, or of infinity for None.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, Law):
        return value
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 0):
        return Constant(math.inf if value is None else value)
    raise ValueError(
        f"devices.{name}={value}: must be a number, at least 0, null, or a law such as flrl.devices.LogNormal"
    )


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"devices: {name}={value} must be positive and finite")
