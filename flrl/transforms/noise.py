"""Noise of differential privacy: a function of a seeded generator, or drawn from the operating system."""

import math
import os

import numpy as np
import torch
from torch import Tensor


def normal(size: int, generator: torch.Generator | None) -> Tensor:
    """Independent normal numbers of mean 0 and variance 1, float64 `[size]`.

    Args:
        size: how many.
        generator: draws them; None: the operating system does, by the method of Box and Muller.
    """
    if generator is not None:
        return torch.randn(size, generator=generator, dtype=torch.float64)
    half = (size + 1) // 2
    radius, angle = np.sqrt(-2 * np.log(uniforms(half))), 2 * math.pi * uniforms(half)
    return torch.from_numpy(np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size])


def laplace(size: int, generator: torch.Generator | None) -> Tensor:
    """Independent numbers of Laplace's distribution of scale 1, whose variance is 2; arguments as for `normal`."""
    if generator is not None:
        uniform = 1 - torch.rand(2 * size, generator=generator, dtype=torch.float64)
    else:
        uniform = torch.from_numpy(uniforms(2 * size))
    exponential = -uniform.log_()
    return exponential[:size] - exponential[size:]


def uniforms(size: int) -> np.ndarray:
    """Numbers in (0, 1] from the operating system's generator, float64 `[size]`, in steps of 2^-53."""
    bits = np.frombuffer(os.urandom(8 * size), np.uint64) >> np.uint64(11)
    return (bits + np.uint64(1)).astype(np.float64) * 2.0**-53
