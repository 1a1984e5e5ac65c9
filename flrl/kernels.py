"""Compiled loops over whole models: one pass over memory where torch's operations make several.

Each has a twin made of torch's operations with the same bits: for other devices, and for runs so short that loading
the compiler takes longer.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
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


def rounded_difference(a: np.ndarray, b: np.ndarray, result: Tensor) -> None:
    """Write `a - b` of two float64 vectors `[n]`, rounded, into a vector `[n]` of a floating dtype."""
    if result.dtype != torch.float32 or not _compiled_pays(result):
        result.copy_(torch.from_numpy(a - b))
    else:
        _subtract_and_round()(a, b, result.numpy())


def places_at_least(values: np.ndarray, bound: float) -> np.ndarray:
    """The ascending places of finite float64 values `[n]` whose magnitude is at least `bound`, itself at least 0."""
    if not _compiled_pays(torch.from_numpy(values)):
        starts = range(0, values.size, _AT_ONCE)
        found = [np.flatnonzero(np.abs(values[at : at + _AT_ONCE]) >= bound) + at for at in starts]
        return np.concatenate(found) if found else np.zeros(0, np.int64)
    places = np.empty(values.size, np.int64)
    count = _places_at_least()(values.view(np.int64), int(np.float64(bound + 0.0).view(np.int64)), places)
    return places[:count].copy()


_AT_ONCE = 2**14
"""Numbers that are looked at together: few enough for a cache, so that no large array is made."""


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
        square: the square of its Euclidean norm, added as `inner_product` does; stats are equal without regard to it.
    """

    largest: float
    bits: int
    square: float = field(default=0.0, compare=False)

    @property
    def norm(self) -> float:
        """The Euclidean norm; 0 below some 1e-162, infinite above some 1e154."""
        return math.sqrt(self.square)


# All bits but the sign. As integers, magnitudes are in the order of the numbers, then infinity, then NaN.
_MAGNITUDE = 2**63 - 1
_LANES = 256


def vector_stats(vector: Tensor) -> VectorStats:
    """The stats of a vector of any shape, in one pass over it."""
    values = vector.detach().reshape(-1).to(torch.float64).contiguous()
    bits = values.view(torch.int64)
    if not bits.numel():
        return VectorStats(0.0, 0)
    if _compiled_pays(bits):
        sums = np.zeros(_LANES)
        largest, total = _vector_stats()(bits.numpy(), values.numpy(), sums)
        square = _total(sums)
    else:
        largest, total = int((bits & _MAGNITUDE).max()), int(bits.sum())
        square = _sum_by_lanes(values * values)
    return VectorStats(float(np.int64(largest).view(np.float64)), int(total) % 2**64, square)


