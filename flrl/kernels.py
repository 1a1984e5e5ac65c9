"""Loops over whole models, compiled: one pass over memory where calls of torch make several."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Fold = Callable[[np.ndarray, float, np.ndarray, np.ndarray], None]
"""Adds `weight * values`, each rounded and split, to high and low parts; all float64 and contiguous."""


@cache
def fold(round_high: float, round_low: float) -> Fold:
    """The inner loop of the exact sum.

    Args:
        round_high: adding and subtracting it rounds to a multiple of the high quantum.
        round_low: likewise for the low quantum.
    """

    def split_and_add(values: Any, weight: float, highs: Any, lows: Any) -> None:
        for index in range(values.size):
            value = values[index] * weight
            high = (value + round_high) - round_high
            highs[index] += high
            lows[index] += ((value - high) + round_low) - round_low

    return compiled("void(float64[::1], float64, float64[::1], float64[::1])", split_and_add)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """`a - b` of two vectors in float64, where the difference of float32 numbers is exact."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or b.dtype != torch.float32:
        return a.to(torch.float64, copy=True).sub_(b)
    result = torch.empty(a.shape, dtype=torch.float64)
    _subtract()(a.detach().contiguous().numpy(), b.detach().contiguous().numpy(), result.numpy())
    return result


@cache
def _subtract() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    def subtract(a: Any, b: Any, result: Any) -> None:
        for index in range(a.size):
            result[index] = np.float64(a[index]) - np.float64(b[index])

    return compiled("void(float32[::1], float32[::1], float64[::1])", subtract)


def compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A loop over arrays as machine code: takes a second at first, later processes read what was kept.

    Without `fastmath`, LLVM neither reorders nor fuses: these are the same IEEE operations as torch's.
    """
    import numba

    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that compiled code could be kept in
        return numba.njit(signature, nogil=True)(function)
