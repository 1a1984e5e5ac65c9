"""Numbers of the exact sum as integers, and several integers in one: plaintexts of schemes that add integers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRID_BITS = 64
"""The exact sum's numbers are multiples of 2^-64."""
NUMBER_BITS = 92
"""Bits of such a number: its absolute value is at most 2^27, and it has a sign."""
_LOW_BITS = 40


def integers(parts: np.ndarray) -> list[int]:
    """High and low parts, float64 `[2, n]`, as multiples of 2^-64."""
    high = np.ldexp(parts[0], GRID_BITS - _LOW_BITS).astype(np.int64).tolist()
    low = np.ldexp(parts[1], GRID_BITS).astype(np.int64).tolist()
    return [(h << _LOW_BITS) + each for h, each in zip(high, low, strict=True)]


def parts(numbers: Sequence[int]) -> np.ndarray:
    """Multiples of 2^-64 as high and low parts, float64 `[2, n]`, whose sum is rounded once.

    Raises:
        OverflowError: an absolute value is above 2^27, the exact sum's limit.
    """
    limit = 1 << NUMBER_BITS - 1
    if any(abs(number) > limit for number in numbers):
        raise OverflowError("exact sum: the decrypted sum has passed its limit of 1.34e+08")
    high = [(number + (1 << _LOW_BITS - 1)) >> _LOW_BITS for number in numbers]
    low = [number - (h << _LOW_BITS) for number, h in zip(numbers, high, strict=True)]
    found = np.array([high, low], dtype=np.float64).reshape(2, len(numbers))
    return np.stack([np.ldexp(found[0], _LOW_BITS - GRID_BITS), np.ldexp(found[1], -GRID_BITS)])


@dataclass(frozen=True, slots=True)
class Packing:
    """Several signed integers in one, so that sums of such integers are those of all of them.

    An integer of value v in slot i is v 2^(width i); a negative one borrows from the slots above, which unpacking
    gives back. Sums are right while their absolute values stay below 2^(width - 1) in each slot.

    Attributes:
        width: bits of a slot.
        slots: number of them.

    Example:
        >>> Packing(width=8, slots=3).pack([1, -2, 3, 4])
        [196097, 4]
        >>> Packing(width=8, slots=3).unpack([2 * 196097, 2 * 4], 4)
        [2, -4, 6, 8]
    """

    width: int
    slots: int

    @classmethod
    def for_sums(cls, plaintext_bits: int, addends: int) -> "Packing":
        """The packing of exact sums of so many numbers; a plaintext has so many bits, the sign among them.

        Raises:
            ValueError: not one number fits.
        """
        width = NUMBER_BITS + guard_bits(addends)
        if plaintext_bits < width:
            raise ValueError(f"a sum of {addends} numbers takes {width} bits, a plaintext has {plaintext_bits}")
        return cls(width, plaintext_bits // width)

    def count(self, numbers: int) -> int:
        """How many integers hold so many numbers."""
        return -(-numbers // self.slots)

    def pack(self, numbers: Sequence[int]) -> list[int]:
        """The integers that hold numbers; each may be negative.

        Raises:
            OverflowError: a number does not fit into a slot.
        """
        limit = 1 << self.width - 1
        if any(abs(number) >= limit for number in numbers):
            raise OverflowError(f"a number does not fit into a slot of {self.width} bits")
        groups = (numbers[start : start + self.slots] for start in range(0, len(numbers), self.slots))
        return [sum(number << self.width * place for place, number in enumerate(group)) for group in groups]

    def unpack(self, packed: Sequence[int], size: int) -> list[int]:
        """The first `size` numbers that integers hold."""
        half, mask, found = 1 << self.width - 1, (1 << self.width) - 1, []
        for each in packed:
            for _ in range(self.slots):
                number = ((each + half) & mask) - half
                found.append(number)
                each = (each - number) >> self.width
        return found[:size]


def guard_bits(addends: int) -> int:
    """The further bits that a sum of so many numbers takes."""
    return (addends - 1).bit_length()
