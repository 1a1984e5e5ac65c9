"""The Walsh-Hadamard transform."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from flrl.kernels.compiling import compiled, pays


def hadamard(values: np.ndarray) -> np.ndarray:
    """The orthonormal Walsh-Hadamard transform of float64 values `[2^m]`, its own inverse.

    It is made of sums and differences, of numbers that are far apart first.
    """
    found: np.ndarray = values * (1 / math.sqrt(values.size))
    if pays(found):
        _sums_and_differences()(found)
        return found
    half = values.size // 2
    while half:
        pairs = found.reshape(-1, 2, half)
        found = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1)
        half //= 2
    return found


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

    return compiled("void(float64[::1])", sums_and_differences)
