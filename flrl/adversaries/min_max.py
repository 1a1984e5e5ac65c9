"""Min-max and min-sum: the honest mean, as far off as honest updates are from each other.

Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning Attacks and Defenses for Federated
Learning", NDSS 2021: the row is `mean + gamma * perturbation` with the largest gamma for which its distances are within
bounds. The paper searches for gamma; here it is the root of a quadratic equation, to which that search converges.
Knows: all honest updates of the round. Sign: perturbations point away from the mean (`unit`: minus its direction,
`sign`: minus its signs) or are minus the deviation (`std`, unbiased), so gamma is positive. Clients count equally.
"""

from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from flrl.adversaries.alie import std_of
from flrl.adversaries.base import AdversaryContext
from flrl.adversaries.updates import Colluder
from flrl.aggregation.distances import squared_distances


class _Farthest(Colluder):
    """The common part of both.

    Args:
        perturbation: "unit", "std" or "sign".
        options: as for `flrl.adversaries.Adversary`.
    """

    def __init__(self, *, perturbation: Literal["unit", "std", "sign"] = "std", **options: Any) -> None:
        super().__init__(**options)
        if perturbation not in ("unit", "std", "sign"):
            raise ValueError(f"adversary.perturbation={perturbation!r}: must be 'unit', 'std' or 'sign'")
        self.perturbation = perturbation

    def row(self, honest: Tensor, num_malicious: int, context: AdversaryContext) -> Tensor:
        """The mean, moved as far as the bound allows."""
        mean = honest.mean(dim=0)
        direction = self._direction(honest, mean)
        square = float(direction.square().sum())
        return mean + self.gamma(honest - mean, direction, square) * direction if square else mean

    def _direction(self, honest: Tensor, mean: Tensor) -> Tensor:
        if self.perturbation == "std":
            return -std_of(honest)
        return -mean.sign() if self.perturbation == "sign" else -torch.nn.functional.normalize(mean, dim=0)

    @abstractmethod
    def gamma(self, centred: Tensor, direction: Tensor, square: float) -> float:
        """The largest factor within the bound.

        Args:
            centred: the honest rows minus their mean, `[h, d]`.
            direction: `[d]`.
            square: its squared norm, positive.
        """


class MinMax(_Farthest):
    """No farther from any honest update than the two honest ones that are farthest from each other.

    Of (0), (2), (4) with `perturbation=unit` it is 0: the mean moved down to the farthest point that is 4 from 4.
    """

    def gamma(self, centred: Tensor, direction: Tensor, square: float) -> float:
        """For each honest row the root of `|gamma p - c|^2 = D^2`; the smallest."""
        bound = squared_distances(centred).max()
        along = centred @ direction
        roots = along.square() - square * (centred.square().sum(dim=1) - bound)
        return max(0.0, float(((along + roots.clamp_(min=0).sqrt()) / square).min()))


class MinSum(_Farthest):
    """Its squared distances from the honest updates sum up to no more than those of any honest one."""

    def gamma(self, centred: Tensor, direction: Tensor, square: float) -> float:
        """The sum of squared distances from the moved mean is `h gamma^2 |p|^2` plus that from the mean."""
        bound = squared_distances(centred).sum(dim=1).max()
        left = float(bound - centred.square().sum())
        return float((max(0.0, left) / (len(centred) * square)) ** 0.5)
