"""Clipping what clients send."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.transforms import ClipNorm
from tests.toys import fit, make_worker
from tests.transforms.given import context, update

SGD = partial(torch.optim.SGD, lr=1.0)


def clip(max_norm: float, *values: float, **options: Any) -> tuple[list[float], float]:
    sent, memory, counts = ClipNorm(max_norm=max_norm, **options).client(update(*values), {}, context())
    assert memory == {}
    assert list(counts) == ["clipped"]
    return sent.vectors["update"].tolist(), counts["clipped"]


def test_long_updates_are_scaled_down() -> None:
    assert clip(1.0, 3.0, -4.0) == ([pytest.approx(0.6), pytest.approx(-0.8)], 1.0)
    assert clip(2.5, 3.0, 4.0) == ([1.5, 2.0], 1.0)
    assert clip(6.5, 12.0, 0.0, 5.0) == ([6.0, 0.0, 2.5], 1.0)


def test_short_updates_stay_as_they_are() -> None:
    assert clip(5.0, 3.0, 4.0) == ([3.0, 4.0], 0.0)
    assert clip(1.0, 0.3, -0.4) == ([0.3, -0.4], 0.0)
    assert clip(1.0, 0.0, 0.0) == ([0.0, 0.0], 0.0)
    before = update(3.0, 4.0)
    assert ClipNorm(max_norm=5.0).client(before, {}, context())[0] is before


def test_only_what_it_covers_is_measured_and_changed() -> None:
    control = torch.tensor([12.0, 0.0]).double()
    before = update(3.0, 4.0, 12.0, 84.0, control=control)  # the layout's buffers are the last two
    part, whole, together = (
        ClipNorm(max_norm=2.5, covers=covers).client(before, {}, context())[0].vectors
        for covers in ("trainable", "update", "all")
    )
    assert part["update"].tolist() == [1.5, 2.0, 12.0, 84.0]
    assert part["control"] is whole["control"] is control
    norm = math.sqrt(3**2 + 4**2 + 12**2 + 84**2)
    assert norm == 85
    assert whole["update"].tolist() == pytest.approx([value * 2.5 / 85 for value in (3, 4, 12, 84)], rel=1e-15)
    factor = 2.5 / math.hypot(85, 12)
    assert together["update"].tolist() == pytest.approx([value * factor for value in (3, 4, 12, 84)], rel=1e-15)
    assert together["control"].tolist() == pytest.approx([12 * factor, 0.0], rel=1e-15)
    assert before.vectors["update"].tolist() == [3.0, 4.0, 12.0, 84.0]


def test_the_rest_of_an_update_stays() -> None:
    before = update(3.0, 4.0)
    sent = ClipNorm(max_norm=0.5).client(before, {}, context())[0]
    for name in ("client_id", "weight", "metrics", "num_steps", "payload", "memory"):
        assert getattr(sent, name) is getattr(before, name)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6),
    st.floats(1e-3, 1e3),
)
def test_no_norm_is_above_the_bound_and_no_direction_changes(values: list[float], max_norm: float) -> None:
    clipped, count = clip(max_norm, *values)
    before, after = math.hypot(*values), math.hypot(*clipped)
    assert after == pytest.approx(min(before, max_norm), rel=1e-12)
    assert count == float(torch.tensor(values, dtype=torch.float64).norm() > max_norm)
    dot = math.fsum(a * b for a, b in zip(values, clipped, strict=True))
    assert dot == pytest.approx(before * after, rel=1e-9)


def test_updates_that_are_not_finite_stay_so() -> None:
    for value in (math.nan, math.inf):
        clipped, _ = clip(1.0, value, 1.0)
        assert not math.isfinite(clipped[0])


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_the_bound_is_positive(max_norm: float) -> None:
    with pytest.raises(ValueError, match=rf"^strategy\.transforms\.clip_norm\.max_norm={max_norm}: must be positive$"):
        ClipNorm(max_norm=max_norm)


def test_what_it_covers_has_a_name() -> None:
    with pytest.raises(ValueError, match=r"covers='buffers': must be one of trainable, update, all$"):
        ClipNorm(max_norm=1.0, covers="buffers")


def test_a_round_clips_every_client() -> None:
    """Clipped to almost nothing, clients that pull the same way move the model by the bound at the most."""
    moved, counts = [], []
    for max_norm in (1e-3, 1e3):
        transforms = {"short": ClipNorm(max_norm=max_norm)}
        worker = make_worker(FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=transforms))
        before = worker.model.vector.clone()
        state, (record,) = fit(worker)
        moved.append(float((state.vector - before).norm()))
        counts.append([record.metrics[f"transforms/short/{name}"] for name in ("clipped", "clients")])
    assert counts == [[3.0, 3.0], [0.0, 3.0]]
    assert 5e-4 < moved[0] <= 1e-3 * (1 + 1e-4) < moved[1]
