"""Loops over whole models, compiled: one pass over memory where calls of torch make several."""

from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Survey:
    """What has to be known of a vector before it is added to others.

    Attributes:
        largest: the largest absolute value; NaN or infinity where one occurs, 0 for an empty vector.
        bits: the sum of its elements' bits, as float64, modulo 2^64.
    """

    largest: float
    bits: int


def survey(vector: Tensor) -> Survey:
    """Survey a vector in one pass over it."""
    bits = vector.detach().to(torch.float64).contiguous().view(torch.int64)
    if not bits.numel():
        return Survey(0.0, 0)
    if bits.device.type == "cpu":
        largest, total = _survey()(bits.numpy())
    else:
        largest, total = int((bits & _MAGNITUDE).max()), int(bits.sum())
    return Survey(float(np.int64(largest).view(np.float64)), int(total) % 2**64)


# All bits but the sign. As integers, magnitudes are in the order of the numbers, then infinity, then NaN.
_MAGNITUDE = 2**63 - 1


@cache
def _survey() -> Callable[[np.ndarray], tuple[int, int]]:
    mask = np.int64(_MAGNITUDE)

    def survey(bits: Any) -> tuple[Any, Any]:
        largest = total = np.int64(0)
        for index in range(bits.size):
            largest = max(largest, bits[index] & mask)
            total += bits[index]
        return largest, total

    return compiled("UniTuple(int64, 2)(int64[::1])", survey)


def compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A loop over arrays as machine code: takes a second at first, later processes read what was kept.

    Without `fastmath`, LLVM neither reorders nor fuses: these are the same IEEE operations as torch's.
    """
    import numba

    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that compiled code could be kept in
        return numba.njit(signature, nogil=True)(function)
