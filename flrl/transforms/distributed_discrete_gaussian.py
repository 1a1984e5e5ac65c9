"""The distributed discrete Gaussian mechanism (Kairouz, Liu, Steinke, ICML 2021, arXiv 2102.06387)."""

import torch
from torch import Tensor

from flrl.privacy.discrete import DiscreteGaussianSumEvent, RenyiEvent, integer_l1
from flrl.transforms.discrete_noise import DiscreteNoise, Grid
from flrl.transforms.integer_noise import discrete_gaussian


class DistributedDiscreteGaussian(DiscreteNoise):
    """Clients clip, rotate and round their updates, and add discrete Gaussian noise: see `DiscreteNoise`."""

    name = "distributed_discrete_gaussian"

    def noise(self, deviation: float, size: int, generator: torch.Generator | None) -> Tensor:
        """A client's share of the noise."""
        return discrete_gaussian(deviation, size, generator)

    def event(self, grid: Grid) -> RenyiEvent:
        """What a round releases: a sum with the noise of at least `grid.shares` clients."""
        return DiscreteGaussianSumEvent(
            l1=integer_l1(grid.l2, grid.size),
            l2=grid.l2,
            deviation=grid.deviation,
            shares=grid.shares,
            most_shares=grid.clients,
            size=grid.size,
        )
