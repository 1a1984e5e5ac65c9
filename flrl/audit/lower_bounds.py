"""Lower bounds of epsilon, from how well a run's output tells which canaries were in it.

One run: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, arXiv 2305.08846. Many
runs: Jagielski, Ullman, Oprea, "Auditing Differentially Private Machine Learning", NeurIPS 2020, arXiv 2006.07709, with
the intervals of Clopper and Pearson; the canary and the threshold are chosen on half of the runs and the rates measured
on the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, expit
from scipy.stats import beta, binom


@dataclass(frozen=True, slots=True)
class LowerBound:
    """A lower bound of epsilon.

    Attributes:
        epsilon: with this confidence the mechanism is not (e, delta)-DP for any e below it; at least 0.
        delta: its delta.
        confidence: the probability that the bound holds, at least.
        canaries: canaries whose coins count: of all runs for one-run bounds, the one chosen for many runs.
        guesses: how many of them were guessed.
        correct: how many guesses are right.
        runs: number of runs whose output was used.
    """

    epsilon: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    correct: int
    runs: int


# One run.


def p_value(epsilon: float, *, correct: int, guesses: int, canaries: int, delta: float = 0.0) -> float:
    """The probability of so many right guesses, or more, at most, if the mechanism is (epsilon, delta)-DP.

    Steinke et al., theorem 5.2. W is binomial with `guesses` trials of probability e^epsilon / (1 + e^epsilon), v the
    right guesses: P[W >= v] + 2 m delta max over i of P[v > W >= v - i] / i.

    Args:
        epsilon: at least 0.
        correct: v, at most `guesses`.
        guesses: r, at most `canaries`.
        canaries: m, each in the training data by a fair coin of its own.
        delta: in [0, 1].

    Example:
        >>> p_value(0.0, correct=5, guesses=5, canaries=5)
        0.03125
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"correct={correct}: at most guesses={guesses}, which are at most canaries={canaries}")
    if correct == 0:
        return 1.0
    q = float(expit(epsilon))
    tail = float(betainc(correct, guesses - correct + 1, q))
    if delta > 0:
        steps = np.arange(1, correct + 1)
        tail += 2 * canaries * delta * float(np.max(np.cumsum(binom.pmf(correct - steps, guesses, q)) / steps))
    return min(1.0, tail)


def epsilon_of_guesses(*, correct: int, guesses: int, canaries: int, delta: float = 0.0, confidence: float) -> float:
    """The largest epsilon that so many right guesses refute at a confidence; 0 if they refute none.

    Args:
        correct: right guesses.
        guesses: all guesses.
        canaries: all canaries.
        delta: in [0, 1].
        confidence: in (0, 1).
    """

    def over(epsilon: float) -> float:
        found = p_value(epsilon, correct=correct, guesses=guesses, canaries=canaries, delta=delta)
        return found - (1 - confidence)

    if not guesses or over(0.0) >= 0:
        return 0.0
    high = 1.0
    while over(high) < 0:
        high *= 2
    return float(brentq(over, 0.0, high, xtol=1e-9))


