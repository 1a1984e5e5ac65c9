import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flrl.aggregation import exact_sum
from flrl.aggregation.exact_sum import LIMIT, LOW_QUANTUM, ExactSum

values = st.floats(-1e6, 1e6, allow_nan=False) | st.floats(-1e-15, 1e-15) | st.sampled_from([0.0, -0.0, 1e7, -1e7])


def total(vectors: list[Tensor]) -> Tensor:
    acc = ExactSum(len(vectors[0]))
    for vector in vectors:
        acc.add(vector)
    return acc.value()


def rounded(x: float) -> Fraction:
    """x to the nearest multiple of 2^-64, half to even."""
    return Fraction(round(Fraction(x) / Fraction(LOW_QUANTUM))) * Fraction(LOW_QUANTUM)


@given(st.lists(values, min_size=1, max_size=4))
@settings(deadline=None)
def test_every_permutation_has_the_same_bits(numbers: list[float]) -> None:
    vectors = [torch.tensor([x, -3 * x], dtype=torch.float64) for x in numbers]
    sums = [total(list(order)) for order in itertools.permutations(vectors)]
    assert all(s.numpy().tobytes() == sums[0].numpy().tobytes() for s in sums)


@given(st.lists(values, min_size=1, max_size=12), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_every_grouping_has_the_same_bits(numbers: list[float], random: object) -> None:
    expected = total([torch.tensor([x], dtype=torch.float64) for x in numbers])
    groups = [ExactSum(1) for _ in range(4)]
    for x in random.sample(numbers, len(numbers)):  # type: ignore[attr-defined]
        random.choice(groups).add(torch.tensor([x], dtype=torch.float64))  # type: ignore[attr-defined]
    random.shuffle(groups)  # type: ignore[attr-defined]
    while len(groups) > 1:
        groups[0].merge(groups.pop())
    assert groups[0].value().numpy().tobytes() == expected.numpy().tobytes()


@given(st.lists(values, min_size=1, max_size=30))
@settings(deadline=None)
def test_the_sum_is_the_correctly_rounded_one(numbers: list[float]) -> None:
    expected = sum((rounded(x) for x in numbers), Fraction(0))
    assert total([torch.tensor([x], dtype=torch.float64) for x in numbers]).item() == float(expected)


def test_float64_loses_what_the_exact_sum_keeps() -> None:
    numbers = [1e7, 1e-12, -1e7]
    assert sum(numbers) == 0.0
    assert total([torch.tensor([x], dtype=torch.float64) for x in numbers]).item() == pytest.approx(1e-12, rel=1e-6)


def test_weights_and_places() -> None:
    acc = ExactSum(5)
    acc.add(torch.tensor([1.0, 2.0]), 0.5, start=2)
    acc.add(torch.tensor([3.0]), 2.0)
    assert acc.value().tolist() == [6.0, 0.0, 0.5, 1.0, 0.0]


def test_vectors_that_are_not_contiguous_and_other_dtypes() -> None:
    vector = torch.arange(8, dtype=torch.float32)[::2]
    assert total([vector, vector.to(torch.bfloat16)]).tolist() == [0.0, 4.0, 8.0, 12.0]


def test_carries_do_not_change_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = total(list(numbers))
    monkeypatch.setattr(exact_sum, "_MAX_PENDING", 3)
    assert torch.equal(total(list(numbers)), expected)
    assert expected.tolist() == [math.fsum(float(rounded(x)) for x in column) for column in numbers.T.tolist()]


def test_many_low_parts_stay_exact() -> None:
    acc, addends = ExactSum(1), 3 * exact_sum._MAX_PENDING
    largest_low = 2.0**-25 - LOW_QUANTUM
    for _ in range(addends):
        acc.add(torch.tensor([largest_low], dtype=torch.float64))
    assert Fraction(acc.value().item()) == Fraction(float(Fraction(largest_low) * addends))


def test_many_merged_low_parts_stay_exact() -> None:
    """Ten times 4000 of the largest low parts: more than float64 adds exactly, unless some are carried in between."""
    part, whole, addends = ExactSum(1), ExactSum(1), 4000
    largest_low = 2.0**-25 - LOW_QUANTUM
    for _ in range(addends - 1):
        part.add(torch.tensor([largest_low], dtype=torch.float64))
    for _ in range(10):
        whole.merge(part)
    assert whole.pending <= exact_sum._MAX_PENDING
    high, low = (Fraction(value.item()) for value in whole.parts)
    assert high + low == 10 * (addends - 1) * Fraction(largest_low)


def test_overflow_is_named_before_anything_is_added() -> None:
    acc = ExactSum(1)
    acc.add(torch.tensor([LIMIT / 2]))
    with pytest.raises(OverflowError, match=r"value of magnitude 6\.71e\+07 could pass the limit of 1\.34e\+08"):
        acc.add(torch.tensor([-LIMIT / 2 - 16]))
    assert acc.value().item() == LIMIT / 2
    with pytest.raises(OverflowError, match="another accumulator"):
        acc.merge(_holding(LIMIT))


def _holding(value: float) -> ExactSum:
    acc = ExactSum(1)
    acc.add(torch.tensor([value]))
    return acc


def test_bounds_are_of_what_is_added_and_rounded_up() -> None:
    """In units of 2^-20: 3 * 2^-20 with a weight of -1/2 is one and a half, so two."""
    acc = ExactSum(2)
    acc.add(torch.tensor([1.0, -3.0]) * 2.0**-20, -0.5)
    assert (acc.bound, acc.pending) == (2, 1)
    acc.add(torch.tensor([0.0, 2.0**-30]))
    assert (acc.bound, acc.pending) == (3, 2)
    other = ExactSum(2)
    other.merge(acc)
    other.merge(acc)
    assert (other.bound, other.pending) == (6, 4)
    acc.add(torch.tensor([LIMIT]), 0.25)  # its share of the limit is a quarter
    assert acc.bound == 3 + 2**45


def test_overflow_does_not_depend_on_order() -> None:
    numbers = [LIMIT / 3, -LIMIT / 3, LIMIT / 3, 1e-3]
    for order in itertools.permutations(numbers):
        acc = ExactSum(1)
        with pytest.raises(OverflowError):  # noqa: PT012
            for x in order:
                acc.add(torch.tensor([x], dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        ExactSum(2).add(torch.tensor([1.0, bad]))


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30))
def test_a_number_is_added_as_a_vector_of_one_is(numbers: list[float]) -> None:
    one_by_one, vectors = ExactSum(3), ExactSum(3)
    for number in numbers:
        one_by_one.add_number(number, 2)
        vectors.add(torch.tensor([number], dtype=torch.float64), start=2)
    assert torch.equal(one_by_one.parts, vectors.parts)
    assert (one_by_one.bound, one_by_one.pending) == (vectors.bound, vectors.pending)
