"""A sum of vectors that gives the same bits in any order and any grouping.

Each value is rounded, by itself, to a multiple of 2^-64 and split into a high part (a multiple of 2^-24) and a low
part. Both parts are added in float64, where sums of such multiples are exact while they stay below 2^53 quanta: exact
sums do not depend on order. This is fixed-point summation as in Demmel and Nguyen, "Parallel Reproducible
Summation", IEEE Transactions on Computers 64(7), 2015, with two fixed bins instead of chosen ones.
"""

import math

import torch
from torch import Tensor

HIGH_QUANTUM = 2.0**-24
LOW_QUANTUM = 2.0**-64
LIMIT = 2.0**27
"""Largest sum of absolute values that can be accumulated."""

# Adding and subtracting 1.5 * 2^52 quanta rounds a float64 to a multiple of the quantum, half to even.
_ROUND_HIGH = 1.5 * 2.0**52 * HIGH_QUANTUM
_ROUND_LOW = 1.5 * 2.0**52 * LOW_QUANTUM
# A low part is at most 2^39 quanta, so 2^13 of them stay within 2^52.
_MAX_PENDING = 2**12
# Elements handled at a time: the temporaries stay in the cache.
_BLOCK = 16384
# The bound on the sum is kept as an integer number of these, so that it does not depend on order either.
_BOUND_UNIT = 2.0**-20


class ExactSum:
    """An accumulator of float vectors whose value is independent of order and grouping.

    The resolution is 2^-64 (5.4e-20) per addend, the range 2^27 (1.3e8) for the sum of absolute values.

    Args:
        size: elements of the vectors.
        device: where the sum lives.

    Example:
        >>> a, b = ExactSum(1), ExactSum(1)
        >>> for x in (1e6, 1e-9, -1e6): a.add(torch.tensor([x]))
        >>> for x in (-1e6, 1e6, 1e-9): b.add(torch.tensor([x]))
        >>> torch.equal(a.value(), b.value())
        True
    """

    def __init__(self, size: int, *, device: torch.device | str = "cpu") -> None:
        self.high = torch.zeros(size, dtype=torch.float64, device=device)
        self.low = torch.zeros(size, dtype=torch.float64, device=device)
        self._bound = 0
        self._pending = 0
        self._scratch = torch.empty(2, min(size, _BLOCK), dtype=torch.float64, device=device)

    def add(self, vector: Tensor, weight: float = 1.0, *, start: int = 0) -> None:
        """Add `weight * vector` to the elements from `start` on.

        Raises:
            ValueError: a value is not finite.
            OverflowError: the sum of absolute values could pass `LIMIT`.
        """
        largest = abs(weight) * largest_magnitude(vector)
        if not math.isfinite(largest):
            raise ValueError("a value to be summed is not finite")
        self._grow(math.ceil(largest / _BOUND_UNIT), f"a value of magnitude {largest:.3g}")
        self._make_room(1)
        for begin in range(0, vector.numel(), _BLOCK):
            values = vector[begin : begin + _BLOCK]
            target = slice(start + begin, start + begin + values.numel())
            block, high = self._scratch[:, : values.numel()]
            block.copy_(values).mul_(weight)
            torch.add(block, _ROUND_HIGH, out=high).sub_(_ROUND_HIGH)
            self.high[target].add_(high)
            self.low[target].add_(block.sub_(high).add_(_ROUND_LOW).sub_(_ROUND_LOW))

    def merge(self, other: "ExactSum") -> None:
        """Add all that another accumulator of the same size holds.

        Raises:
            OverflowError: the sum of absolute values could pass `LIMIT`.
        """
        self._grow(other._bound, "the sum of another accumulator")
        self._make_room(other._pending)
        self.high.add_(other.high)
        self.low.add_(other.low)

    def value(self) -> Tensor:
        """The sum, rounded once to float64; shape `[size]`."""
        return self.high + self.low

    def _grow(self, amount: int, what: str) -> None:
        if (self._bound + amount) * _BOUND_UNIT > LIMIT:
            raise OverflowError(f"exact sum: adding {what} could pass the limit of {LIMIT:.3g} on absolute values")
        self._bound += amount

    def _make_room(self, pending: int) -> None:
        if self._pending + pending > _MAX_PENDING:
            carry = torch.add(self.low, _ROUND_HIGH).sub_(_ROUND_HIGH)
            self.high.add_(carry)
            self.low.sub_(carry)
            self._pending = 1
        self._pending += pending


def largest_magnitude(vector: Tensor) -> float:
    """The largest absolute value; NaN or infinity where one occurs; 0 for an empty vector."""
    if not vector.numel():
        return 0.0
    lowest, highest = torch.aminmax(vector)
    return max(-float(lowest), float(highest))