def inner_product(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors `[n]` in float64, with the same bits on any number of threads.

    Every 256th product is added to the same of 256 sums, one after the other, and those at the end.

    Args:
        a: of any floating dtype.
        b: of the same length, on the same device.
    """
    left, right = (vector.detach().to(torch.float64).contiguous() for vector in (a, b))
    if _compiled_pays(left):
        sums = np.zeros(_LANES)
        _add_products()(left.numpy(), right.numpy(), sums)
        return _total(sums)
    return _sum_by_lanes(left * right)


def hadamard(values: np.ndarray) -> np.ndarray:
    """The orthonormal Walsh-Hadamard transform of float64 values `[2^m]`, its own inverse.

    It is made of sums and differences, of numbers that are far apart first.
    """
    found: np.ndarray = values * (1 / math.sqrt(values.size))
    if _compiled_pays(torch.from_numpy(found)):
        _sums_and_differences()(found)
        return found
    half = values.size // 2
    while half:
        pairs = found.reshape(-1, 2, half)
        found = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        half //= 2
    return found


def _sum_by_lanes(products: Tensor) -> float:
    if products.device.type != "cpu":
        return float(products.sum())
    whole = products.numel() // _LANES * _LANES
    with np.errstate(all="ignore"):
        sums = np.add.reduce(products.numpy()[:whole].reshape(-1, _LANES), axis=0)
        sums[: products.numel() - whole] += products.numpy()[whole:]
    return _total(sums)


def _total(sums: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(sums.sum())


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
def _subtract_and_round() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    def subtract_and_round(a: Any, b: Any, result: Any) -> None:
        for index in range(a.size):
            result[index] = np.float32(a[index] - b[index])

    return _compiled("void(float64[::1], float64[::1], float32[::1])", subtract_and_round)


@cache
def _places_at_least() -> Callable[[np.ndarray, int, np.ndarray], int]:
    mask, block = np.int64(_MAGNITUDE), 32

    def places_at_least(bits: Any, bound: Any, places: Any) -> Any:
        count = np.int64(0)
        for start in range(0, bits.size, block):
            part, largest = bits[start : start + block], np.int64(0)
            for place in range(part.size):
                largest = max(largest, part[place] & mask)
            if largest >= bound:
                for place in range(part.size):
                    if part[place] & mask >= bound:
                        places[count] = start + place
                        count += 1
        return count

    return _compiled("int64(int64[::1], int64, int64[::1])", places_at_least)


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
def _vector_stats() -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[int, int]]:
    mask, lanes = np.int64(_MAGNITUDE), _LANES

    def vector_stats(bits: Any, values: Any, sums: Any) -> tuple[Any, Any]:
        largest = total = np.int64(0)
        for start in range(0, bits.size, lanes):  # by lanes, so that no sum has to wait for the one before it
            part, same = bits[start : start + lanes], values[start : start + lanes]
            for lane in range(part.size):
                largest = max(largest, part[lane] & mask)
                total += part[lane]
            for lane in range(same.size):
                sums[lane] += same[lane] * same[lane]
        return largest, total

    return _compiled("UniTuple(int64, 2)(int64[::1], float64[::1], float64[::1])", vector_stats)


@cache
def _add_products() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    lanes = _LANES

    def add_products(a: Any, b: Any, sums: Any) -> None:
        for start in range(0, a.size, lanes):
            left, right = a[start : start + lanes], b[start : start + lanes]
            for lane in range(left.size):
                sums[lane] += left[lane] * right[lane]

    return _compiled("void(float64[::1], float64[::1], float64[::1])", add_products)


@cache
def _sums_and_differences() -> Callable[[np.ndarray], None]:
    in_cache, few = 2**12, 8

    def sums_and_differences(values: Any) -> None:
        half = values.size // 2
        while half >= in_cache:
            for start in range(0, values.size, 2 * half):
                low, high = values[start : start + half], values[start + half : start + 2 * half]
                for place in range(half):
                    low[place], high[place] = low[place] + high[place], low[place] - high[place]
            half //= 2
        for first in range(0, values.size, max(1, 2 * half)):  # all else of a part while it is in a cache
            part, near = values[first : first + 2 * half], half
            while near >= few:
                for start in range(0, part.size, 2 * near):
                    low, high = part[start : start + near], part[start + near : start + 2 * near]
                    for place in range(near):
                        low[place], high[place] = low[place] + high[place], low[place] - high[place]
                near //= 2
            while near:
                for start in range(0, part.size, 2 * near):
                    for place in range(start, start + near):
                        a, b = part[place], part[place + near]
                        part[place], part[place + near] = a + b, a - b
                near //= 2

    return _compiled("void(float64[::1])", sums_and_differences)


def _compiled(signature: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A loop over arrays as machine code: compiled in about a second, then read from a cache by later processes.

    Without `fastmath`, LLVM neither reorders nor fuses: these are the same IEEE operations as torch's.
    """
    import numba

    try:
        return numba.njit(signature, nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to cache compiled code in
        return numba.njit(signature, nogil=True)(function)
