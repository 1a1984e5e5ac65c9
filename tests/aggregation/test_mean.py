import itertools
import math

import pytest
import torch

from flrl.aggregation import MeanReducer
from flrl.aggregation.exact_sum import LIMIT
from tests.aggregation.updates import add, rejected, update
from tests.toys import merged


def test_hand_computed_mean_of_two_vectors() -> None:
    acc = MeanReducer({"update": 2, "control": 1}, total_weight=40)
    add(acc, update(0, 10, update=[1.0, -2.0], control=[4.0]))
    add(acc, update(1, 30, update=[5.0, 2.0], control=[8.0]))
    means, weight = acc.result()
    assert means["update"].tolist() == [4.0, 1.0]
    assert means["control"].tolist() == [7.0]
    assert weight == 40


def test_missing_updates_renormalise_the_weights() -> None:
    acc = MeanReducer({"update": 1}, total_weight=1000)
    add(acc, update(0, 1, update=[3.0]))
    add(acc, update(5, 2, update=[6.0]))
    assert acc.result() == ({"update": torch.tensor([5.0], dtype=torch.float64)}, 3.0)
    assert MeanReducer({"update": 1}, total_weight=5).result() == ({}, 0.0)


def test_order_and_grouping_do_not_change_a_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    updates = [
        update(i, 3 * i + 1, update=(torch.randn(7, generator=generator) * 10.0 ** (3 - i)).tolist()) for i in range(5)
    ]
    results = set()
    for order in itertools.permutations(updates):
        for cut in (0, 2, 5):
            left, right = (MeanReducer({"update": 7}, total_weight=35) for _ in range(2))
            for u in order[:cut]:
                add(left, u)
            for u in order[cut:]:
                add(right, u)
            results.add(merged([left, right])[0]["update"].numpy().tobytes())
    assert len(results) == 1


@pytest.mark.parametrize("weight", [1.0, 600.0, 60000.0, 7e8])
def test_a_single_float32_difference_comes_back_exactly(weight: float) -> None:
    generator = torch.Generator().manual_seed(2)
    before, after = (torch.randn(1000, generator=generator) * 0.01 for _ in range(2))
    acc = MeanReducer({"update": 1000}, total_weight=weight)
    add(acc, update(0, weight, update=(after.double() - before.double()).tolist()))
    mean = acc.result()[0]["update"]
    assert torch.equal((before.double() + mean).float(), after)


@pytest.mark.parametrize(
    ("weight", "value", "reason"),
    [
        (1.0, math.nan, "update is not finite"),
        (1.0, math.inf, "update is not finite"),
        (1.0, 1e9, r"update is too large to be summed exactly \(1e\+09\)"),
        (0.0, 1.0, "weight 0.0 is not positive"),
        (math.nan, 1.0, "weight nan is not positive"),
    ],
)
def test_rejection_reasons(weight: float, value: float, reason: str) -> None:
    acc = MeanReducer({"update": 1}, total_weight=1)
    rejection = rejected(acc, update(0, weight, update=[value]))
    with pytest.raises(AssertionError, match=reason):
        assert rejection is None, rejection
    assert rejected(acc, update(0, 1.0, update=[1e8])) is None


def test_the_range_is_that_of_the_mean() -> None:
    """Weights are scaled to at most one: by 1/4 for a total of 3, so that three quarters of the limit are added."""
    acc = MeanReducer({"update": 1}, total_weight=3)
    assert acc.scale == 0.25
    assert MeanReducer({"update": 1}, total_weight=4).scale == 0.25
    assert rejected(acc, update(0, 3.0, update=[LIMIT * 1.3])) is None
    assert rejected(acc, update(0, 3.0, update=[LIMIT * 1.4])) is not None
    assert rejected(acc, update(0, 1.0, update=[LIMIT * 3.9])) is None
    add(acc, update(0, 3.0, update=[LIMIT]))
    assert acc.result() == ({"update": torch.tensor([LIMIT], dtype=torch.float64)}, 3.0)


def test_unannounced_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"client 3 sent vectors \{'other': 1\}, expected \{'update': 1\}"):
        add(MeanReducer({"update": 1}, total_weight=1), update(3, 1, other=[1.0]))
    with pytest.raises(ValueError, match="total_weight must be positive and finite, got 0"):
        MeanReducer({"update": 1}, total_weight=0)
