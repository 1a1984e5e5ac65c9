"""What the papers state of each compressor: unbiased or a contraction, with their constants."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flrl.aggregation import SignMajority
from flrl.layout import ParameterLayout
from flrl.transforms import QSGD, Cast, Compressor, Eden, Integers, PowerSGD, RandomK, Sign, TernGrad, Threshold, TopK
from flrl.transforms.compression import rotation
from flrl.transforms.compression.rotation import rotated, rotated_back
from flrl.transforms.compression.sparse import largest, sample
from tests.transforms.compression.table import COMPRESSORS, flat, sent

VALUES = st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=12)
SIXTY = np.random.default_rng(0).standard_t(4, 60)


def of(compressor: Compressor, values: Any, **options: Any) -> np.ndarray:
    return sent(compressor, values, **options)[0].vectors["update"].numpy()


def square(values: np.ndarray) -> float:
    return math.fsum(value * value for value in np.asarray(values).tolist())


@pytest.mark.parametrize("levels", [1, 4, 32])
def test_qsgd_is_unbiased_and_within_its_variance_bound(levels: int) -> None:
    """4,000 copies of one vector are 4,000 draws: each is a bucket with a norm of its own."""
    draws = of(QSGD(levels=levels, per=60), np.tile(SIXTY, 4000)).reshape(4000, 60)
    size, norm = 60, square(SIXTY) ** 0.5
    exact = np.abs(SIXTY) / norm * levels
    variances = (norm / levels) ** 2 * (exact % 1) * (1 - exact % 1)
    assert (np.abs(draws.mean(0) - SIXTY) <= 4.5 * np.sqrt(variances / 4000) + 1e-6).all()
    found = ((draws - SIXTY) ** 2).sum(1).mean()
    assert found == pytest.approx(variances.sum(), rel=0.05)
    assert found <= min(size / levels**2, size**0.5 / levels) * norm**2
    assert len(np.unique(np.round(np.abs(draws) / norm * levels, 4))) <= levels + 1


@pytest.mark.parametrize("compressor", [Integers(bits=4, per=60), Integers(bits=8, per=60), TernGrad(per=60)])
def test_rounding_at_random_is_unbiased(compressor: Compressor) -> None:
    draws = of(compressor, np.tile(SIXTY, 4000)).reshape(4000, 60)
    levels = 2 ** (compressor.bits - 1) - 1 if isinstance(compressor, Integers) else 1
    step = np.abs(SIXTY).max() / levels
    share = np.abs(SIXTY) / step % 1
    assert (np.abs(draws.mean(0) - SIXTY) <= 4.5 * step * np.sqrt(share * (1 - share) / 4000) + 1e-6).all()
    assert np.abs(draws - SIXTY).max() <= step * (1 + 1e-6)
    assert np.abs(draws).max() == pytest.approx(np.abs(SIXTY).max())


def test_a_rotation_lowers_the_error_of_integers_where_one_number_is_large() -> None:
    peak = np.zeros(1024) + 0.1
    peak[5] = 30.0
    plain, turned = (square(of(Integers(bits=4, per="vector", rotate=r), peak) - peak) for r in (False, True))
    assert turned < 0.1 * plain


def test_norms_are_rounded_up_so_that_no_number_is_above_its_norm() -> None:
    assert float(np.float32(0.7)) < 0.7
    assert of(TernGrad(), [0.7])[0] == float(np.nextafter(np.float32(0.7), np.float32(1))) > 0.7


def test_terngrad_cuts_at_so_many_deviations() -> None:
    assert SIXTY.std() * 1.5 < np.abs(SIXTY).max()
    found = of(TernGrad(clip=1.5), SIXTY)
    assert set(np.round(np.abs(found) / SIXTY.std(), 5)) == {0.0, 1.5}


def test_random_k_is_unbiased_with_its_exact_variance() -> None:
    v = SIXTY[:10]
    draws = np.array([of(RandomK(share=0.2), v, seed=seed) for seed in range(800)])
    assert np.unique((draws != 0).sum(1)).tolist() == [2]
    assert (np.abs(draws.mean(0) - v) <= 4 * np.abs(v) * math.sqrt(4 / 800)).all()  # 5 v with probability 1/5
    assert ((draws - v) ** 2).sum(1).mean() == pytest.approx((10 / 2 - 1) * square(v), rel=0.08)
    unscaled = np.array([of(RandomK(share=0.2, scaled=False), v, seed=seed) for seed in range(800)])
    assert ((unscaled - v) ** 2).sum(1).mean() == pytest.approx((1 - 2 / 10) * square(v), rel=0.08)
    np.testing.assert_allclose(5 * unscaled, draws, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.floats(0.01, 1))
def test_top_k_is_a_contraction(values: list[float], share: float) -> None:
    v = np.array(values, np.float32).astype(np.float64)
    left = square(v - of(TopK(share=share), v))
    assert left <= (1 - math.ceil(share * len(v)) / len(v)) * square(v) * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_scaled_signs_leave_what_the_theorem_says(values: list[float]) -> None:
    v = np.array(values)
    rest = square(v - of(Sign(), v))
    assert rest == pytest.approx(square(v) - np.abs(v).sum() ** 2 / len(v), rel=1e-4, abs=1e-6 * square(v) + 1e-30)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_drive_and_eden_have_their_published_errors(bits: int) -> None:
    """Centroids and D: Max 1960, table I. Unbiased: pi/2 - 1 for DRIVE, D / (1 - D) for EDEN."""
    centroids = {
        1: [0.7980], 2: [0.4528, 1.510], 3: [0.2451, 0.7560, 1.344, 2.152],
        4: [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
    }  # fmt: skip
    distortion = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497}[bits]
    assert rotation._positive(bits) == pytest.approx(centroids[bits], rel=5e-4)
    v = np.random.default_rng(1).standard_t(3, 3 * 2**12)
    draws = np.array([of(Eden(bits=bits), v, seed=seed) for seed in range(30)])
    errors = [square(draw - v) / square(v) for draw in draws]
    assert np.mean(errors) == pytest.approx({1: math.pi / 2 - 1}.get(bits, distortion / (1 - distortion)), rel=0.03)
    assert square(draws.mean(0) - v) / square(v) == pytest.approx(np.mean(errors) / 30, rel=0.1)  # no bias is left
    biased = [square(of(Eden(bits=bits, unbiased=False), v, seed=seed) - v) / square(v) for seed in range(10)]
    assert np.mean(biased) == pytest.approx(distortion, rel=0.03)


def test_a_rotation_keeps_norms_and_is_undone() -> None:
    v = np.random.default_rng(0).normal(size=1000)
    turned = rotated(v, 5)
    assert len(turned) == 1024
    assert square(turned) == pytest.approx(square(v), rel=1e-12)
    np.testing.assert_allclose(rotated_back(turned, 5, 1000), v, atol=1e-13)
    assert np.abs(rotated_back(turned, 6, 1000) - v).max() > 1
    one = np.zeros(512)
    one[3] = 1.0
    assert np.abs(rotated(one, 0)).tolist() == pytest.approx([512**-0.5] * 512)


def layers() -> ParameterLayout:
    return ParameterLayout(nn.Sequential(nn.Linear(9, 6), nn.Conv2d(3, 4, (2, 5)), nn.Linear(2, 2)))


def test_power_sgd_is_exact_for_matrices_of_its_rank() -> None:
    rng, layout, v = np.random.default_rng(0), layers(), np.zeros(layers().size)
    for entry in layout.entries:
        low = rng.normal(size=(entry.shape[0], 2)) @ rng.normal(size=(2, entry.size // entry.shape[0]))
        v[entry.slice] = low.ravel()
    update, memory = sent(PowerSGD(rank=2), v, layout)
    np.testing.assert_allclose(update.vectors["update"].numpy(), v, rtol=0, atol=1e-5)
    # P and Q of 9 x 6 and of 4 x 30; 6 + 4 biases, and a 2 x 2 matrix with its bias, whole.
    assert update.payload["update"] == 4 * (2 * (9 + 6) + 2 * (4 + 30) + 6 + 4 + 4 + 2)
    assert memory["q"].numel() == 2 * (9 + 30)
    assert float(memory["error"].abs().max()) < 1e-5


def test_power_sgd_comes_to_the_best_approximation_from_its_last_one() -> None:
    matrix = np.random.default_rng(0).normal(size=(12, 20))
    layout, memory, best = ParameterLayout(nn.Linear(20, 12, bias=False)), {}, np.linalg.svd(matrix)[1]
    for _ in range(200):
        update, memory = sent(PowerSGD(rank=3, error_feedback=False), matrix.ravel(), layout, memory=memory)
    assert square(update.vectors["update"].numpy() - matrix.ravel()) == pytest.approx(square(best[3:]), rel=1e-3)
    cold = [square(of(PowerSGD(rank=3, warm_start=False), matrix.ravel(), layout=layout) - matrix.ravel())]
    assert cold[0] > 1.05 * square(best[3:])
    again, memory = sent(PowerSGD(rank=3), np.zeros(240), layout, memory={"q": torch.zeros(60)})
    assert not again.vectors["update"].any()
    np.testing.assert_array_equal(
        of(PowerSGD(rank=3), np.ones(240), layout=layout, memory={"q": memory["q"] * 0}) > 0.9, True
    )


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_half_precision_is_near(values: list[float]) -> None:
    v = np.array(values)
    assert (np.abs(of(Cast(), v) - v) <= 2.0**-8 * np.abs(v) + 1e-40).all()
    assert (np.abs(of(Cast(dtype="float16"), v) - v) <= 2.0**-11 * np.abs(v) + 2.0**-25).all()


def test_a_threshold_sends_what_reaches_it() -> None:
    update, memory = sent(Threshold(threshold=0.5), [0.5, -0.75, 0.25, -0.5, 0.0])
    assert update.vectors["update"].tolist() == [0.5, -0.75, 0.0, -0.5, 0.0]
    assert memory["error"].tolist() == [0.0, 0.0, 0.25, 0.0, 0.0]
    assert len(update.encoded["update"]) == 4 + 2 + 3 * 4  # how many, a bitmap and its k, numbers


@pytest.mark.parametrize("name", [name for name in COMPRESSORS if COMPRESSORS[name]().error_feedback])
def test_what_is_sent_and_the_last_error_are_what_was_given(name: str) -> None:
    layout, rng = layers(), np.random.default_rng(0)
    given, taken, memory = np.zeros(layout.size), np.zeros(layout.size), {}
    for round in range(8):
        update = rng.normal(size=layout.size)
        found, memory = sent(COMPRESSORS[name](), update, layout, seed=round, memory=memory)
        given += update
        taken += found.vectors["update"].numpy()
        assert np.abs(taken - given).max() > 1e-3
    np.testing.assert_allclose(taken + memory["error"].numpy(), given, atol=4e-6)


@settings(max_examples=150, deadline=None)
@given(
    VALUES,
    st.sampled_from([name for name in COMPRESSORS if COMPRESSORS[name]().keeps_norm]),
    st.sampled_from([0.3, 1.0]),
)
def test_what_keeps_norms_makes_no_update_longer(values: list[float], name: str, share: float) -> None:
    compressor = COMPRESSORS[name]()
    if hasattr(compressor, "share"):
        compressor.share = share
    v = np.array(values)
    assert square(of(compressor, v)) <= square(v)
    assert "error" not in sent(compressor, v)[1]


def test_which_keep_norms() -> None:
    names = ["top_k, forgets", "random_k, forgets", "threshold, forgets", "gradient_pruning"]
    assert [name for name in COMPRESSORS if COMPRESSORS[name]().keeps_norm] == names


def test_signs_that_are_sent_are_votes() -> None:
    """Each client's scale is its own, and no vote: the rule is that of the signs."""
    rows = np.array([[0.1, -9.0, 3.0], [0.2, 1.0, -1.0], [-5.0, 2.0, 0.5]])
    taken = np.array([of(Sign(), row) for row in rows])
    assert SignMajority()(taken).tolist() == SignMajority()(rows).tolist() == [1.0, 1.0, 1.0]
    assert of(Sign(), [-0.0, 2.0]).tolist() == [1.0, 1.0]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 60), st.booleans())
