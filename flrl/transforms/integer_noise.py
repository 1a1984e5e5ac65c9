"""Integer random numbers: randomised rounding, the discrete Gaussian and Skellam distributions.

All are drawn from uniform numbers by the inverse of a distribution function in a table: exact in distribution to
float64, so that the probability of each number is right to 2e-16, and numbers beyond 8 deviations or so, which have
less together, are not drawn.
"""

import math

import numpy as np
import torch
from torch import Tensor

from flrl.transforms.noise import uniforms

_REACH = 9.0
_MOST_ATTEMPTS = 1000


def uniform(size: int, generator: torch.Generator | None) -> np.ndarray:
    """Independent uniform numbers in [0, 1), float64 `[size]`, in steps of 2^-53.

    Args:
        size: how many.
        generator: on the CPU; None: the operating system draws them.
    """
    if generator is not None:
        found: np.ndarray = torch.rand(size, generator=generator, dtype=torch.float64).numpy()
        return found
    return 1.0 - uniforms(size)


def rounded(vector: Tensor, largest: float, generator: torch.Generator | None) -> Tensor:
    """The vector rounded at random to whole numbers, without bias, again until its norm is at most `largest`.

    Args:
        vector: float64 `[n]`.
        largest: a bound on the norm that a rounding keeps with a probability that is not small.
        generator: as for `uniform`.

    Raises:
        ValueError: none of a thousand roundings keeps the bound.
    """
    low = vector.floor()
    above = vector - low
    for _ in range(_MOST_ATTEMPTS):
        found = low + (torch.from_numpy(uniform(len(vector), generator)) < above)
        if float(found.norm()) <= largest:
            return found
    raise ValueError(f"no rounding of a vector of norm {float(vector.norm()):.4g} has a norm of at most {largest:.4g}")


def discrete_gaussian(deviation: float, size: int, generator: torch.Generator | None) -> Tensor:
    """Independent discrete Gaussian numbers, float64 `[size]`: k with a probability proportional to exp(-k^2/2s^2).

    Args:
        deviation: its parameter s, at least 0.
        size: how many.
        generator: as for `uniform`.
    """
    if deviation == 0:
        return torch.zeros(size, dtype=torch.float64)
    reach = math.ceil(_REACH * deviation) + 1
    values = np.arange(-reach, reach + 1)
    return _drawn(values, -((values.astype(np.longdouble) / deviation) ** 2) / 2, size, generator)


def skellam(deviation: float, size: int, generator: torch.Generator | None) -> Tensor:
    """Independent Skellam numbers, float64 `[size]`: differences of two Poisson variables, each with half the variance.

    Arguments as for `discrete_gaussian`.
    """
    if deviation == 0:
        return torch.zeros(size, dtype=torch.float64)
    mean = deviation**2 / 2
    reach = math.ceil(_REACH * math.sqrt(mean) + 40)
    values = np.arange(max(0, math.floor(mean) - reach), math.floor(mean) + reach + 1)
    logs = np.cumsum(np.append(np.longdouble(0), np.log(np.longdouble(mean) / values[1:].astype(np.longdouble))))
    first, second = (_drawn(values, logs, size, generator) for _ in range(2))
    return first - second


def _drawn(values: np.ndarray, logs: np.ndarray, size: int, generator: torch.Generator | None) -> Tensor:
    """Values with probabilities whose logarithms are given, but for a constant."""
    masses = np.exp(logs - logs.max())
    below = np.cumsum(masses / masses.sum()).astype(np.float64)
    places = np.minimum(np.searchsorted(below, uniform(size, generator), side="right"), len(values) - 1)
    return torch.from_numpy(values[places].astype(np.float64))
