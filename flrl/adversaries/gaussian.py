"""Gaussian noise: a malicious client sends random numbers.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries", NeurIPS 2017, arXiv 1703.02757 ("Gaussian
Byzantine"). Knows: nothing; with `add` its own update. Sign: none. Only trainable numbers are noisy: buffers, variances
of BatchNorm for instance, are sent as they were trained. All draw their own noise, by (seed, round, client).
"""

from typing import Any

import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import UpdateAttack, checked_number


class Gaussian(UpdateAttack):
    """Sends normal noise instead of the update, or added to it.

    Args:
        mean: of the noise, in the units of the update.
        std: its standard deviation, at least 0.
        add: add the noise to the own update.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(self, *, mean: float = 0.0, std: float = 1.0, add: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.mean = checked_number("mean", mean)
        self.std = checked_number("std", std, least=0)
        self.add = add

    def changed(self, own: Tensor, context: AdversaryContext) -> Tensor:
        """The noise."""
        drawn = noise(own, context, std=self.std, mean=self.mean)
        count = context.layout.num_trainable
        return own + drawn if self.add else torch.cat([drawn[:count], own[count:]])


def noise(like: Tensor, context: AdversaryContext, *, std: float, mean: float = 0.0) -> Tensor:
    """Normal noise for the trainable part, zeros for buffers, float64 `[d]`."""
    count = context.layout.num_trainable
    drawn = torch.zeros(len(like), dtype=torch.float64)
    drawn[:count] = mean + std * torch.randn(count, generator=context.generator, dtype=torch.float64)
    return drawn.to(like.device)
