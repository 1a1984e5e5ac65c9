"""Gradient noise: Gaussian or Laplacian noise that each client adds to its update before it sends it.

Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, section 5.1: a standard deviation of 1e-2
of the gradient stops DLG, 1e-3 does not. `gaussian_noise` differs: the server adds it to the aggregate, so it hides
nothing from the server. Neither bounds what an update can contain: that is `clip_norm`.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from flrl.transforms.base import Transform, check_covers, covered
from flrl.types import ClientUpdate, Context, Metrics, Tensors


class GradientNoise(Transform):
    """Adds independent noise to each number of a client's update.

    Args:
        std: the noise's standard deviation, at least 0, in the units of the update: of a gradient for FedSGD.
        kind: "gaussian" or "laplace".
        covers: "trainable" (the update's trainable part), "update" (with its buffers) or "all" (all vectors).

    Raises:
        ValueError: a setting is invalid.
    """

    fills_zeros = True

    def __init__(
        self, *, std: float, kind: Literal["gaussian", "laplace"] = "gaussian", covers: str = "trainable"
    ) -> None:
        if not 0 <= std < float("inf"):
            raise ValueError(f"strategy.transforms.gradient_noise.std={std}: must be at least 0 and finite")
        if kind not in ("gaussian", "laplace"):
            raise ValueError(f"strategy.transforms.gradient_noise.kind={kind!r}: must be 'gaussian' or 'laplace'")
        check_covers("gradient_noise", covers)
        self.std, self.kind, self.covers = std, kind, covers

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Add noise to the client's update."""
        vectors = dict(update.vectors)
        for name, part in covered(vectors, self.covers, context.layout):
            vectors[name] = vectors[name].clone()
            noise = self._noise(vectors[name][part], context.generator)
            vectors[name][part] += self.std * noise.to(vectors[name].device)
        return replace(update, vectors=vectors), memory, {}

    def _noise(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Noise of standard deviation 1 on the CPU, float64."""
        if self.kind == "gaussian":
            return torch.randn(like.shape, generator=generator, dtype=torch.float64)
        uniform = torch.rand(like.shape, generator=generator, dtype=torch.float64) - 0.5  # its inverse CDF, variance 2
        return -uniform.sign() * torch.log1p(-2 * uniform.abs()) / 2**0.5
