"""Random rotations by Hadamard matrices, and what is quantised after one: DRIVE and EDEN.

Vargaftik, Ben Basat, Portnoy, Mendelson, Ben-Itzhak, Mitzenmacher, "DRIVE: One-bit Distributed Mean Estimation",
NeurIPS 2021, arXiv 2105.08339; and "EDEN: Communication-Efficient and Robust Distributed Mean Estimation for Federated
Learning", ICML 2022, arXiv 2108.08842. After a rotation the numbers of a vector of norm 1 are nearly normal, whatever
it was: each becomes the nearest of the 2^b centroids that have the least squared error D for a normal number (Max,
"Quantizing for Minimum Distortion", IRE Transactions on Information Theory 6(1), 1960). A factor makes that unbiased,
with the error D / (1 - D) of ||v||^2: pi/2 - 1 with one bit, which is DRIVE.
"""

import math
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
import torch

from flrl.kernels import hadamard
from flrl.layout import ParameterLayout
from flrl.transforms.compression.base import TrainableCompressor, draw_seed, inner
from flrl.transforms.compression.codecs import Reader, Writer
from flrl.types import Context, Metrics, Tensors

_SMALLEST = 256
"""Numbers of the smallest block that is rotated by itself; the last one is filled with zeros."""


class Eden(TrainableCompressor):
    """Sends each number of the rotated update as one of 2^bits centroids, a factor for each block, and a seed.

    The numbers are rotated in blocks of powers of two, from the largest that fits down to 256.

    Args:
        bits: of each number, 1 to 4; 1 is DRIVE.
        unbiased: whether the factors make the update unbiased; else they make its error smallest, D of ||v||^2.
        error_feedback: whether clients keep what they have not sent; needs `unbiased=false`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, bits: int = 1, unbiased: bool = True, error_feedback: bool = False) -> None:
        if bits not in (1, 2, 3, 4):
            raise ValueError(f"strategy.transforms.eden.bits={bits}: must be 1 to 4")
        if unbiased and error_feedback:
            raise ValueError(
                "strategy.transforms.eden.error_feedback=true: needs unbiased=false, the factors of a contraction"
            )
        super().__init__(error_feedback=error_feedback)
        self.bits, self.unbiased = bits, unbiased
        self.contracts = not unbiased

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """The seed, factors, centroids."""
        seed = draw_seed(context.generator)
        turned = rotated(values, seed)
        factors, chosen = [], np.zeros(turned.size, np.uint8)
        for block in _blocks(values.size):
            part = turned[block]
            highest = float(np.abs(part).max())
            scaled = part / highest if highest else part
            norm = math.sqrt(inner(scaled, scaled))
            normal = scaled * (math.sqrt(part.size) / norm if norm else 0.0)
            level = np.zeros(part.size, np.uint8)
            for bound in _bounds(self.bits):
                level += normal > bound
            centres = _centroids(self.bits)[level]
            along, own = inner(scaled, centres), inner(centres, centres)
            factors.append(highest * ((norm * norm / along if along else 0.0) if self.unbiased else along / own))
            chosen[block] = level
        writer.whole([seed], "<i8")
        writer.floats(np.array(factors), torch.float32)
        writer.bits(chosen, self.bits)
        return {}, {}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """The centroids times their factors, rotated back."""
        seed = int(reader.whole(1, "<i8")[0])
        blocks = list(_blocks(layout.num_trainable))
        factors = reader.floats(len(blocks), torch.float32)
        found = _centroids(self.bits)[reader.bits(padded(layout.num_trainable), self.bits)]
        for block, factor in zip(blocks, factors, strict=True):
            found[block] *= factor
        return rotated_back(found, seed, layout.num_trainable)


def padded(size: int) -> int:
    """The length of so many numbers once they are rotated."""
    return -(-size // _SMALLEST) * _SMALLEST


def rotated(values: np.ndarray, seed: int) -> np.ndarray:
    """Values `[n]` with random signs, each block turned by a Hadamard matrix, float64 `[padded(n)]`."""
    found = np.zeros(padded(values.size))
    found[: values.size] = values
    found *= _signs(seed, found.size)
    for block in _blocks(values.size):
        found[block] = hadamard(found[block])
    return found


def rotated_back(values: np.ndarray, seed: int, size: int) -> np.ndarray:
    """The inverse of `rotated`, float64 `[size]`."""
    found = _signs(seed, padded(size))
    for block in _blocks(size):
        found[block] *= hadamard(values[block])
    return found[:size]


def _signs(seed: int, size: int) -> np.ndarray:
    drawn = torch.randint(256, (size // 8,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    signs: np.ndarray = 1.0 - 2.0 * np.unpackbits(drawn.numpy())
    return signs


def _blocks(size: int) -> Iterator[slice]:
    """Blocks of powers of two, the largest first, of which the last is the smallest there is."""
    start, left = 0, padded(size)
    while left:
        length = 1 << left.bit_length() - 1
        yield slice(start, start + length)
        start, left = start + length, left - length


@cache
def _positive(bits: int) -> tuple[float, ...]:
    """The positive centroids for a normal number, ascending, by Lloyd's steps from evenly spread ones."""
    count = 2 ** (bits - 1)
    found = [(place + 0.5) * 2.5 / count for place in range(count)]
    for _ in range(2000):
        ends = [0.0, *((a + b) / 2 for a, b in pairwise(found)), math.inf]
        found = [_mean_between(low, high) for low, high in pairwise(ends)]
    return tuple(round(value, 12) for value in found)


def _mean_between(low: float, high: float) -> float:
    density = math.exp(-low * low / 2) - math.exp(-high * high / 2)
    return density * math.sqrt(2 / math.pi) / (math.erf(high / math.sqrt(2)) - math.erf(low / math.sqrt(2)))


def _centroids(bits: int) -> np.ndarray:
    positive = np.array(_positive(bits))
    return np.concatenate([-positive[::-1], positive])


def _bounds(bits: int) -> np.ndarray:
    centres = _centroids(bits)
    bounds: np.ndarray = (centres[1:] + centres[:-1]) / 2
    return bounds
