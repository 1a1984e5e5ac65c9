"""Accounting: published values, edges, and noise that keeps a budget."""

import math

import dp_accounting
import pytest
from mpmath import exp as mp_exp
from mpmath import log as mp_log
from mpmath import mp, mpf, quad

from flrl.privacy.accounting import calibrated, epsilon, sampled_gaussian
from flrl.privacy.renyi import renyi, sampled_gaussian_divergence
from flrl.transforms.dp import sampled

PUBLISHED_RDP = [
    (1.5, 0.04, 2250, 1e-5, 7.32911117143),
    (1.3, 150 / 60000, 15 * 400, 1e-5, 0.7242234026),
    (1.0, 100 / 100000, 30 * 1000, 1e-7, 1.4154988495),
]


@pytest.mark.parametrize(("noise", "probability", "count", "delta", "expected"), PUBLISHED_RDP)
def test_renyi_as_published(noise: float, probability: float, count: int, delta: float, expected: float) -> None:
    found = epsilon(sampled_gaussian(noise, probability, count), delta=delta, accountant="rdp")
    assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("noise", "probability", "count", "upper"),
    [
        (0.8, 0.001, 1000, 0.477771),
        (1.5, 0.05, 1000, 6.209969),
        (2.0, 0.2, 100, 5.672056),
        (3.0, 0.05, 20000, 13.961115),
    ],
)
def test_privacy_loss_distributions_as_published(noise: float, probability: float, count: int, upper: float) -> None:
    """Gopi, Lee, Wutschitz, NeurIPS 2021, arXiv 2106.02848: upper bounds, 0.01 above the estimate by construction."""
    found = epsilon(sampled_gaussian(noise, probability, count), delta=1e-6)
    assert found == pytest.approx(upper - 0.01, abs=1e-3)
    assert found < upper


def test_fractional_orders_are_integrals() -> None:
    """The definition, by numerical integration: log E[((1 - q) + q exp((2 z - 1) / (2 s^2)))^a] / (a - 1)."""
    noise, probability, order = mpf("1.5"), mpf("0.04"), mpf("3.9")

    def density(z: mpf) -> mpf:
        ratio = (1 - probability) + probability * mp_exp((2 * z - 1) / (2 * noise**2))
        return mp.npdf(z, 0, noise) * ratio**order

    exact = mp_log(quad(density, mp.linspace(-30, 30, 31))) / (order - 1)
    assert sampled_gaussian_divergence(0.04, 1.5, 3.9) == pytest.approx(float(exact), rel=1e-9)


def test_orders_whose_terms_are_too_large_are_left_to_the_bound() -> None:
    assert sampled_gaussian_divergence(0.01, 0.1, 10.9) == math.inf
    assert epsilon(sampled_gaussian(0.1, 0.01, 1), delta=1e-6, accountant="rdp") < math.inf


def test_renyi_adds_up() -> None:
    one, other = sampled_gaussian(1.5, 0.04, 7), sampled_gaussian(2.0, 0.1, 3)
    both = dp_accounting.ComposedDpEvent([one, dp_accounting.SelfComposedDpEvent(other, 2)])
    expected = renyi(one, [2.5, 4]) + 2 * renyi(other, [2.5, 4])
    assert renyi(both, [2.5, 4]).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    # The Gaussian mechanism itself: order over twice the squared noise multiplier.
    assert renyi(dp_accounting.GaussianDpEvent(2.0), [1.5, 4]).tolist() == pytest.approx([1.5 / 8, 0.5])


@pytest.mark.parametrize("accountant", ["pld", "rdp"])
def test_edges(accountant: str) -> None:
    kwargs = {"delta": 1e-6, "accountant": accountant}
    assert epsilon(sampled_gaussian(1.0, 0.0, 10), **kwargs) == 0.0
    assert epsilon(sampled_gaussian(1.0, 0.1, 0), **kwargs) == 0.0
    assert epsilon(sampled_gaussian(0.0, 0.1, 10), **kwargs) == math.inf
    assert epsilon(dp_accounting.NonPrivateDpEvent(), **kwargs) == math.inf
    for probability in (0.1, 1.0):
        assert epsilon(sampled("laplace", 0.0, probability, 10), **kwargs) == math.inf
    assert epsilon(sampled("laplace", 2.0, 1.0, 10), **kwargs) <= 5.0 * (1.05 if accountant == "rdp" else 1.0)


@pytest.mark.parametrize("accountant", [pytest.param("pld", marks=pytest.mark.slow), "rdp"])
def test_calibrated_noise_keeps_the_budget_and_a_little_less_does_not(accountant: str) -> None:
    def event(noise: float) -> dp_accounting.DpEvent:
        return sampled_gaussian(noise, 0.1, 5)

    noise = calibrated(event, budget=2.0, delta=1e-5, accountant=accountant)
    assert epsilon(event(noise), delta=1e-5, accountant=accountant) <= 2.0
    assert epsilon(event(noise - 1e-3), delta=1e-5, accountant=accountant) > 2.0


def test_little_noise_is_counted_at_once() -> None:
    """Distributions of so much loss would take minutes, or more memory than there is."""
    for noise, probability in ((0.01, 0.5), (1e-9, 0.6), (1e-9, 1.0)):
        event = sampled_gaussian(noise, probability, 1)
        assert 1000 < epsilon(event, delta=1e-5) == epsilon(event, delta=1e-5, accountant="rdp")


def test_invalid_settings_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"privacy.accountant=rdp: the Renyi divergences of Laplace noise are not known"
    ):
        epsilon(sampled("laplace", 1.0, 0.5, 3), delta=1e-5, accountant="rdp")
    event = sampled_gaussian(1.0, 0.1, 10)
    with pytest.raises(ValueError, match=r"privacy.delta=0: must be above 0 and below 1"):
        epsilon(event, delta=0)
    with pytest.raises(ValueError, match=r"privacy.accountant='gdp': must be 'pld' or 'rdp'"):
        epsilon(event, delta=1e-5, accountant="gdp")
    with pytest.raises(ValueError, match=r"privacy.epsilon=0: must be positive and finite"):
        calibrated(lambda _: event, budget=0, delta=1e-5)
    with pytest.raises(ValueError, match=r"privacy.epsilon=2: no noise keeps it at privacy.delta=1e-05"):
        calibrated(lambda _: dp_accounting.NonPrivateDpEvent(), budget=2, delta=1e-5)
