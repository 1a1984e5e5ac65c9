"""Mime and MimeLite against an implementation in NumPy, closed forms, and FedAvg's bits."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flrl.layout import digest
from flrl.strategies import FedAvg, Mime, MimeLite
from flrl.trainers import EagerTrainer
from flrl.types import Aggregate
from tests.strategies.test_scaffold import OPTIMUM, Double, Plain, averaging, gradient, quadratic, seeded, states
from tests.toys import Linear, fit, make_worker, setup_of

SIZES = (20, 30, 40)
ADAM = {"statistics": "adam", "betas": (0.8, 0.9), "eps": 0.1, "initial_accumulator": 0.2}
MOMENTUM = {"betas": (0.7, 0.9)}


def reference(
    w: np.ndarray, clients: list[Any], cohorts: list[list[int]], *, adam: bool, b1: float, b2: float, eps: float,
    v: float, svrg: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Algorithm 1: the model and the statistics. With SVRG a round is two cohorts, whose first gives the gradient."""
    weights = np.array([len(labels) for _, labels in clients], float)
    first, second = np.zeros_like(w), np.full_like(w, v)
    for round in range(0, len(cohorts), 1 + svrg):
        shares = [weights * np.isin(range(len(weights)), cohort) for cohort in cohorts[round : round + 1 + svrg]]
        asked, stepping = (share / share.sum() for share in (shares[0], shares[-1]))
        mean = sum(share * gradient(w, *client) for share, client in zip(asked, clients, strict=True))
        new = np.zeros_like(w)
        for share, (inputs, labels) in zip(stepping, clients, strict=True):
            y = w.copy()
            for start in [*range(0, len(labels), 8)] * 2:
                batch = inputs[start : start + 8], labels[start : start + 8]
                g = gradient(y, *batch) - gradient(w, *batch) + mean if svrg else gradient(y, *batch)
                u = (1 - b1) * g + b1 * first
                y = y - 0.1 * (u / (np.sqrt(second) + eps) if adam else u)
            new += share * y
        first, second = (1 - b1) * mean + b1 * first, (1 - b2) * mean**2 + b2 * second
        w = new
    return w, first, second


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
@pytest.mark.parametrize("settings", [MOMENTUM, ADAM], ids=["momentum", "adam"])
@pytest.mark.parametrize("make", [Mime, MimeLite])
def test_rounds_agree_with_numpy(make: Any, settings: dict[str, Any], num: int | None) -> None:
    """Unequal clients, two epochs of several steps, statistics included; Mime's model stays in odd rounds."""
    strategy = make(**settings, **averaging(6, num))
    worker = make_worker(
        strategy, module=seeded(Double), sizes=SIZES, trainer=EagerTrainer(batch_size=8, local_epochs=2)
    )
    source = worker.data.splits.train
    indices = [worker.data.train_indices(client) for client in range(3)]
    clients = [(source.inputs[i].double().numpy(), source.targets[i].numpy()) for i in indices]
    cohorts = [strategy.sampler(3, seed=0, round=round).tolist() for round in range(1, 7)]
    start, stays = worker.model.vector.clone().numpy(), None
    for rounds, state in enumerate(states(worker), start=1):
        if make is Mime and rounds % 2:
            assert stays is None or torch.equal(state.vector, stays)
            continue
        w, first, second = reference(
            start, clients, cohorts[:rounds], adam=settings is ADAM, b1=settings["betas"][0], b2=settings["betas"][1],
            eps=0.1, v=0.2, svrg=make is Mime,
        )  # fmt: skip
        np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(state.variables["first"].numpy(), first, rtol=1e-10, atol=1e-13)
        if settings is ADAM:
            np.testing.assert_allclose(state.variables["second"].numpy(), second, rtol=1e-10, atol=1e-13)
        stays = state.vector


def test_mimelite_without_momentum_is_fedavg_bit_for_bit() -> None:
    first, second = (
        fit(make_worker(strategy, module=seeded(Linear), sizes=SIZES))[0]
        for strategy in (MimeLite(betas=(0.0, 0.9), **averaging(3, 2)), FedAvg(**averaging(3, 2)))
    )
    assert digest(first.vector) == digest(second.vector)


def test_the_first_round_of_momentum_is_fedavg_with_a_shorter_step() -> None:
    """The statistics are zero: a gradient counts (1 - 0.5) times."""
    first = fit(make_worker(MimeLite(betas=(0.5, 0.9), **averaging(1)), module=seeded(Linear), sizes=SIZES))[0]
    second = fit(make_worker(FedAvg(**averaging(1)), module=seeded(partial(Linear, lr=0.05)), sizes=SIZES))[0]
    torch.testing.assert_close(first.vector, second.vector, rtol=0, atol=1e-6)


