"""The (epsilon, delta) of composed mechanisms, by the accountants of `dp-accounting`.

An event is a `dp_accounting.DpEvent`: what was released, without the numbers. Neighbours differ by one unit, a client
or a sample, which is added or removed. What is needed of `dp-accounting` is imported where it is used: it takes two
seconds, and most runs have no mechanism.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from flrl.privacy.discrete import renyi_only
from flrl.privacy.renyi import renyi

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Accountant = Literal["pld", "rdp"]
"""How events are composed: by privacy loss distributions, the tighter, or by Renyi differential privacy."""

ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64))
"""The orders of Renyi differential privacy: 1.1 to 10.9 in steps of 0.1, and 12 to 63."""

_DISCRETIZATION = 1e-4
_TOLERANCE = 1e-4


def sampled_gaussian(noise_multiplier: float, sampling_probability: float, count: int) -> "DpEvent":
    """So many releases of a sum with Gaussian noise, over units that Poisson sampling has chosen.

    Args:
        noise_multiplier: the noise's standard deviation over the sensitivity, at least 0.
        sampling_probability: the probability of each unit in each release, in [0, 1].
        count: number of releases, at least 0.
    """
    import dp_accounting

    one = dp_accounting.GaussianDpEvent(noise_multiplier)
    if sampling_probability < 1:
        one = dp_accounting.PoissonSampledDpEvent(sampling_probability, one)
    return dp_accounting.SelfComposedDpEvent(one, count)


def epsilon(event: "DpEvent", *, delta: float, accountant: Accountant = "pld") -> float:
    """The smallest epsilon that an accountant gives for an event; infinite if it gives none; above 100 it is Renyi's.

    Args:
        event: all that was released.
        delta: in (0, 1).
        accountant: "pld" or "rdp".

    Raises:
        ValueError: `delta` or `accountant` is invalid.
        dp_accounting.UnsupportedEventError: the accountant does not know a part of the event.

    Example:
        >>> round(epsilon(sampled_gaussian(1.5, 0.04, 2250), delta=1e-5, accountant="rdp"), 6)
        7.329111
    """
    import dp_accounting
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import compute_epsilon

    if not 0 < delta < 1:
        raise ValueError(f"privacy.delta={delta}: must be above 0 and below 1")
    if isinstance(event, dp_accounting.SelfComposedDpEvent) and event.count == 0:
        return 0.0
    if accountant == "rdp":
        return float(compute_epsilon(ORDERS, renyi(event, ORDERS).tolist(), delta)[0])
    if accountant != "pld":
        raise ValueError(f"privacy.accountant={accountant!r}: must be 'pld' or 'rdp'")
    check_counted(event)
    large = beyond_distributions(event, delta)
    if large is not None:
        return large
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    counting = PLDAccountant(relation, value_discretization_interval=_DISCRETIZATION)
    return float(counting.compose(event).get_epsilon(delta))


def beyond_distributions(event: "DpEvent", delta: float) -> float | None:
    """Renyi's epsilon of an event where it is above 100, for which distributions would take minutes; else None."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.rdp import RdpAccountant, compute_epsilon

    few = (2.0, 8.0, 32.0)
    if not RdpAccountant(few, NeighboringRelation.ADD_OR_REMOVE_ONE).supports(event):
        return None
    if not compute_epsilon(few, renyi(event, few).tolist(), delta)[0] > 100:
        return None
    found = float(compute_epsilon(ORDERS, renyi(event, ORDERS).tolist(), delta)[0])
    return found if found > 100 else None


def check_counted(event: "DpEvent") -> None:
    """Raise ValueError for an event whose privacy loss distribution is not known."""
    if renyi_only(event):
        raise ValueError(
            "privacy.accountant=pld: of integer noise in shares only Renyi divergences are bounded: "
            "privacy.accountant=rdp"
        )


def calibrated(
    event: "Callable[[float], DpEvent]",
    *,
    budget: float,
    delta: float,
    accountant: Accountant = "pld",
) -> float:
    """The smallest noise multiplier, to 2e-4 and down to 0.016, with which an event stays within a budget.

    Args:
        event: the event as a function of the noise multiplier.
        budget: the largest epsilon, positive.
        delta: in (0, 1).
        accountant: "pld" or "rdp".

    Raises:
        ValueError: the budget is invalid, or no noise multiplier up to 1e6 keeps it.
    """
    from scipy.optimize import brentq

    if not 0 < budget < math.inf:
        raise ValueError(f"privacy.epsilon={budget}: must be positive and finite")

    def over(noise_multiplier: float) -> float:
        found = epsilon(event(noise_multiplier), delta=delta, accountant=accountant)
        return min(found, 1e6) - budget

    low = high = 1.0
    while over(high) > 0:
        low, high = high, 2 * high
        if high > 1e6:
            raise ValueError(f"privacy.epsilon={budget}: no noise keeps it at privacy.delta={delta}")
    while low == high or over(low) <= 0:
        low, high = low / 2, low
        if low < 0.01:
            return high
    found = float(brentq(over, low, high, xtol=_TOLERANCE))
    return found if over(found) <= 0 else min(high, found + 2 * _TOLERANCE)
