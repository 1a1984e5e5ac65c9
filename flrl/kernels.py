"""Compiled loops over whole models: one pass over memory where torch's operations make several.

Each has a twin made of torch's operations with the same bits: for other devices, and for runs so short that loading
the compiler takes longer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LITTLE_WORK = 2**21
"""Elements processed with torch's operations before loops are compiled: about half a second of work."""
_processed = 0


def difference(a: Tensor, b: Tensor) -> Tensor:
    """`a - b` of two vectors `[n]` of any floating dtype, in float64 `[n]`."""
    if a.dtype != torch.float32 or b.dtype != torch.float32 or not _compiled_pays(a):
        return a.to(torch.float64, copy=True).sub_(b)
    result = torch.empty(a.shape, dtype=torch.float64)
    _subtract()(a.detach().contiguous().numpy(), b.detach().contiguous().numpy(), result.numpy())
    return result


def split_and_add(values: Tensor, weight: float, parts: Tensor, start: int, rounders: tuple[float, float]) -> None:
    """Round each of `weight * values`, split it into a high and a low part, and add these to `parts`, in place.

    Args:
        values: float64 `[n]`, on the device of the parts.
        weight: factor of the values.
        parts: float64 `[2, at least start + n]`: multiples of the high quantum are added to the first row, of the low
            one to the second.
        start: column of the first value.
        rounders: adding and subtracting them rounds to a multiple of the high and of the low quantum.
    """
    high, low = rounders
    stop = start + values.numel()
    if _compiled_pays(values):
        rows = parts.numpy()  # slicing an array costs less than slicing a tensor
        _split_and_add(high, low)(values.contiguous().numpy(), weight, rows[0, start:stop], rows[1, start:stop])
        return
    highs, lows = parts[0, start:stop], parts[1, start:stop]
    values = values * weight
    rounded = torch.add(values, high).sub_(high)
    highs.add_(rounded)
    lows.add_(values.sub_(rounded).add_(low).sub_(low))


@dataclass(frozen=True, slots=True)
class VectorStats:
    """What a reducer needs to know of a vector before it adds it: its range, and a checksum.

    Attributes:
        largest: the largest absolute value; NaN or infinity where one occurs, 0 for an empty vector.
        bits: the sum of its elements' bits, as float64, modulo 2^64.
    """

    largest: float
    bits: int


# All bits but the sign. As integers, magnitudes are in the order of the numbers, then infinity, then NaN.
_MAGNITUDE = 2**63 - 1


def vector_stats(vector: Tensor) -> VectorStats:
    """The stats of a vector of any shape, in one pass over it."""
    bits = vector.detach().to(torch.float64).contiguous().view(torch.int64)
    if not bits.numel():
        return VectorStats(0.0, 0)
    if _compiled_pays(bits):
        largest, total = _vector_stats()(bits.numpy())
    else:
        largest, total = int((bits & _MAGNITUDE).max()), int(bits.sum())
    return VectorStats(float(np.int64(largest).view(np.float64)), int(total) % 2**64)


# Products are in [-1, 1] once vectors are scaled. Their high parts are multiples of 2^-22, their low parts of 2^-46, of
# which 2^30 add up exactly, and so to the same bits in any order: on any number of threads, on any device.
_PRODUCT_ROUNDERS = 1.5 * 2.0**30, 1.5 * 2.0**6
_LANES = 256


def norm(vector: Tensor, largest: float) -> float:
    """The Euclidean norm of a vector of finite numbers, with the same bits wherever it is computed.

    Args:
        vector: of any shape and floating dtype.
        largest: its largest absolute value.

    Example:
        >>> norm(torch.tensor([3.0, -4.0]), 4.0)
        5.0
    """
    exponent = exponent_of(largest)
    return 2 * math.sqrt(inner_product(vector, vector, exponent, exponent)) * 2.0 ** (exponent - 1)


