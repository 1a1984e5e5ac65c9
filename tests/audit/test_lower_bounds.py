"""Lower bounds of epsilon: values by hand and by the paper, and mechanisms whose epsilon is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from flrl.audit.lower_bounds import (
    covers,
    epsilon_of_guesses,
    epsilon_of_rates,
    many_runs,
    one_run,
    p_value,
    right_guesses,
)


def test_all_right_guesses_have_the_probability_of_as_many_coins() -> None:
    for epsilon, guesses in ((0.0, 1), (1.0, 7), (2.5, 40)):
        p = math.exp(epsilon) / (1 + math.exp(epsilon))
        value = p_value(epsilon, correct=guesses, guesses=guesses, canaries=guesses)
        assert value == pytest.approx(p**guesses, rel=1e-12)


@pytest.mark.parametrize("guesses", [5, 10, 100, 1000])
def test_all_right_guesses_refute_the_logit_of_the_root(guesses: int) -> None:
    q = 0.05 ** (1 / guesses)
    found = epsilon_of_guesses(correct=guesses, guesses=guesses, canaries=guesses, confidence=0.95)
    assert found == pytest.approx(math.log(q / (1 - q)), abs=1e-7)


def test_the_p_value_with_delta_by_hand() -> None:
    # r = 3, v = 2, epsilon = 0: W is 0 to 3 with 1, 3, 3, 1 of 8; P[W >= 2] = 1/2; the maximum of
    # P[2 > W >= 1] = 3/8 and P[2 > W >= 0] / 2 = 1/4 is 3/8; 2 m delta = 0.2.
    assert p_value(0.0, correct=2, guesses=3, canaries=10, delta=0.01) == pytest.approx(0.5 + 0.2 * 3 / 8, rel=1e-12)
    # v = 3: 3/8, (3/8 + 3/8) / 2 and (7/8) / 3 for i = 1, 2, 3.
    assert p_value(0.0, correct=3, guesses=3, canaries=10, delta=0.01) == pytest.approx(1 / 8 + 0.2 * 3 / 8, rel=1e-12)
    assert p_value(0.0, correct=0, guesses=3, canaries=10, delta=0.5) == 1.0


def test_the_p_value_with_delta_by_its_definition() -> None:
    m, r, v, epsilon, delta = 200, 60, 50, 0.7, 1e-3
    law = binom(r, math.exp(epsilon) / (1 + math.exp(epsilon)))
    largest = max((law.cdf(v - 1) - law.cdf(v - i - 1)) / i for i in range(1, m + 1))
    expected = law.sf(v - 1) + 2 * m * delta * largest
    found = p_value(epsilon, correct=v, guesses=r, canaries=m, delta=delta)
    assert found == pytest.approx(expected, rel=1e-9)


def test_delta_and_half_right_guesses_refute_less() -> None:
    none = epsilon_of_guesses(correct=90, guesses=100, canaries=1000, confidence=0.95)
    some = epsilon_of_guesses(correct=90, guesses=100, canaries=1000, delta=1e-5, confidence=0.95)
    much = epsilon_of_guesses(correct=90, guesses=100, canaries=1000, delta=0.1, confidence=0.95)
    assert none > some > much == 0.0
    assert epsilon_of_guesses(correct=50, guesses=100, canaries=1000, confidence=0.95) == 0.0
    with pytest.raises(ValueError, match="correct=4: at most guesses=3"):
        p_value(1.0, correct=4, guesses=3, canaries=5)


def test_the_bound_is_that_of_the_binomial_interval_without_delta() -> None:
    # One side of Clopper and Pearson's interval of the rate of right guesses, as a logit.
    q = binomtest(870, 1000).proportion_ci(0.9, "exact").low
    found = epsilon_of_guesses(correct=870, guesses=1000, canaries=1000, confidence=0.95)
    assert found == pytest.approx(math.log(q / (1 - q)), abs=1e-6)


def test_extreme_scores_are_guessed() -> None:
    scores, included = np.array([5.0, 4.0, 3.0, 2.0, 1.0]), np.array([True, False, True, True, False])
    assert [right_guesses(scores, included, n) for n in (0, 1, 2, 3, 4, 5)] == [0, 1, 2, 2, 2, 3]
    found = one_run([scores, scores], [included, included], delta=0.0, shares=(0.4,))
    assert (found.canaries, found.guesses, found.correct, found.runs) == (10, 4, 4, 2)
    assert found.epsilon == 0.0  # (1/2)^4 is above 5 %


def test_shares_divide_the_error() -> None:
    scores, included = np.arange(40.0), np.arange(40) >= 20
    alone = one_run([scores], [included], delta=0.0)
    best = one_run([scores], [included], delta=0.0, shares=(0.5, 1.0))
    q = 0.025 ** (1 / 40)
    assert best.epsilon == pytest.approx(math.log(q / (1 - q)), abs=1e-6)
    assert best.epsilon < alone.epsilon
    assert best.guesses == 40


def test_rates_by_scipys_intervals() -> None:
    tpr, fpr = (binomtest(k, n).proportion_ci(0.95, "exact") for k, n in ((45, 50), (3, 60)))
    for delta in (0.0, 0.01):
        expected = max(math.log((tpr.low - delta) / fpr.high), math.log((1 - fpr.high - delta) / (1 - tpr.low)))
        assert epsilon_of_rates(45, 50, 3, 60, delta=delta, confidence=0.95) == pytest.approx(expected, rel=1e-9)
    # No false positive, all true ones: the ends that the interval's formula does not have.
    high, low = 1 - 0.025 ** (1 / 20), 0.025 ** (1 / 20)
    found = epsilon_of_rates(20, 20, 0, 20, delta=0.0, confidence=0.95)
    assert found == pytest.approx(math.log(low / high), rel=1e-9)
    assert epsilon_of_rates(10, 20, 10, 20, delta=0.0, confidence=0.95) == 0.0
    assert epsilon_of_rates(0, 0, 0, 20, delta=0.0, confidence=0.95) == 0.0


def answers(rng: np.random.Generator, included: np.ndarray, epsilon: float) -> np.ndarray:
    """Randomised response: each coin is told truly with probability e^epsilon / (1 + e^epsilon)."""
    true = rng.random(included.shape) < 1 / (1 + math.exp(-epsilon))
    return np.where(true, included, ~included) + 1e-3 * rng.random(included.shape)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 3.0])
def test_randomised_response_is_bounded_from_below_and_nearly(epsilon: float) -> None:
    rng = np.random.default_rng(0)
    bounds = []
    for _ in range(500):
        included = rng.random(1000) < 0.5
        # Without the middle tenth, so that no answer is guessed against what it says.
        bounds.append(one_run([answers(rng, included, epsilon)], [included], delta=0.0, shares=(0.9,)).epsilon)
    assert sum(bound <= epsilon for bound in bounds) >= 475
    assert epsilon - 0.3 < np.mean(bounds) < epsilon


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """The exact delta of the Gaussian mechanism (Balle and Wang, 2018, theorem 8)."""
    half, shift = 1 / (2 * noise_multiplier), epsilon * noise_multiplier
    return float(norm.cdf(half - shift) - math.exp(epsilon) * norm.cdf(-half - shift))


def test_the_gaussian_mechanism_is_bounded_from_below() -> None:
    rng, delta, noise = np.random.default_rng(1), 1e-5, 0.5
    true = 9.99726  # the epsilon with this delta
    assert gaussian_delta(noise, true) == pytest.approx(delta, rel=1e-4)
    one, many = [], []
    for _ in range(40):
        included = rng.random((200, 20)) < 0.5
        scores = included + noise * rng.standard_normal(included.shape)
        one.append(one_run([scores.ravel()], [included.ravel()], delta=delta, shares=(0.1, 0.3, 1.0)).epsilon)
        many.append(many_runs(scores, included, delta=delta).epsilon)
    assert sum(bound <= true for bound in one) >= 38
    assert sum(bound <= true for bound in many) >= 38
    assert np.mean(one) > 2.0
    assert np.mean(many) > 1.0


def test_without_a_signal_there_is_no_bound() -> None:
    rng = np.random.default_rng(2)
    one, many = [], []
    for _ in range(200):
        included = rng.random((40, 5)) < 0.5
        scores = rng.standard_normal(included.shape)
        one.append(one_run([scores.ravel()], [included.ravel()], delta=0.0, shares=(0.1, 0.3, 1.0)).epsilon > 0)
        many.append(many_runs(scores, included, delta=0.0).epsilon > 0)
    assert sum(one) <= 10
    assert sum(many) <= 10


def test_many_runs_choose_on_one_half_and_measure_on_the_other() -> None:
    rng = np.random.default_rng(3)
    included = rng.random((100, 3)) < 0.5
    scores = rng.standard_normal(included.shape)
    scores[:, 1] = included[:, 1]
    found = many_runs(scores, included, delta=0.0)
    positives = int(included[50:, 1].sum())
    assert (found.runs, found.guesses, found.correct) == (100, 50, 50)
    assert found.epsilon == epsilon_of_rates(positives, positives, 0, 50 - positives, delta=0.0, confidence=0.95)
    scores[50:, 1] = 1.0  # nothing to be seen where it is measured
    assert many_runs(scores, included, delta=0.0).epsilon == 0.0
    with pytest.raises(ValueError, match="3 runs: bounds over many runs need at least 4"):
        many_runs(scores[:3], included[:3], delta=0.0)


def test_the_verdict() -> None:
    assert covers(None, 3.0) == "no bound stated"
    assert covers(2.0, 2.0) == "no violation found"
    assert covers(2.0, 2.001) == "VIOLATION: lower bound 2.001 above the stated 2"