def test_the_largest_are_those_of_a_stable_sort(values: list[int], count: int, many: bool) -> None:
    sizes = np.array(values * (40 if many else 1), np.float64)
    count = min(count, len(sizes))
    expected = np.sort(np.argsort(-sizes, kind="stable")[:count])
    assert largest(sizes, count).tolist() == expected.tolist()


def test_the_largest_of_many_are_found_where_a_sample_misleads() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 40, 300, 2000):
        sizes = np.abs(rng.normal(size=20_000))
        assert largest(sizes, count).tolist() == np.sort(np.argsort(-sizes, kind="stable")[:count]).tolist()
        sample(sizes)[:] += 10  # what is looked at first is not like the others
        assert largest(sizes, count).tolist() == np.sort(np.argsort(-sizes, kind="stable")[:count]).tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomK(share=0.0), r"random_k\.share=0\.0: must be above 0 and at most 1$"),
        (lambda: RandomK(share=0.1, error_feedback=True), r"random_k\.error_feedback=true: needs scaled=false"),
        (lambda: Threshold(threshold=0.0), r"threshold\.threshold=0\.0: must be positive and finite$"),
        (lambda: QSGD(levels=0), r"qsgd\.levels=0: must be at least 1 and below 2\^24$"),
        (lambda: QSGD(per="layer"), r"qsgd\.per=layer: must be vector, parameter, or a number from 1 on$"),
        (lambda: QSGD(per=0), r"qsgd\.per=0: must be"),
        (lambda: QSGD(per=True), r"qsgd\.per=True: must be"),
        (lambda: Integers(bits=1), r"integers\.bits=1: must be 2 to 16$"),
        (lambda: Integers(rotate=True, per="parameter"), r"integers\.per=parameter: what is rotated has no parameters"),
        (lambda: TernGrad(clip=0.0), r"terngrad\.clip=0\.0: must be positive and finite, or null$"),
        (lambda: Eden(bits=5), r"eden\.bits=5: must be 1 to 4$"),
        (lambda: Eden(error_feedback=True), r"eden\.error_feedback=true: needs unbiased=false"),
        (lambda: PowerSGD(rank=0), r"power_sgd\.rank=0: must be at least 1$"),
        (lambda: Cast(dtype="int8"), r"cast\.dtype='int8': must be 'bfloat16' or 'float16'$"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^strategy\.transforms\.{message}"):
        make()


def test_buckets_and_parameters_have_scales_of_their_own() -> None:
    layout = ParameterLayout(nn.Linear(3, 1))
    assert of(Sign(per="parameter"), [1.0, -2.0, 3.0, -8.0], layout=layout).tolist() == [2.0, -2.0, 2.0, -8.0]
    assert of(Sign(per=3), [1.0, -2.0, 3.0, -8.0]).tolist() == [2.0, -2.0, 2.0, -8.0]
    assert of(Sign(per=2), [1.0, -2.0, 3.0, -8.0]).tolist() == [1.5, -1.5, 5.5, -5.5]
    assert of(Sign(), [1.0, -2.0, 3.0, -8.0]).tolist() == [3.5, -3.5, 3.5, -3.5]
    assert flat(4).num_trainable == 4
