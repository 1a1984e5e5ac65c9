"""Renyi bounds of integer noise: above the true divergence, which is summed over the integers, and not far above."""

import math

import numpy as np
import pytest
from dp_accounting import ComposedDpEvent, SelfComposedDpEvent
from dp_accounting.pld import privacy_loss_distribution
from scipy.stats import skellam

from flrl.privacy import epsilon, sampled_gaussian
from flrl.privacy.accounting import ORDERS
from flrl.privacy.discrete import (
    DiscreteGaussianSumEvent,
    SkellamEvent,
    integer_l1,
    renyi_only,
    rounded_l2,
    sum_of_gaussians_gap,
)
from flrl.privacy.renyi import renyi


def divergence(masses: np.ndarray, shift: int, order: float) -> float:
    """The Renyi divergence of a distribution on the integers from itself, shifted."""
    p, q = masses[shift:], masses[:-shift]
    seen = (p > 1e-290) & (q > 1e-290)
    terms = order * np.log(p[seen]) + (1 - order) * np.log(q[seen])
    return math.log(np.exp(terms).sum()) / (order - 1)


def sum_of_gaussians(deviation: float, shares: int) -> np.ndarray:
    k = np.arange(-60, 61)
    one = np.exp(-(k**2) / 2 / deviation**2)
    masses = one = one / one.sum()
    for _ in range(shares - 1):
        masses = np.convolve(masses, one)
    return masses


@pytest.mark.parametrize(("deviation", "shares"), [(0.5, 3), (0.6, 10), (0.8, 5), (1.0, 2), (1.0, 10), (2.0, 4)])
def test_the_bound_of_summed_discrete_gaussians_is_above_the_truth_by_tau_at_most(
    deviation: float, shares: int
) -> None:
    masses, tau = sum_of_gaussians(deviation, shares), sum_of_gaussians_gap(deviation, shares)
    for shift in (1, 2):
        event = DiscreteGaussianSumEvent(shift, shift, deviation, shares, shares, 1)
        for order in (1.5, 2, 8):
            bound, true = event.divergence(order), divergence(masses, shift, order)
            gaussian = order / 2 * shift**2 / (shares * deviation**2)
            assert true <= bound * (1 + 1e-9)
            assert gaussian <= bound <= gaussian + tau + 1e-12
            assert bound - true <= 1.2 * tau + 1e-9


@pytest.mark.parametrize("variance", [0.5, 1, 4, 10, 100])
def test_the_bound_of_skellam_noise_is_above_the_truth(variance: float) -> None:
    masses = np.exp(skellam.logpmf(np.arange(-1500, 1501), variance / 2, variance / 2))
    for shift in (1, 2):
        event = SkellamEvent(shift, shift, variance)
        for order in (2, 4, 8):
            bound, true = event.divergence(order), divergence(masses, shift, order)
            assert true <= bound
            if variance == 100:
                assert bound <= 1.025 * true
            if variance == 10:
                assert bound <= 1.45 * true


def test_tau_is_by_hand() -> None:
    assert sum_of_gaussians_gap(1.0, 1) == 0
    assert sum_of_gaussians_gap(1.0, 2) == pytest.approx(10 * math.exp(-(math.pi**2)), rel=1e-12)
    three = 10 * (math.exp(-(math.pi**2) / 4) + math.exp(-(math.pi**2) / 3))
    assert sum_of_gaussians_gap(0.5, 3) == pytest.approx(three, rel=1e-12)


def test_the_three_bounds_of_the_proposition_are_by_hand() -> None:
    """With l1 = 6, l2 = 3 and sigma = 0.5 of 4 shares the sum has sigma = 1; each bound is the least somewhere."""
    tau = sum_of_gaussians_gap(0.5, 4)
    one = DiscreteGaussianSumEvent(6, 3, 0.5, 4, 4, 4).divergence(2)
    assert one == pytest.approx(min(9 + 4 * tau, 9 + 12 * tau + 4 * tau**2, (3 + 2 * tau) ** 2))
    assert one == pytest.approx(9 + 4 * tau)
    tau = sum_of_gaussians_gap(1.5, 4)
    sparse = DiscreteGaussianSumEvent(1, 1, 1.5, 4, 4, 10**6).divergence(2)
    assert sparse == pytest.approx(1 / 9 + 2 * tau / 3 + 10**6 * tau**2, rel=1e-12)
    dense = DiscreteGaussianSumEvent(1e3, 1, 1.5, 4, 4, 10**6).divergence(2)
    assert dense == pytest.approx((1 / 3 + 1e3 * tau) ** 2, rel=1e-12)


