"""Perplexity as a torchmetrics object that keeps only counts, so that its parts can be joined exactly."""

import torch
from torch import Tensor
from torchmetrics import Metric

_UNIT = 2.0**24


class Perplexity(Metric):
    """e to the mean negative log-likelihood of all predicted symbols.

    Log-likelihoods are added as multiples of 2^-24, of which the sum over a batch is rounded: it does not depend on the
    order of batches, nor on who evaluated which. A batch whose sum is not finite makes the result NaN.

    Example:
        >>> perplexity = Perplexity()
        >>> perplexity.update(torch.tensor(0.5).log().neg() * 3, 3)
        >>> float(perplexity.compute())
        2.0
    """

    full_state_update = False
    higher_is_better = False
    nats: Tensor
    symbols: Tensor
    broken: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("nats", "symbols", "broken"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, symbols: int) -> None:
        """Add a batch: the sum of its negative log-likelihoods in nats, and of how many symbols."""
        sound = torch.isfinite(nats)
        self.nats += torch.where(sound, nats.double() * _UNIT, 0.0).round().to(torch.int64)
        self.symbols += symbols
        self.broken += (~sound).to(torch.int64)

    def compute(self) -> Tensor:
        """The perplexity, at least 1; NaN if there was no symbol, or a batch was not finite."""
        mean = self.nats.double() / _UNIT / self.symbols
        return torch.where(self.broken > 0, torch.nan, mean.exp()).float()