def right_guesses(scores: np.ndarray, included: np.ndarray, guesses: int) -> int:
    """How many guesses are right: "in" for the half of highest scores, "out" for the half of lowest.

    Args:
        scores: higher for canaries that seem to be in, `[m]`.
        included: which are in, bool `[m]`; equal scores are guessed in the order of their places.
        guesses: at most m; of an odd number one more is "in".
    """
    order = np.argsort(-scores, kind="stable")
    most, least = order[: -(-guesses // 2)], order[len(order) - guesses // 2 :]
    return int(included[most].sum() + (~included[least]).sum())


def one_run(
    scores: Sequence[np.ndarray],
    included: Sequence[np.ndarray],
    *,
    delta: float,
    confidence: float = 0.95,
    shares: Sequence[float] = (1.0,),
) -> LowerBound:
    """The bound by the guesses of most extreme scores, of one run or of the canaries of several runs together.

    Runs are independent, so all their outputs together are (epsilon, delta)-DP for the coin of each canary of each run
    if each run is, and the theorem holds for all coins.

    Args:
        scores: of each run, `[m]`, higher for canaries that seem to be in.
        included: of each run, bool `[m]`.
        delta: in [0, 1).
        confidence: in (0, 1).
        shares: which parts of each run's canaries are guessed, each in (0, 1]; the best bound is taken, at a confidence
            that is divided among them (Bonferroni).
    """
    canaries, each = sum(map(len, scores)), 1 - (1 - confidence) / len(shares)
    found = []
    for share in shares:
        counts = [max(1, round(share * len(own))) for own in scores]
        correct = sum(right_guesses(s, i, n) for s, i, n in zip(scores, included, counts, strict=True))
        epsilon = epsilon_of_guesses(
            correct=correct, guesses=sum(counts), canaries=canaries, delta=delta, confidence=each
        )
        found.append(LowerBound(epsilon, delta, confidence, canaries, sum(counts), correct, len(scores)))
    return max(found, key=lambda bound: bound.epsilon)


# Many runs.


def epsilon_of_rates(
    true_positives: int, positives: int, false_positives: int, negatives: int, *, delta: float, confidence: float
) -> float:
    """The bound by the rates of one test, at least 0: their intervals hold together with the confidence.

    It is the larger of log((TPR - delta) / FPR) and log((TNR - delta) / FNR), with TPR and TNR at the lower and FPR and
    FNR at the upper end of intervals of Clopper and Pearson, each of `1 - (1 - confidence) / 2` to one side.

    Args:
        true_positives: runs with the canary that are taken for such.
        positives: runs with the canary.
        false_positives: runs without it that are taken for runs with it.
        negatives: runs without it.
        delta: in [0, 1).
        confidence: in (0, 1).
    """
    counts = (true_positives, positives, false_positives, negatives)
    hits, first, false, second = (np.array(count) for count in counts)
    return float(_epsilons(hits, first, false, second, delta, confidence))


def many_runs(scores: np.ndarray, included: np.ndarray, *, delta: float, confidence: float = 0.95) -> LowerBound:
    """The bound for the canary and the threshold that are best on the first half of the runs, measured on the others.

    Args:
        scores: of the same canaries in independent runs, `[runs, m]`.
        included: in which runs each was, by a fair coin, bool `[runs, m]`.
        delta: in [0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: there are fewer than four runs.
    """
    if len(scores) < 4:
        raise ValueError(f"{len(scores)} runs: bounds over many runs need at least 4, half of them to choose a test")
    half = len(scores) // 2
    chosen, coins = scores[:half], included[:half]
    taken = chosen[:, None, :] >= chosen[None, :, :]  # [runs, thresholds, canaries]
    hits, false = ((taken & side[:, None, :]).sum(0) for side in (coins, ~coins))
    first, second = (np.broadcast_to(side.sum(0), hits.shape) for side in (coins, ~coins))
    gained = _epsilons(hits, first, false, second, delta, confidence)
    # Where the bounds are all 0, or equal, the test that is right most often.
    right = (hits + second - false) / half
    threshold, canary = np.unravel_index(np.lexsort((right.ravel(), gained.ravel()))[-1], gained.shape)
    measured, truth = scores[half:, canary] >= chosen[threshold, canary], included[half:, canary]
    counts = int((measured & truth).sum()), int(truth.sum()), int((measured & ~truth).sum()), int((~truth).sum())
    epsilon = epsilon_of_rates(*counts, delta=delta, confidence=confidence)
    correct = counts[0] + counts[3] - counts[2]
    return LowerBound(epsilon, delta, confidence, 1, len(truth), correct, len(scores))


def _epsilons(
    hits: np.ndarray, positives: np.ndarray, false: np.ndarray, negatives: np.ndarray, delta: float, confidence: float
) -> np.ndarray:
    """Bounds by counts, which are arrays of one shape; 0 where a side has no runs."""
    tail = (1 - confidence) / 2
    low, high = _lower(hits, positives, tail), _upper(false, negatives, tail)  # TPR and FPR
    with np.errstate(divide="ignore"):
        by_hits = np.log(np.maximum(low - delta, 0)) - np.log(high)
        by_misses = np.log(np.maximum(1 - high - delta, 0)) - np.log(1 - low)
    found: np.ndarray = np.maximum(np.maximum(by_hits, by_misses), 0.0)
    return found


def _lower(successes: np.ndarray, trials: np.ndarray, tail: float) -> np.ndarray:
    bound = beta.ppf(tail, np.maximum(successes, 1), trials - successes + 1)
    return np.where(successes > 0, bound, 0.0)


def _upper(successes: np.ndarray, trials: np.ndarray, tail: float) -> np.ndarray:
    bound = beta.ppf(1 - tail, successes + 1, np.maximum(trials - successes, 1))
    return np.where(successes < trials, bound, 1.0)


def covers(upper: float | None, lower: float) -> str:
    """The verdict of an audit: what a lower bound says of the stated upper one, which may be absent.

    Example:
        >>> covers(1.0, 1.5)
        'VIOLATION: lower bound 1.5 above the stated 1'
        >>> covers(1.0, 0.5)
        'no violation found'
    """
    if upper is None or math.isnan(upper):
        return "no bound stated"
    if lower > upper:
        return f"VIOLATION: lower bound {lower:.4g} above the stated {upper:.4g}"
    return "no violation found"
