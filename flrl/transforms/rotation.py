"""A random rotation that spreads a vector's norm evenly over its numbers: Hadamard matrices and random signs."""

import torch
from torch import Tensor

from flrl.kernels import hadamard


def rotated(vector: Tensor, seed: int) -> Tensor:
    """The vector rotated, float64 `[n]`; the same rotation for the same n and seed.

    With K the largest power of two up to n: random signs and a Hadamard matrix of size K on the first K numbers, then
    others on the last K. Each number is then a sum with random signs, sub-Gaussian with variance norm^2 / K. Papers pad
    to the next power of two instead; here no number is added.
    """
    found = vector.clone()
    for part, signs in _stages(len(vector), seed):
        found[part] = _turned(found[part] * signs)
    return found


def rotated_back(vector: Tensor, seed: int) -> Tensor:
    """The vector that `rotated` gives this one for."""
    found = vector.clone()
    for part, signs in reversed(_stages(len(vector), seed)):
        found[part] = _turned(found[part]) * signs
    return found


def width(size: int) -> int:
    """The largest power of two up to a vector's size."""
    return 1 << size.bit_length() - 1


def _turned(vector: Tensor) -> Tensor:
    return torch.from_numpy(hadamard(vector.numpy()))


def _stages(size: int, seed: int) -> list[tuple[slice, Tensor]]:
    if not size:
        return []
    generator, count = torch.Generator().manual_seed(seed), width(size)
    parts = [slice(0, count), slice(size - count, size)][: 1 if count == size else 2]
    signs = torch.randint(0, 2, (len(parts), count), generator=generator).double().mul_(2).sub_(1)
    return list(zip(parts, signs, strict=True))
