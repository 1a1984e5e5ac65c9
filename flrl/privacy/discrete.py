"""Renyi differential privacy of integer noise that many clients add to a sum: discrete Gaussian and Skellam.

Neighbours differ in one client, whose contribution is replaced by zeros; it adds its share of the noise in both.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dp_accounting import DpEvent


class RenyiEvent(ABC):
    """An event, beside those of dp-accounting, of which nothing is known but a bound on its Renyi divergences."""

    @abstractmethod
    def divergence(self, order: float) -> float:
        """A bound on the Renyi divergence of neighbours, of an order above 1."""


def renyi_only(event: "DpEvent") -> bool:
    """Whether a part of an event is a `RenyiEvent`, which privacy loss distributions cannot count."""
    from dp_accounting import ComposedDpEvent, SelfComposedDpEvent

    if isinstance(event, SelfComposedDpEvent):
        return renyi_only(event.event)
    if isinstance(event, ComposedDpEvent):
        return any(renyi_only(each) for each in event.events)
    return isinstance(event, RenyiEvent)


@dataclass(frozen=True)
class DiscreteGaussianSumEvent(RenyiEvent):
    """The sum of integer vectors, each with discrete Gaussian noise on every number.

    Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation",
    ICML 2021, arXiv 2102.06387, proposition 14 and theorem 1. The sum of discrete Gaussians is no discrete Gaussian;
    tau says how far it is from one at most.

    Attributes:
        l1, l2: the largest L1 and L2 norms of a vector.
        deviation: the parameter sigma of each client's noise, which is its standard deviation but for small ones.
        shares: the smallest number of clients whose noise is in the sum.
        most_shares: the largest number.
        size: numbers in a vector.
    """

    l1: float
    l2: float
    deviation: float
    shares: int
    most_shares: int
    size: int

    def divergence(self, order: float) -> float:
        """The least of the proposition's three bounds."""
        if self.deviation == 0:
            return math.inf
        sigma = math.sqrt(self.shares) * self.deviation
        l1, l2, tau = self.l1 / sigma, self.l2 / sigma, sum_of_gaussians_gap(self.deviation, self.most_shares)
        return min(
            order / 2 * l2**2 + tau * self.size,
            order / 2 * (l2**2 + 2 * l1 * tau + tau**2 * self.size),
            order / 2 * (l2 + math.sqrt(self.size) * tau) ** 2,
        )


def sum_of_gaussians_gap(deviation: float, shares: int) -> float:
    """The tau of theorem 1: 10 times the sum of exp(-2 pi^2 sigma^2 k / (k + 1)) over k from 1 to shares - 1."""
    k = np.arange(1, shares)
    return float(10 * np.exp(-2 * math.pi**2 * deviation**2 * k / (k + 1)).sum())


@dataclass(frozen=True)
class SkellamEvent(RenyiEvent):
    """The sum of integer vectors with Skellam noise on every number.

    Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning", NeurIPS 2021, arXiv
    2110.04995, the bound on Renyi divergences of whole orders; a fractional order is counted as the next whole one.
    Sums of Skellam variables are Skellam variables.

    Attributes:
        l1, l2: the largest L1 and L2 norms of a vector.
        variance: of the sum's noise, at least.
    """

    l1: float
    l2: float
    variance: float

    def divergence(self, order: float) -> float:
        """The paper's bound."""
        if self.variance == 0:
            return math.inf
        order, mu = math.ceil(order), self.variance
        further = min(((2 * order - 1) * self.l2**2 + 6 * self.l1) / (4 * mu**2), 3 * self.l1 / (2 * mu))
        return order * self.l2**2 / (2 * mu) + further


def divergences(event: RenyiEvent, orders: Sequence[float]) -> np.ndarray:
    """The bounds of each order, float64 `[orders]`."""
    return np.array([event.divergence(order) for order in orders])


def rounded_l2(norm: float, size: int, bias: float) -> float:
    """The largest L2 norm of a vector of that norm, after conditional randomised rounding to integers.

    Theorem 1 of arXiv 2102.06387; rounding is repeated until it holds.

    Args:
        norm: of the vector, in units of the grid.
        size: its numbers.
        bias: beta in [0, 1): a rounding is repeated with at most that probability; 0: none is.
    """
    certain = norm + math.sqrt(size)
    if bias == 0:
        return certain
    likely = norm**2 + size / 4 + math.sqrt(2 * math.log(1 / bias)) * (norm + math.sqrt(size) / 2)
    return min(certain, math.sqrt(likely))


def integer_l1(l2: float, size: int) -> float:
    """The largest L1 norm of integer vectors of an L2 norm: at most the square of that, besides its sqrt(size)-fold."""
    return l2 * min(math.sqrt(size), l2)
