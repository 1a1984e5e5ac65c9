"""Gaussian noise, added on the server to the aggregate."""

import torch

from flrl.transforms.base import Transform, check_covers, covered
from flrl.types import Context, Metrics, Tensors


class GaussianNoise(Transform):
    """Adds independent normal noise to each number.

    Args:
        std: the noise's standard deviation, at least 0, in the units of the update.
        covers: "trainable" (the update's trainable part), "update" (with its buffers) or "all" (all vectors).

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, std: float, covers: str = "trainable") -> None:
        if not 0 <= std < float("inf"):
            raise ValueError(f"strategy.transforms.gaussian_noise.std={std}: must be at least 0 and finite")
        check_covers("gaussian_noise", covers)
        self.std, self.covers = std, covers

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """Add noise to the aggregate."""
        noisy = dict(vectors)
        for name, part in covered(vectors, self.covers, context.layout):
            noisy[name] = vectors[name].clone()
            numbers = noisy[name][part]
            noise = torch.randn(numbers.shape, generator=context.generator, dtype=numbers.dtype)
            numbers.add_(noise.to(numbers.device), alpha=self.std)
        return noisy, state, {"std": self.std}
