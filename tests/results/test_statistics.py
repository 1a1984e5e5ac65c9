"""Means, intervals and p values against numbers computed by hand."""

import math

import pytest

from flrl.results.statistics import Difference, Spread, differences, holm

T_975 = {1: 12.706204736432095, 2: 4.302652729911275}  # of any table of Student's t


def test_mean_deviation_and_interval() -> None:
    spread = Spread.of([0.80, 0.82, 0.87])
    assert (spread.n, spread.mean) == (3, pytest.approx(0.83))
    assert spread.std == pytest.approx(math.sqrt(0.0026 / 2))  # 0.03^2 + 0.01^2 + 0.04^2
    assert spread.half == pytest.approx(T_975[2] * spread.std / math.sqrt(3))
    assert Spread.of([1.0, 3.0]).half == pytest.approx(T_975[1])  # std sqrt(2), over sqrt(2)


def test_one_run_has_no_interval() -> None:
    spread = Spread.of([0.5])
    assert (spread.n, spread.mean) == (1, 0.5)
    assert math.isnan(spread.std)
    assert math.isnan(spread.half)


def test_groups_with_the_same_seeds_are_paired() -> None:
    groups = {"a": {"0": 0.80, "1": 0.82, "2": 0.87}, "b": {"1": 0.85, "2": 0.89, "0": 0.81}}
    (found,) = differences(groups)
    assert (found.test, found.n, found.alone) == ("paired t", 3, 0)
    assert found.mean == pytest.approx(-0.02)
    # Gaps -0.01, -0.03, -0.02: t = -2 sqrt(3); with two degrees of freedom p = 1 - |t| / sqrt(2 + t^2).
    assert found.p == found.corrected == pytest.approx(1 - math.sqrt(12 / 14))
    assert found.verdict == "not significant"


def test_a_run_without_a_partner_is_left_out_of_a_paired_test_and_counted() -> None:
    groups = {"a": {"0": 0.80, "1": 0.82, "2": 0.87, "3": 0.1}, "b": {"1": 0.85, "2": 0.89, "0": 0.81}}
    (found,) = differences(groups)
    assert (found.test, found.n, found.alone) == ("paired t", 3, 1)
    assert found.mean == pytest.approx(-0.02)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))


def test_groups_with_other_seeds_are_compared_by_welchs_test() -> None:
    (found,) = differences({"a": {"0": 0.0, "1": 2.0}, "b": {"2": 3.0, "3": 5.0}})
    assert (found.test, found.n, found.mean) == ("Welch's t", 4, -3.0)
    assert found.p == pytest.approx(1 - math.sqrt(4.5 / 6.5))  # t = -3 / sqrt(2) with two degrees of freedom


def test_significant_ones_are_named_after_correction() -> None:
    rising = {str(seed): float(seed) for seed in range(5)}
    near = {key: value + gap for (key, value), gap in zip(rising.items(), (10, 11, 10, 11, 10), strict=True)}
    first, second, third = differences({"a": rising, "b": near, "c": {**near, "0": 10.5}})
    assert first.verdict == "a is lower"
    assert second.p < first.p < third.p
    assert 3 * second.p > 2 * first.p  # no p value is smaller after the correction than one that it was larger than
    assert first.corrected == second.corrected == pytest.approx(3 * second.p)
    assert third.verdict == "not significant"
    assert third.corrected == third.p


def test_the_verdict_is_that_after_correction() -> None:
    assert Difference("a", "b", -1.0, "paired t", 5, p=0.02, corrected=0.06).verdict == "not significant"
    assert Difference("a", "b", -1.0, "paired t", 5, p=0.02, corrected=0.04).verdict == "a is lower"
    assert Difference("a", "b", 1.0, "paired t", 5, p=0.02, corrected=0.04).verdict == "a is higher"


@pytest.mark.parametrize(
    ("groups", "why"),
    [
        ({"a": {"0": 1.0}, "b": {"0": 2.0}}, "too few runs for a test"),
        ({"a": {"0": 1.0, "1": 2.0}, "b": {"0": 2.0}}, "too few runs for a test"),
        ({"a": {"0": 0.8, "1": 0.9}, "b": {"0": 0.7, "1": 0.8}}, "the same difference in every pair"),
        ({"a": {"0": 0.8, "1": 0.9}, "b": {"0": 0.8, "1": 0.9}}, "equal"),
        ({"a": {"0": 0.8, "1": 0.8}, "b": {"2": 0.7, "3": 0.7}}, "no variance within the groups"),
    ],
)
def test_where_there_is_no_test_it_is_said_why(groups: dict[str, dict[str, float]], why: str) -> None:
    (found,) = differences(groups)
    assert found.verdict == why
    assert math.isnan(found.p)


def test_pairs_without_a_test_do_not_count_in_holms_correction() -> None:
    a = {"0": 0.80, "1": 0.82, "2": 0.87}
    found = differences({"a": a, "b": {"0": 0.81, "1": 0.85, "2": 0.89}, "alone": {"9": 1.0}})
    assert [pair.verdict for pair in found] == ["not significant", *["too few runs for a test"] * 2]
    assert found[0].corrected == found[0].p


def test_holm() -> None:
    assert holm([]) == []
    assert holm([0.5, 0.6, 0.01]) == pytest.approx([1.0, 1.0, 0.03])
    assert holm([0.02, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
