"""The inner loop of the exact sum, compiled: one pass over memory where calls of torch make eight."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

Fold = Callable[[np.ndarray, float, np.ndarray, np.ndarray], None]
"""Adds `weight * values`, each rounded and split, to high and low parts; all float64 and contiguous."""


@cache
def fold(round_high: float, round_low: float) -> Fold:
    """The compiled loop; the first call on a machine compiles for about a second, later ones read what it kept.

    Args:
        round_high: adding and subtracting it rounds to a multiple of the high quantum.
        round_low: likewise for the low quantum.
    """
    import numba

    # Without `fastmath`, LLVM neither reorders nor fuses: these are the same IEEE operations as torch's.
    def split_and_add(values: Any, weight: float, highs: Any, lows: Any) -> None:
        for index in range(values.size):
            value = values[index] * weight
            high = (value + round_high) - round_high
            highs[index] += high
            lows[index] += ((value - high) + round_low) - round_low

    signature = "void(float64[::1], float64, float64[::1], float64[::1])"
    try:
        return numba.njit(signature, nogil=True, cache=True)(split_and_add)
    except RuntimeError:  # no folder that compiled code could be kept in
        return numba.njit(signature, nogil=True)(split_and_add)
