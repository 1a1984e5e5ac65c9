"""Transforms of what clients send."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.transforms import ClipNorm
from flrl.types import Broadcast, ClientTask, ClientUpdate
from tests.toys import fit, make_worker

SGD = partial(torch.optim.SGD, lr=1.0)
BROADCAST = Broadcast(round=1, vector=torch.zeros(2), total_weight=1.0)


def update(*values: float, **vectors: Tensor) -> ClientUpdate:
    return ClientUpdate(
        client_id=3,
        weight=7.0,
        vectors={"update": torch.tensor(values, dtype=torch.float64), **vectors},
        metrics={"train/loss": 0.5},
        num_steps=11,
        up_bytes=8,
        memory={"velocity": torch.ones(2)},
    )


def clip(max_norm: float, *values: float) -> tuple[list[float], float]:
    sent, counts = ClipNorm(max_norm=max_norm).encode(update(*values), BROADCAST, 0)
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
    sent, _ = ClipNorm(max_norm=5.0).encode(before, BROADCAST, 0)
    assert sent is before


def test_only_the_update_changes() -> None:
    control = torch.tensor([30.0, 40.0])
    before = update(3.0, 4.0, control=control)
    sent, _ = ClipNorm(max_norm=0.5).encode(before, BROADCAST, 0)
    assert sent.vectors["update"].dtype == torch.float64
    assert sent.vectors["control"] is control
    assert before.vectors["update"].tolist() == [3.0, 4.0]
    for name in ("client_id", "weight", "metrics", "num_steps", "up_bytes", "memory"):
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


def test_there_is_nothing_to_undo() -> None:
    means = {"update": torch.ones(2)}
    assert ClipNorm(max_norm=1.0).decode(means) is means


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_the_bound_is_positive(max_norm: float) -> None:
    with pytest.raises(ValueError, match=rf"^max_norm={max_norm}: must be positive$"):
        ClipNorm(max_norm=max_norm)


def test_a_round_clips_every_client() -> None:
    """Clipped to almost nothing, clients that pull the same way move the model by the bound at the most."""
    moved, counts = [], []
    for max_norm in (1e-3, 1e3):
        sgd = partial(torch.optim.SGD, lr=1.0)
        transforms = [ClipNorm(max_norm=max_norm)]
        worker = make_worker(FedAvg(rounds=1, sampler=AllClients(), server_optimizer=sgd, transforms=transforms))
        before = worker.model.vector.clone()
        state, (record,) = fit(worker)
        moved.append(float((state.vector - before).norm()))
        counts.append([record.metrics[f"transforms/clip_norm/{name}"] for name in ("clipped", "clients")])
    assert counts == [[3.0, 3.0], [0.0, 3.0]]
    assert 5e-4 < moved[0] <= 1e-3 * (1 + 1e-4) < moved[1]


class Scaled:
    """Sends twice the update."""

    name = "scaled"

    def encode(self, update: ClientUpdate, broadcast: Broadcast, seed: int) -> tuple[ClientUpdate, dict[str, float]]:
        return replace(update, vectors={"update": update.vectors["update"] * 2}), {}

    def decode(self, means: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"update": means["update"] / 2}


class Shifted(Scaled):
    """Sends the update plus one."""

    name = "shifted"

    def encode(self, update: ClientUpdate, broadcast: Broadcast, seed: int) -> tuple[ClientUpdate, dict[str, float]]:
        return replace(update, vectors={"update": update.vectors["update"] + 1}), {}

    def decode(self, means: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"update": means["update"] - 1}


@pytest.mark.parametrize("transforms", [[Scaled(), Shifted()], [Shifted(), Scaled()]])
def test_what_was_done_last_is_undone_first(transforms: list[Scaled]) -> None:
    """Twice and plus one do not commute: undone in the other order, every number would be off by a half or by one."""
    plain, transformed = (
        fit(make_worker(FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=used)))[0].vector
        for used in ([], transforms)
    )
    torch.testing.assert_close(transformed, plain, rtol=0, atol=1e-6)


def test_transforms_are_applied_in_their_order() -> None:
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=[Scaled(), Shifted()])
    worker = make_worker(strategy, sizes=(8,))
    task, broadcast = ClientTask(1, 0, 8, 8.0), Broadcast(1, worker.model.vector.clone(), 8.0)
    sent = worker.train(broadcast, [task], lambda report: None)[0].result()[0]["update"]
    plain = replace(worker, strategy=FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD))
    update = plain.train(broadcast, [task], lambda report: None)[0].result()[0]["update"]
    torch.testing.assert_close(sent, 2 * update + 1, rtol=0, atol=1e-12)
