"""Differences, inner products, and what a reducer needs to know of a vector."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.kernels.compiling import compiled, pays


def difference(a: Tensor, b: Tensor) -> Tensor:
    """`a - b` of two vectors `[n]` of any floating dtype, in float64 `[n]`."""
    if a.dtype != torch.float32 or b.dtype != torch.float32 or not pays(a):
        return a.to(torch.float64, copy=True).sub_(b)
    result = torch.empty(a.shape, dtype=torch.float64)
    _subtract()(a.detach().contiguous().numpy(), b.detach().contiguous().numpy(), result.numpy())
    return result


def rounded_difference(a: np.ndarray, b: np.ndarray, result: Tensor) -> None:
    """Write `a - b` of two float64 vectors `[n]`, rounded, into a vector `[n]` of a floating dtype."""
    if result.dtype != torch.float32 or not pays(result):
        result.copy_(torch.from_numpy(a - b))
    else:
        _subtract_and_round()(a, b, result.numpy())


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
MAGNITUDE = 2**63 - 1
_LANES = 256
_SQUARED_SAFELY = 1e150
"""Squares of numbers below it can be added without a warning of NumPy's."""


def vector_stats(vector: Tensor, places: Tensor | None = None) -> VectorStats:
    """The stats of a vector of any shape, in one pass over it.

    Args:
        vector: of any floating dtype.
        places: the ascending places of all numbers that are not 0, int64 `[k]`, where they are known: these are looked
            at alone.
    """
    values = vector.detach()
    if values.dtype != torch.float64 or values.dim() != 1 or not values.is_contiguous():
        values = values.reshape(-1).to(torch.float64).contiguous()
    if pays(values):
        array, sums = values.numpy(), np.zeros(_LANES)
        if places is None:
            magnitude, total = _vector_stats()(array.view(np.int64), array, sums)
        else:
            magnitude, total = _stats_at()(array.view(np.int64), array, places.numpy(), sums)
        return _stats(magnitude, total, sums)
    if not values.numel():
        return VectorStats(0.0, 0)
    bits = values.view(torch.int64)
    largest = float(np.int64(int((bits & MAGNITUDE).max())).view(np.float64))
    return VectorStats(largest, int(bits.sum()) % 2**64, _sum_by_lanes(values * values))


def scaled(vector: Tensor, factor: float) -> tuple[Tensor, VectorStats]:
    """`factor * vector`, float64 `[n]`, and its stats; in one pass where that is compiled.

    Args:
        vector: float64 `[n]`.
        factor: multiplies it.
    """
    if not pays(vector) or not vector.is_contiguous():
        product = vector * factor
        return product, vector_stats(product)
    result, sums = torch.empty(vector.shape, dtype=torch.float64), np.zeros(_LANES)
    array = result.numpy()
    found = _scale()(vector.detach().numpy(), factor, array, array.view(np.int64), sums)
    return result, _stats(*found, sums)


def inner_product(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors `[n]` in float64, with the same bits on any number of threads.

    Every 256th product is added to the same of 256 sums, one after the other, and those at the end.

    Args:
        a: of any floating dtype.
        b: of the same length, on the same device.
    """
    left, right = (vector.detach().to(torch.float64).contiguous() for vector in (a, b))
    if pays(left):
        sums = np.zeros(_LANES)
        _add_products()(left.numpy(), right.numpy(), sums)
        return _total(sums)
    return _sum_by_lanes(left * right)


def _stats(magnitude: int, total: int, sums: np.ndarray) -> VectorStats:
    """Stats from what a loop returns, which are 0, and sums of 0, of an empty vector."""
    largest = float(np.int64(magnitude).view(np.float64))
    square = float(sums.sum()) if largest < _SQUARED_SAFELY else _total(sums)
    return VectorStats(largest, total % 2**64, square)


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


@cache
def _subtract() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    def subtract(a: Any, b: Any, result: Any) -> None:
        for index in range(a.size):
            result[index] = np.float64(a[index]) - np.float64(b[index])

    return compiled("void(float32[::1], float32[::1], float64[::1])", subtract)


@cache
def _subtract_and_round() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    def subtract_and_round(a: Any, b: Any, result: Any) -> None:
        for index in range(a.size):
            result[index] = np.float32(a[index] - b[index])

    return compiled("void(float64[::1], float64[::1], float32[::1])", subtract_and_round)


@cache
def _vector_stats() -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[int, int]]:
    mask, lanes = np.int64(MAGNITUDE), _LANES

    def vector_stats(bits: Any, values: Any, sums: Any) -> tuple[Any, Any]:
        largest = total = np.int64(0)
        whole = bits.size // lanes * lanes
        for start in range(0, whole, lanes):  # by lanes, so that no sum has to wait for the one before it
            part, same = bits[start : start + lanes], values[start : start + lanes]
            for lane in range(lanes):
                largest = max(largest, part[lane] & mask)
                total += part[lane]
                sums[lane] += same[lane] * same[lane]
        for place in range(whole, bits.size):
            largest = max(largest, bits[place] & mask)
            total += bits[place]
            sums[place - whole] += values[place] * values[place]
        return largest, total

    return compiled("UniTuple(int64, 2)(int64[::1], float64[::1], float64[::1])", vector_stats)


@cache
def _stats_at() -> Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[int, int]]:
    mask, lanes = np.int64(MAGNITUDE), np.int64(_LANES)

    def stats_at(bits: Any, values: Any, places: Any, sums: Any) -> tuple[Any, Any]:
        largest = total = np.int64(0)
        for place in places:
            largest = max(largest, bits[place] & mask)
            total += bits[place]
            sums[place % lanes] += values[place] * values[place]
        return largest, total

    return compiled("UniTuple(int64, 2)(int64[::1], float64[::1], int64[::1], float64[::1])", stats_at)


@cache
def _scale() -> Callable[[np.ndarray, float, np.ndarray, np.ndarray, np.ndarray], tuple[int, int]]:
    mask, lanes = np.int64(MAGNITUDE), _LANES

    def scale(values: Any, factor: Any, result: Any, bits: Any, sums: Any) -> tuple[Any, Any]:
        largest = total = np.int64(0)
        whole = values.size // lanes * lanes
        for start in range(0, whole, lanes):
            part, out, same = values[start : start + lanes], result[start : start + lanes], bits[start : start + lanes]
            for lane in range(lanes):
                out[lane] = part[lane] * factor
            for lane in range(lanes):
                sums[lane] += out[lane] * out[lane]
            for lane in range(lanes):
                largest = max(largest, same[lane] & mask)
                total += same[lane]
        for place in range(whole, values.size):
            result[place] = values[place] * factor
            sums[place - whole] += result[place] * result[place]
            largest = max(largest, bits[place] & mask)
            total += bits[place]
        return largest, total

    return compiled("UniTuple(int64, 2)(float64[::1], float64, float64[::1], int64[::1], float64[::1])", scale)


@cache
def _add_products() -> Callable[[np.ndarray, np.ndarray, np.ndarray], None]:
    lanes = _LANES

    def add_products(a: Any, b: Any, sums: Any) -> None:
        for start in range(0, a.size, lanes):
            left, right = a[start : start + lanes], b[start : start + lanes]
            for lane in range(left.size):
                sums[lane] += left[lane] * right[lane]

    return compiled("void(float64[::1], float64[::1], float64[::1])", add_products)