def exponent_of(largest: float) -> int:
    """The exponent of the power of two that exceeds a vector's largest absolute value: 3 for 4.0, 7.9."""
    return max(math.frexp(largest)[1], -1000)


def inner_product(a: Tensor, b: Tensor, exponent_a: int, exponent_b: int) -> float:
    """The inner product of `a / 2^exponent_a` and `b / 2^exponent_b`, with the same bits wherever it is computed.

    Each product is rounded to a multiple of 2^-46; what is added is exact.

    Args:
        a: of any shape and floating dtype, of finite numbers.
        b: of the same shape, on the same device.
        exponent_a: `exponent_of` the largest absolute value of a.
        exponent_b: and of b.
    """
    left, right = (vector.detach().reshape(-1).to(torch.float64).contiguous() for vector in (a, b))
    scales, (high, low) = (2.0**-exponent_a, 2.0**-exponent_b), _PRODUCT_ROUNDERS
    if _compiled_pays(left):
        sums = np.zeros((2, _LANES))
        _add_products()(left.numpy(), right.numpy(), *scales, sums[0], sums[1])
        return float(sums[0].sum() + sums[1].sum())
    products = (left * scales[0]).mul_(right * scales[1])
    rounded = torch.add(products, high).sub_(high)
    return float(rounded.sum() + products.sub_(rounded).add_(low).sub_(low).sum())


# The compiled loops.


def _compiled_pays(tensor: Tensor) -> bool:
    global _processed
    _processed += tensor.numel()
    return tensor.device.type == "cpu" and _processed > _LITTLE_WORK


@cache
def _subtract() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    def subtract(a: Any, b: Any, result: Any) -> None:
        for index in range(a.size):
            result[index] = np.float64(a[index]) - np.float64(b[index])

    return _compiled("void(float32[::1], float32[::1], float64[::1])", subtract)


@cache
def _split_and_add(round_high: float, round_low: float) -> Callable[[np.ndarray, float, np.ndarray, np.ndarray], None]:
    def split_and_add(values: Any, weight: float, highs: Any, lows: Any) -> None:
        for index in range(values.size):
            value = values[index] * weight
            high = (value + round_high) - round_high
            highs[index] += high
            lows[index] += ((value - high) + round_low) - round_low

    return _compiled("void(float64[::1], float64, float64[::1], float64[::1])", split_and_add)


@cache
def _vector_stats() -> Callable[[np.ndarray], tuple[int, int]]:
    mask = np.int64(_MAGNITUDE)

    def vector_stats(bits: Any) -> tuple[Any, Any]:
        largest = total = np.int64(0)
        for index in range(bits.size):
            largest = max(largest, bits[index] & mask)
            total += bits[index]
        return largest, total

    return _compiled("UniTuple(int64, 2)(int64[::1])", vector_stats)


@cache
def _add_products() -> Callable[[np.ndarray, np.ndarray, float, float, np.ndarray, np.ndarray], None]:
    round_high, round_low = _PRODUCT_ROUNDERS
    lanes = _LANES

    def add_products(a: Any, b: Any, scale_a: Any, scale_b: Any, highs: Any, lows: Any) -> None:
        for start in range(0, a.size, lanes):  # by lanes, which no sum has to wait in for the one before it
            left, right = a[start : start + lanes], b[start : start + lanes]
            for lane in range(left.size):
                product = (left[lane] * scale_a) * (right[lane] * scale_b)
                high = (product + round_high) - round_high
                highs[lane] += high
                lows[lane] += ((product - high) + round_low) - round_low

    return _compiled("void(float64[::1], float64[::1], float64, float64, float64[::1], float64[::1])", add_products)


def _compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A loop over arrays as machine code: compiled in about a second, then read from a cache by later processes.

    Without `fastmath`, LLVM neither reorders nor fuses: these are the same IEEE operations as torch's.
    """
    import numba

    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to cache compiled code in
        return numba.njit(signature, nogil=True)(function)
