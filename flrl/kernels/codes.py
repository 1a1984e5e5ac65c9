"""Golomb-Rice codes of whole numbers."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flrl.kernels.compiling import compiled, pays

_LARGEST_K = 31


def rice_length(values: np.ndarray) -> tuple[int, int]:
    """The length in bits of the best Golomb-Rice code of numbers int64 `[n]`, at least 0, and its k.

    The first k is taken whose next is no shorter.
    """
    if pays(values):
        length, k = _rice_length()(values)
        return int(length), int(k)
    length, best = _length(values, 0), 0
    while best < _LARGEST_K and (next_length := _length(values, best + 1)) < length:
        length, best = next_length, best + 1
    return length, best


def rice_code(values: np.ndarray) -> np.ndarray:
    """The best Golomb-Rice code of at least one number, int64 `[n]`, none below 0: uint8 `[bytes]`.

    A byte says k. The lowest k bits of each number follow, and then the rest of each in unary, with a 1 at its end;
    both begin with a byte of their own, and bits are from a byte's highest on.
    """
    length, k = rice_length(values)
    low, unary = 1 + (values.size * k + 7) // 8, (length - values.size * k + 7) // 8
    if pays(values):
        code = np.zeros(low + unary, np.uint8)
        code[0] = k
        _rice_code()(values, k, code[1:low], code[low:])
        return code
    single = np.empty((values.size, k), bool)
    for place in range(k):
        single[:, place] = values >> (k - 1 - place) & 1
    stops = np.cumsum(values >> k) + np.arange(values.size)
    bits = np.zeros(8 * unary, bool)
    bits[stops] = True
    return np.concatenate([np.array([k], np.uint8), np.packbits(single), np.packbits(bits)])


def _length(values: np.ndarray, k: int) -> int:
    return int((values >> k).sum()) + values.size * (k + 1)


@cache
def _rice_length() -> Callable[[np.ndarray], tuple[int, int]]:
    most = _LARGEST_K

    def rice_length(values: Any) -> tuple[Any, Any]:
        best, length = np.int64(0), np.int64(values.size)
        for value in values:
            length += value
        while best < most:
            more = values.size * (best + 2)
            for value in values:
                more += value >> (best + 1)
            if more >= length:
                break
            length, best = more, best + 1
        return length, best

    return compiled("UniTuple(int64, 2)(int64[::1])", rice_length)


@cache
def _rice_code() -> Callable[[np.ndarray, int, np.ndarray, np.ndarray], None]:
    def rice_code(values: Any, k: Any, low: Any, unary: Any) -> None:
        place, stop = np.int64(0), np.int64(-1)
        for value in values:
            for bit in range(k):
                low[place >> 3] |= ((value >> (k - 1 - bit)) & 1) << (7 - (place & 7))
                place += 1
            stop += (value >> k) + 1
            unary[stop >> 3] |= 128 >> (stop & 7)

    return compiled("void(int64[::1], int64, uint8[::1], uint8[::1])", rice_code)
