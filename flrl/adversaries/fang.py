"""Fang's attacks: what moves the model against the direction that honest clients would take, as far as a rule lets it.

Fang, Cao, Jia, Gong, "Local Model Poisoning Attacks to Byzantine-Robust Federated Learning", USENIX Security 2020,
arXiv 1911.11815, with full knowledge: all honest updates of the round, and the rule. Sign: there s is the sign of the
change of each weight without an attack, which is that of the mean update here; updates take the place of local models,
whose origin is the global model (as in Shejwalkar and Houmansadr's experiments). Clients count equally.
"""

import math
from typing import Any

import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import Colluder, checked_number
from flrl.aggregation.distances import squared_distances
from flrl.aggregation.krum import krum_scores
from flrl.types import Tensors

_SMALLEST = 1e-5


class FangKrum(Colluder):
    """Sends `-lambda * sign(mean)` with the largest lambda, halved from theorem 1's bound, which Krum chooses."""

    def row(self, honest: Tensor, num_malicious: int, context: AdversaryContext) -> Tensor:
        """The turned signs; with the smallest lambda where Krum never chooses it."""
        signs = honest.mean(dim=0).sign()
        distances = squared_distances(honest)
        squares, along, square = honest.square().sum(dim=1), honest @ signs, float(signs.square().sum())
        size = _bound(distances, squares, num_malicious, honest.shape[1])
        while size > _SMALLEST:
            # The squared distances of all rows, the malicious ones first: |x_i + lambda s|^2 is a polynomial in lambda.
            to_honest = (squares + 2 * size * along + size * size * square).clamp_(min=0)
            whole = distances.new_zeros(num_malicious + len(honest), num_malicious + len(honest))
            whole[num_malicious:, num_malicious:] = distances
            whole[:num_malicious, num_malicious:] = to_honest
            whole[num_malicious:, :num_malicious] = to_honest[:, None]
            if int(krum_scores(whole, min(num_malicious, len(whole) - 1)).argmin()) < num_malicious:
                break
            size /= 2
        return -size * signs


def _bound(distances: Tensor, squares: Tensor, num_malicious: int, size: int) -> float:
    """Theorem 1: an upper bound of lambda."""
    count = len(distances) + num_malicious
    near = max(1, min(len(distances) - 1, count - num_malicious - 2))
    sums = distances.sqrt().sort(dim=1).values[:, 1 : 1 + near].sum(dim=1)
    first = float(sums.min()) / (max(1, count - 2 * num_malicious - 1) * math.sqrt(size))
    return first + float(squares.max().sqrt()) / math.sqrt(size)


class FangTrimmedMean(Colluder):
    """Each number lies beyond the honest ones, on the side against the mean's sign; for trimmed mean and median.

    Each colluder draws its own: where the mean is positive, between `min / b` and `min` if min is positive, else
    between `b * min` and `min`; where it is negative, likewise above the maximum.

    Args:
        factor: b, above 1.
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(self, *, factor: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = checked_number("factor", factor, above=1)

    def row(self, honest: Tensor, num_malicious: int, context: AdversaryContext) -> Tensor:
        """The first colluder's row."""
        return self.collude(honest, honest[:1].expand(num_malicious, -1), {}, context)[0][0]

    def collude(self, honest: Tensor, own: Tensor, state: Tensors, context: AdversaryContext) -> tuple[Tensor, Tensors]:
        """A row of its own for each colluder."""
        signs, low, high = honest.mean(dim=0).sign(), honest.amin(dim=0), honest.amax(dim=0)
        below = torch.where(low > 0, low / self.factor, low * self.factor)
        above = torch.where(high > 0, high * self.factor, high / self.factor)
        share = torch.rand(own.shape, generator=context.generator, dtype=torch.float64).to(honest.device)
        lower, upper = low - share * (low - below), high + share * (above - high)
        return torch.where(signs > 0, lower, torch.where(signs < 0, upper, honest.mean(dim=0))), state
