"""The large numbers of a vector."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from flrl.kernels.compiling import compiled, pays
from flrl.kernels.vectors import MAGNITUDE


def places_at_least(values: np.ndarray, bound: float) -> np.ndarray:
    """The ascending places of finite float64 values `[n]` whose magnitude is at least `bound`, itself at least 0."""
    if not pays(values):
        starts = range(0, values.size, _AT_ONCE)
        found = [np.flatnonzero(np.abs(values[at : at + _AT_ONCE]) >= bound) + at for at in starts]
        return np.concatenate(found) if found else np.zeros(0, np.int64)
    places = np.empty(values.size, np.int64)
    count = _places_at_least()(values.view(np.int64), int(np.float64(bound + 0.0).view(np.int64)), places)
    return places[:count].copy()


_AT_ONCE = 2**14
"""Numbers that are looked at together: few enough for a cache, so that no large array is made."""


class Large(NamedTuple):
    """Numbers of a vector, and where they are.

    Attributes:
        places: ascending, int64 `[k]`.
        values: float64 `[k]`.
    """

    places: np.ndarray
    values: np.ndarray


def large_numbers(vector: np.ndarray, error: np.ndarray | None, bound: float, rounded: np.ndarray) -> Large | None:
    """The numbers of `vector + error` whose magnitude is at least `bound`; None if a number is not finite.

    Args:
        vector: float64 `[n]`.
        error: float32 `[n]`; None for zeros.
        bound: at least 0.
        rounded: float32 `[n]`, which the sum is written to, rounded; not meaningful if None is returned.
    """
    if not pays(vector):
        with np.errstate(over="ignore", invalid="ignore"):
            whole = vector if error is None else vector + error
            rounded[:] = whole
        places = np.flatnonzero(np.abs(whole) >= bound)
        return Large(places, whole[places]) if np.isfinite(whole).all() else None
    places, values = np.empty(vector.size, np.int64), np.empty(vector.size)
    few = np.empty(_BLOCK)
    error = np.empty(0, np.float32) if error is None else error
    least, buffers = int(np.float64(bound + 0.0).view(np.int64)), (few, few.view(np.int64))
    count, largest = _large_numbers()(vector, error, least, rounded, places, values, *buffers)
    if largest >= _INFINITY:
        return None
    return Large(places[:count], values[:count])


_BLOCK, _PART = 64, 8
"""Numbers that are compared with the bound together, and again where one of those reaches it."""
_INFINITY = int(np.float64(np.inf).view(np.int64))


@cache
def _places_at_least() -> Callable[[np.ndarray, int, np.ndarray], int]:
    mask, block = np.int64(MAGNITUDE), 16

    def places_at_least(bits: Any, bound: Any, places: Any) -> Any:
        count = np.int64(0)
        for start in range(0, bits.size, block):
            part, largest = bits[start : start + block], np.int64(0)
            for place in range(part.size):
                largest = max(largest, part[place] & mask)
            if largest >= bound:
                for place in range(part.size):  # without a branch: what is not large is written over
                    places[count] = start + place
                    count += np.int64(part[place] & mask >= bound)
        return count

    return compiled("int64(int64[::1], int64, int64[::1])", places_at_least)


@cache
def _large_numbers() -> Callable[..., tuple[int, int]]:
    mask, block, part = np.int64(MAGNITUDE), _BLOCK, _PART

    def large_numbers(
        vector: Any, error: Any, bound: Any, rounded: Any, places: Any, values: Any, few: Any, bits: Any
    ) -> tuple[Any, Any]:
        count = largest = np.int64(0)
        whole = vector.size // block * block
        for start in range(0, whole, block):
            here = np.int64(0)
            for place in range(block):
                few[place] = vector[start + place] + (np.float64(error[start + place]) if error.size else -0.0)
                rounded[start + place] = np.float32(few[place])
            for place in range(block):
                here = max(here, bits[place] & mask)
            largest = max(largest, here)
            if here >= bound:
                for first in range(0, block, part):
                    here = np.int64(0)
                    for place in range(first, first + part):
                        here = max(here, bits[place] & mask)
                    if here >= bound:
                        for place in range(first, first + part):  # without a branch: others are written over
                            places[count], values[count] = start + place, few[place]
                            count += np.int64(bits[place] & mask >= bound)
        for place in range(whole, vector.size):
            few[0] = vector[place] + (np.float64(error[place]) if error.size else -0.0)
            rounded[place] = np.float32(few[0])
            largest = max(largest, bits[0] & mask)
            places[count], values[count] = place, few[0]
            count += np.int64(bits[0] & mask >= bound)
        return count, largest

    return compiled(
        "UniTuple(int64, 2)(float64[::1], float32[::1], int64, float32[::1], int64[::1], float64[::1], float64[::1], "
        "int64[::1])",
        large_numbers,
    )
