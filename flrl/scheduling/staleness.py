"""How much an update counts that started from an old model: s(tau) of FedAsync, for tau steps of the server since then.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv 1903.03934, section 5.2; FedBuff's is the
polynomial with exponent 0.5.
"""

from abc import ABC, abstractmethod


class Staleness(ABC):
    """A function of the staleness, with the value 1 at 0."""

    @abstractmethod
    def __call__(self, tau: int) -> float:
        """The weight of an update that is `tau` steps of the server old."""


class ConstantStaleness(Staleness):
    """1, however old an update is."""

    def __call__(self, tau: int) -> float:
        """1."""
        return 1.0


class Polynomial(Staleness):
    """`(tau + 1) ** -exponent`.

    Args:
        exponent: at least 0.

    Raises:
        ValueError: it is negative.
    """

    def __init__(self, *, exponent: float = 0.5) -> None:
        if not exponent >= 0:
            raise ValueError(f"strategy.schedule.staleness.exponent={exponent}: must be at least 0")
        self.exponent = exponent

    def __call__(self, tau: int) -> float:
        """The weight of an update that is `tau` steps of the server old."""
        return float((tau + 1) ** -self.exponent)


class Hinge(Staleness):
    """1 up to `free` steps, then `1 / (slope * (tau - free) + 1)`.

    Args:
        slope: a in the paper, at least 0.
        free: b in the paper, at least 0.

    Raises:
        ValueError: one of them is negative.
    """

    def __init__(self, *, slope: float = 10.0, free: int = 4) -> None:
        if not slope >= 0:
            raise ValueError(f"strategy.schedule.staleness.slope={slope}: must be at least 0")
        if free < 0:
            raise ValueError(f"strategy.schedule.staleness.free={free}: must be at least 0")
        self.slope, self.free = slope, free

    def __call__(self, tau: int) -> float:
        """The weight of an update that is `tau` steps of the server old."""
        return 1.0 if tau <= self.free else 1.0 / (self.slope * (tau - self.free) + 1.0)
