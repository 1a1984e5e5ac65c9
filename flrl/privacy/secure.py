"""Random numbers of the operating system, which nobody can repeat or predict."""

import os

import numpy as np


def secure_uniform(size: int) -> np.ndarray:
    """Uniform numbers strictly between 0 and 1, multiples of 2**-54, float64 `[size]`."""
    bits = np.frombuffer(os.urandom(8 * size), dtype=np.uint64) >> np.uint64(11)
    found: np.ndarray = (bits.astype(np.float64) + 0.5) * 2.0**-53
    return found


def secure_normal(size: int) -> np.ndarray:
    """Standard normal numbers, float64 `[size]`: the normal distribution's quantiles at uniform numbers."""
    from scipy.special import ndtri

    found: np.ndarray = ndtri(secure_uniform(size))
    return found
