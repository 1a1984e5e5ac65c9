"""Additions to an exact sum."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.kernels.compiling import compiled, pays


def split_and_add(
    values: Tensor,
    weight: float,
    parts: Tensor,
    start: int,
    rounders: tuple[float, float],
    places: Tensor | None = None,
) -> None:
    """Round each of `weight * values`, split it into a high and a low part, and add these to `parts`, in place.

    Args:
        values: float64 `[n]`, on the device of the parts.
        weight: factor of the values.
        parts: float64 `[2, at least start + n]`: multiples of the high quantum are added to the first row, of the low
            one to the second.
        start: column of the first value.
        rounders: adding and subtracting them rounds to a multiple of the high and of the low quantum.
        places: the places of all values that are not 0, int64 `[k]`, each once, where they are known: these are looked
            at alone.
    """
    high, low = rounders
    stop = start + values.numel()
    if pays(values):
        rows = parts.numpy()  # slicing an array costs less than slicing a tensor
        both = values.contiguous().numpy(), weight, rows[0, start:stop], rows[1, start:stop]
        if places is None:
            _split_and_add(high, low)(*both)
        else:
            _split_and_add_at(high, low)(*both, places.numpy())
        return
    highs, lows = parts[0, start:stop], parts[1, start:stop]
    values = values * weight
    rounded = torch.add(values, high).sub_(high)
    highs.add_(rounded)
    lows.add_(values.sub_(rounded).add_(low).sub_(low))


@cache
def _split_and_add(round_high: float, round_low: float) -> Callable[[np.ndarray, float, np.ndarray, np.ndarray], None]:
    def split_and_add(values: Any, weight: float, highs: Any, lows: Any) -> None:
        for index in range(values.size):
            value = values[index] * weight
            high = (value + round_high) - round_high
            highs[index] += high
            lows[index] += ((value - high) + round_low) - round_low

    return compiled("void(float64[::1], float64, float64[::1], float64[::1])", split_and_add)


@cache
def _split_and_add_at(
    round_high: float, round_low: float
) -> Callable[[np.ndarray, float, np.ndarray, np.ndarray, np.ndarray], None]:
    def split_and_add_at(values: Any, weight: float, highs: Any, lows: Any, places: Any) -> None:
        for place in places:
            value = values[place] * weight
            high = (value + round_high) - round_high
            highs[place] += high
            lows[place] += ((value - high) + round_low) - round_low

    signature = "void(float64[::1], float64, float64[::1], float64[::1], int64[::1])"
    return compiled(signature, split_and_add_at)
