"""Integer random numbers: randomised rounding, the discrete Gaussian and Skellam distributions."""

import numpy as np
import torch
from torch import Tensor

_REACH = 9.0
_MOST_ATTEMPTS = 1000


def rounded(vector: Tensor, largest: float, generator: torch.Generator) -> Tensor:
    """The vector rounded at random to whole numbers, without bias, again until its norm is at most `largest`.

    Args:
        vector: float64 `[n]`.
        largest: a bound on the norm that a rounding keeps with a probability that is not small.
        generator: on the CPU.

    Raises:
        ValueError: none of a thousand roundings keeps the bound.
    """
    low = vector.floor()
    above = vector - low
    for _ in range(_MOST_ATTEMPTS):
        found = low + (torch.rand(vector.shape, generator=generator, dtype=torch.float64) < above)
        if float(found.norm()) <= largest:
            return found
    raise ValueError(f"no rounding of a vector of norm {float(vector.norm()):.4g} has a norm of at most {largest:.4g}")


def discrete_gaussian(deviation: float, size: int, generator: torch.Generator) -> Tensor:
    """Independent discrete Gaussian numbers, float64 `[size]`: k with a probability proportional to exp(-k^2/2s^2).

    By the inverse of the distribution function in a table: exact in distribution to float64. The probability of each
    number is right to 2e-16; numbers beyond 8.3 deviations or so, which have less together, are not drawn.

    Args:
        deviation: its parameter s, at least 0.
        size: how many.
        generator: on the CPU.
    """
    if deviation == 0:
        return torch.zeros(size, dtype=torch.float64)
    reach = int(np.ceil(_REACH * deviation)) + 1
    values = np.arange(-reach, reach + 1)
    masses = np.exp(-((values.astype(np.longdouble) / deviation) ** 2) / 2)
    below = np.cumsum(masses / masses.sum()).astype(np.float64)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64).numpy()
    places = np.minimum(np.searchsorted(below, uniform, side="right"), len(values) - 1)
    return torch.from_numpy(values[places].astype(np.float64))


def skellam(deviation: float, size: int, generator: torch.Generator) -> Tensor:
    """Independent Skellam numbers, float64 `[size]`: differences of two Poisson variables, each with half the variance.

    Arguments as for `discrete_gaussian`.
    """
    rates = torch.full((2, size), deviation**2 / 2, dtype=torch.float64)
    drawn: Tensor = torch.poisson(rates, generator=generator)
    return drawn[0] - drawn[1]
