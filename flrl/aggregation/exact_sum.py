"""A sum of vectors that gives the same bits in any order and any grouping.

Each value is rounded, by itself, to a multiple of 2^-64 and split into a high part (a multiple of 2^-24) and a low
part. Both parts are added in float64, where sums of such multiples are exact while they stay below 2^53 quanta: exact
sums do not depend on order. This is fixed-point summation as in Demmel and Nguyen, "Parallel Reproducible
Summation", IEEE Transactions on Computers 64(7), 2015, with two fixed bins instead of chosen ones.
"""

import math

import torch
from torch import Tensor

from flrl.kernels import split_and_add, vector_stats

HIGH_QUANTUM = 2.0**-24
LOW_QUANTUM = 2.0**-64
LIMIT = 2.0**27
"""Largest sum of absolute values that can be accumulated."""

# Adding and subtracting 1.5 * 2^52 quanta rounds a float64 to a multiple of the quantum, half to even.
_ROUND_HIGH = 1.5 * 2.0**52 * HIGH_QUANTUM
_ROUND_LOW = 1.5 * 2.0**52 * LOW_QUANTUM
# A low part is at most 2^39 quanta, so 2^13 of them stay within 2^52.
_MAX_PENDING = 2**12
# The bound on the sum is an integer multiple of this unit, so that it does not depend on the order either.
_BOUND_UNIT = 2.0**-20


class ExactSum:
    """An accumulator of float vectors whose value is independent of order and grouping.

    The resolution is 2^-64 (5.4e-20) per addend, the range 2^27 (1.3e8) for the sum of absolute values.

    Args:
        size: number of elements of the vectors.
        device: where the sum is kept.

    Attributes:
        parts: high and low parts of the sum, float64 `[2, size]`; accumulators merge by adding them.
        bound: an upper bound on the sum of absolute values, in units of 2^-20.
        pending: number of addends that the low part may hold; an addition of parts is exact up to 2^12 of them.

    Example:
        >>> a, b = ExactSum(1), ExactSum(1)
        >>> for x in (1e6, 1e-9, -1e6): a.add(torch.tensor([x]))
        >>> for x in (-1e6, 1e6, 1e-9): b.add(torch.tensor([x]))
        >>> torch.equal(a.value(), b.value())
        True
    """

    def __init__(self, size: int, *, device: torch.device | str = "cpu") -> None:
        self.parts = torch.zeros(2, size, dtype=torch.float64, device=device)
        self.bound = 0
        self.pending = 0

    def add(
        self,
        vector: Tensor,
        weight: float = 1.0,
        *,
        start: int = 0,
        largest: float | None = None,
        places: Tensor | None = None,
    ) -> None:
        """Add `weight * vector` to the elements from `start` on.

        Args:
            vector: the vector, of any shape and floating dtype.
            weight: factor of the vector.
            start: index in the sum of the vector's first element.
            largest: the vector's largest absolute value, where it is known.
            places: the places of all its numbers that are not 0, int64 `[k]`, each once, where they are known.

        Raises:
            ValueError: a value is not finite.
            OverflowError: the sum of absolute values could pass `LIMIT`.
        """
        largest = abs(weight) * (vector_stats(vector).largest if largest is None else largest)
        if not math.isfinite(largest):
            raise ValueError("a value to be summed is not finite")
        self.expect(math.ceil(largest / _BOUND_UNIT), 1, what=f"a value of magnitude {largest:.3g}")
        values = vector.detach()
        if values.dtype != torch.float64 or values.dim() != 1 or values.device != self.parts.device:
            values = values.reshape(-1).to(self.parts.device, torch.float64)
        split_and_add(values, weight, self.parts, start, (_ROUND_HIGH, _ROUND_LOW), places)

    def add_number(self, value: float, place: int) -> None:
        """Add a positive number to one element: what `add` does with a vector of this number.

        Raises:
            OverflowError: the sum of absolute values could pass `LIMIT`.
        """
        self.expect(math.ceil(value / _BOUND_UNIT), 1, what=f"a value of magnitude {value:.3g}")
        high = (value + _ROUND_HIGH) - _ROUND_HIGH
        low = ((value - high) + _ROUND_LOW) - _ROUND_LOW
        if self.parts.device.type == "cpu":
            parts = self.parts.numpy()  # indexing an array costs less than indexing a tensor
            parts[0, place] += high
            parts[1, place] += low
        else:
            self.parts[:, place] += self.parts.new_tensor([high, low])

    def merge(self, other: "ExactSum") -> None:
        """Add the sum of another accumulator of the same size.

        Raises:
            OverflowError: the sum of absolute values could pass `LIMIT`.
        """
        self.expect(other.bound, other.pending)
        self.parts.add_(other.parts.to(self.parts.device))

    def expect(self, bound: int, pending: int, *, what: str = "the sum of another accumulator") -> None:
        """Prepare for parts that the caller is about to add: update the bounds, and carry if that is needed.

        Args:
            bound: the parts' bound.
            pending: the parts' pending addends.
            what: what is added, for the error message.

        Raises:
            OverflowError: the sum of absolute values could pass `LIMIT`.
        """
        if (self.bound + bound) * _BOUND_UNIT > LIMIT:
            raise OverflowError(f"exact sum: adding {what} could pass the limit of {LIMIT:.3g} on absolute values")
        if self.pending + pending > _MAX_PENDING:
            self.carry()
        self.bound += bound
        self.pending += pending

    def carry(self) -> None:
        """Carry multiples of the high quantum from the low to the high part; the value stays, one addend is pending."""
        high, low = self.parts
        carry = torch.add(low, _ROUND_HIGH).sub_(_ROUND_HIGH)
        high.add_(carry)
        low.sub_(carry)
        self.pending = 1

    def value(self) -> Tensor:
        """The sum, rounded once to float64; shape `[size]`."""
        return self.parts[0] + self.parts[1]
