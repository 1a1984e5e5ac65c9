"""The Skellam mechanism (Agarwal, Kairouz, Liu, NeurIPS 2021, arXiv 2110.04995)."""

import torch
from torch import Tensor

from flrl.privacy.discrete import RenyiEvent, SkellamEvent, integer_l1
from flrl.transforms.discrete_noise import DiscreteNoise, Grid
from flrl.transforms.integer_noise import skellam


class Skellam(DiscreteNoise):
    """Clients clip, rotate and round their updates, and add Skellam noise: see `DiscreteNoise`."""

    name = "skellam"

    def noise(self, deviation: float, size: int, generator: torch.Generator | None) -> Tensor:
        """A client's share of the noise."""
        return skellam(deviation, size, generator)

    def event(self, grid: Grid) -> RenyiEvent:
        """What a round releases: a sum with the noise of at least `grid.shares` clients."""
        return SkellamEvent(integer_l1(grid.l2, grid.size), grid.l2, grid.shares * grid.deviation**2)