def test_skellam_is_by_hand() -> None:
    """Order 2, l1 = 6, l2 = 3, variance 9: 1 + min((27 + 36) / 324, 1), and of variance 2: 4.5 + min(63 / 16, 4.5)."""
    assert SkellamEvent(6, 3, 9).divergence(2) == pytest.approx(1 + 63 / 324)
    assert SkellamEvent(6, 3, 2).divergence(2) == pytest.approx(4.5 + 63 / 16)
    assert SkellamEvent(6, 3, 1).divergence(2) == pytest.approx(9 + 9)
    assert SkellamEvent(6, 3, 9).divergence(1.3) == SkellamEvent(6, 3, 9).divergence(2)


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_on_a_fine_grid_epsilon_is_that_of_the_gaussian(scale: float) -> None:
    """A sensitivity of 1 is `scale` steps, 100 clients add the noise; both papers: the gap closes with the scale."""
    multiplier, count = 2.0, 20
    plain = epsilon(sampled_gaussian(multiplier, 1.0, count), delta=1e-5, accountant="rdp")
    l1, deviation = scale * 10, multiplier * scale / 10
    for event in (
        DiscreteGaussianSumEvent(l1, scale, deviation, 100, 100, 100),
        SkellamEvent(l1, scale, 100 * deviation**2),
    ):
        found = epsilon(SelfComposedDpEvent(event, count), delta=1e-5, accountant="rdp")
        wrong = 1e-9 if isinstance(event, DiscreteGaussianSumEvent) else 100 / scale
        # Skellam's fractional orders count as the next whole ones, which moves the least of the orders.
        assert plain * (1 - 1e-9) <= found <= plain * (1 + wrong + (0.02 if isinstance(event, SkellamEvent) else 0))


def test_one_discrete_gaussian_is_as_its_privacy_loss_distribution_says() -> None:
    """dp-accounting counts a single discrete Gaussian of one number by its exact privacy loss distribution."""
    exact = privacy_loss_distribution.from_discrete_gaussian_mechanism(3.0).self_compose(10)
    tight = exact.get_epsilon_for_delta(1e-5)
    found = epsilon(SelfComposedDpEvent(DiscreteGaussianSumEvent(1, 1, 3.0, 1, 1, 1), 10), delta=1e-5, accountant="rdp")
    assert tight < found < 1.2 * tight


def test_missing_shares_cost_privacy() -> None:
    all_there, some = (DiscreteGaussianSumEvent(2, 1, 1.0, shares, 10, 4).divergence(4) for shares in (10, 8))
    tau = sum_of_gaussians_gap(1.0, 10)
    assert some - all_there == pytest.approx(2 / 8 - 2 / 10, abs=4 * tau)
    assert SkellamEvent(1, 1, 0).divergence(2) == DiscreteGaussianSumEvent(1, 1, 0, 1, 1, 1).divergence(2) == math.inf


def test_events_compose() -> None:
    first, second = SkellamEvent(2, 1, 50), DiscreteGaussianSumEvent(2, 1, 2.0, 4, 4, 4)
    both = ComposedDpEvent([SelfComposedDpEvent(first, 3), second])
    assert renyi(both, ORDERS) == pytest.approx(3 * renyi(first, ORDERS) + renyi(second, ORDERS))
    assert renyi(first, [2.0])[0] == first.divergence(2)
    assert renyi_only(both)
    assert not renyi_only(sampled_gaussian(1.0, 0.1, 3))


def test_privacy_loss_distributions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^privacy\.accountant=pld: .* privacy\.accountant=rdp$"):
        epsilon(SelfComposedDpEvent(SkellamEvent(1, 1, 9), 2), delta=1e-5)


def test_norms_after_rounding_are_by_hand() -> None:
    assert rounded_l2(3, 16, 0.0) == 7
    assert rounded_l2(3, 16, math.exp(-0.5)) == pytest.approx(math.sqrt(9 + 4 + 3 + 2))
    assert rounded_l2(1, 1, 1e-300) == 2  # the certain bound is the smaller one
    assert integer_l1(3, 4) == 6
    assert integer_l1(3, 100) == 9