def test_one_full_batch_step_of_mime_is_the_centralised_method() -> None:
    """All clients then step alike, along the gradient of all samples."""
    worker = make_worker(
        Mime(betas=(0.6, 0.9), **averaging(8)), module=seeded(Double), sizes=SIZES, trainer=EagerTrainer(batch_size=99)
    )
    source, w = worker.data.splits.train, worker.model.vector.clone().numpy()
    inputs, labels, momentum = source.inputs.double().numpy(), source.targets.numpy(), np.zeros(18)
    for _ in range(4):
        momentum, w = (
            0.4 * gradient(w, inputs, labels) + 0.6 * momentum,
            w - 0.1 * (0.4 * gradient(w, inputs, labels) + 0.6 * momentum),
        )
    state, _ = fit(worker)
    np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state.variables["first"].numpy(), momentum, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_mime_reaches_the_optimum_of_quadratics_and_mimelite_does_not() -> None:
    """With six local steps on each of three quadratics."""
    assert quadratic(Mime(betas=(0.0, 0.9), **averaging(60))) == pytest.approx(OPTIMUM, abs=1e-6)
    assert abs(quadratic(MimeLite(betas=(0.0, 0.9), **averaging(60))) - OPTIMUM) > 0.1


def test_bytes_are_counted() -> None:
    """Gradients have no buffers; Mime sends the statistics and c where clients step, and the model alone elsewhere."""

    found = {}
    for make in (Mime, MimeLite):
        worker = make_worker(make(statistics="adam", **averaging(2, 2)), module=seeded(Plain), sizes=SIZES)
        metrics = [record.metrics for record in fit(worker)[1] if record.round]
        found[make] = [[m[f"comm/{way}_bytes"] / 2 for m in metrics] for way in ("down", "up")]
    whole, trainable = worker.model.layout.nbytes, 4 * worker.model.layout.num_trainable
    assert whole > trainable
    assert found[Mime] == [[whole, whole + 3 * trainable], [trainable, whole]]
    assert found[MimeLite] == [[whole + 2 * trainable] * 2, [whole + trainable] * 2]


def test_buffers_and_positions_stay_while_gradients_are_asked_for() -> None:
    trainer = EagerTrainer(batch_size=8, local_steps=2)
    worker = make_worker(Mime(**averaging(4)), module=seeded(Plain), sizes=SIZES, trainer=trainer)
    layout, start = worker.model.layout, worker.model.vector.clone()
    found = states(worker)
    assert torch.equal(found[0].vector, start)
    assert torch.equal(found[2].vector, found[1].vector)
    assert not torch.equal(found[1].vector[-32:], start[-32:])
    positions = [{int(memory["position"]) for memory in state.memory.values()} for state in found]
    assert positions[0] == set()
    assert positions[1] == positions[2] == {2}
    assert positions[3] != positions[2]
    plan = worker.strategy.plan(worker.strategy.initialize(start, layout), worker.data.sizes, 0, layout)
    sent = worker.train(*plan, lambda report: None)[0].result()[0]["update"]
    assert sent[layout.num_trainable :].tolist() == [0.0] * 32  # the gradient alone is counted as sent


def test_statistics_by_hand() -> None:
    worker = make_worker(MimeLite(**ADAM, **averaging(1)))
    layout, strategy = worker.model.layout, worker.strategy
    state = strategy.initialize(worker.model.vector.clone(), layout)
    means = {"update": torch.zeros(layout.size).double(), "gradient": torch.full((layout.num_trainable,), 3.0).double()}
    after = strategy.aggregate(state, Aggregate(means, 9.0, ()), layout)
    assert after.variables["first"].tolist() == pytest.approx([0.2 * 3] * layout.num_trainable)
    assert after.variables["second"].tolist() == pytest.approx([0.9 * 0.2 + 0.1 * 9] * layout.num_trainable)


@pytest.mark.parametrize("make", [Mime, MimeLite])
@pytest.mark.parametrize(
    ("module", "trainer", "message"),
    [
        (Linear(momentum=0.9), EagerTrainer(), r"needs plain torch\.optim\.SGD with one lr, got SGD, momentum=0\.9"),
        (Linear(), EagerTrainer(gradient_clip_val=1.0), r"trainer\.gradient_clip_val=1\.0: must be null"),
    ],
)
def test_other_local_steps_are_refused_before_the_first_round(
    make: Any, module: Any, trainer: Any, message: str
) -> None:
    strategy = make(**averaging(1))
    with pytest.raises(ValueError, match=message):
        strategy.check(setup_of(module, trainer, strategy=strategy))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"statistics": "rms"}, r"strategy\.statistics='rms': must be 'momentum' or 'adam'"),
        ({"betas": (1.0, 0.9)}, r"strategy\.betas=\[1\.0, 0\.9\]: must be two numbers"),
        ({"eps": 0.0}, r"strategy\.eps=0\.0: must be positive"),
        ({"initial_accumulator": -1.0}, r"strategy\.initial_accumulator=-1\.0: must be at least 0"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MimeLite(**averaging(1), **options)


def test_personal_parameters_are_refused() -> None:
    strategy = MimeLite(personal=["net.bias"], **averaging(1))
    with pytest.raises(ValueError, match=r"strategy\.personal=\['net\.bias'\]: must be \[\]"):
        strategy.check(setup_of(strategy=strategy))
