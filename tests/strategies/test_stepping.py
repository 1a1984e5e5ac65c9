"""APFL, pFedMe and Per-FedAvg, whose clients take single steps: against NumPy, closed forms, and their limits."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from flrl.layout import digest
from flrl.strategies import APFL, FedAvg, PerFedAvg, PFedMe
from flrl.strategies.base import Local
from flrl.strategies.stepping import Steps, step
from flrl.trainers import EagerTrainer, LocalProblem, Trainer
from tests.strategies.personal import (
    DECAY,
    LR,
    SIZES,
    A,
    B,
    Federation,
    N,
    averaging,
    batches,
    on_quadratics,
    shares,
    slope,
)
from tests.strategies.personal import personal as personal_of
from tests.strategies.test_problems import ENGINES
from tests.strategies.test_scaffold import LR as STEP
from tests.toys import Linear, Rich, fit, make_worker, setup_of

close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12)
cohorts = pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])


class ByStep(FedAvg):
    """FedAvg, step by step."""

    def local(self, problem: LocalProblem) -> Local:
        vector, steps = problem.start, Steps()
        for number in range(problem.num_steps):
            trained = yield step(problem, vector, number)
            steps.add(trained)
            vector = trained.vector
        return steps.ended(problem, vector).update(problem)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("settings", [{"local_epochs": 2}, {"local_steps": 4}], ids=["epochs", "steps"])
def test_single_steps_are_those_of_the_settings(shuffle: bool, settings: dict[str, int]) -> None:
    trainer = EagerTrainer(batch_size=8, shuffle=shuffle, **settings)
    (single, first), (whole, second) = (
        fit(make_worker(kind(**averaging(3)), sizes=SIZES, trainer=trainer)) for kind in (ByStep, FedAvg)
    )
    assert digest(single.vector) == digest(whole.vector)
    for one, other in zip(first, second, strict=True):
        assert one.metrics["test/loss"] == other.metrics["test/loss"]
        assert [report.num_steps for report in one.reports] == [report.num_steps for report in other.reports]
    found, expected = (history[-1].metrics["train/loss"] for history in (first, second))
    assert found == pytest.approx(expected, rel=0.05)  # batches count equally, in an epoch samples do


# Whole rounds in NumPy.


def apfl(run: Federation, alpha: float, adaptive: bool) -> Any:
    """Algorithm 1, with n_c as weights: w, and of each client that took part v and alpha, after every round."""
    w, own, alphas = run.start, {}, dict.fromkeys(range(3), alpha)
    for round, cohort in enumerate(run.cohorts):
        rate, ends = LR * DECAY**round, []
        for i in cohort:
            y, v, client = w.copy(), own.get(i, w).copy(), run.clients[i]
            for number in range(batches(client)):
                a = alphas[i]
                g = slope(a * v + (1 - a) * y, client, number)
                if adaptive and number == 0:
                    alphas[i] = np.clip(a - rate * (v - y) @ g, 0, 1)
                v, y = v - rate * a * g, y - rate * slope(y, client, number)
            own[i] = v
            ends.append(y)
        w = w + 0.8 * (shares(cohort) @ (np.stack(ends) - w))
        yield w, dict(own), dict(alphas)


@cohorts
@pytest.mark.parametrize("adaptive", [False, True])
def test_apfl_agrees_with_numpy(num: int | None, adaptive: bool) -> None:
    strategy = APFL(alpha=0.3, adaptive=adaptive, **averaging(4, num, lr=0.8))
    run = Federation(strategy)
    for state, (w, own, alphas) in zip(run.states(), apfl(run, 0.3, adaptive), strict=True):
        close(state.vector.numpy(), w)
        assert set(state.memory) == set(own)
        for i, v in own.items():
            close(state.memory[i]["own"].numpy(), v)
            close(personal_of(run.worker, state, i).numpy(), alphas[i] * v + (1 - alphas[i]) * w)
            if adaptive:
                close(float(state.memory[i]["alpha"]), alphas[i])
    assert not adaptive or max(abs(value - 0.3) for value in alphas.values()) > 1e-3


def pfedme(run: Federation, lam: float, lr: float, inner: int) -> Any:
    w, own = run.start, {}
    for round, cohort in enumerate(run.cohorts):
        ends = []
        for i in cohort:
            y, theta, client = w.copy(), w.copy(), run.clients[i]
            for number in range(batches(client)):
                for _ in range(inner):
                    theta = theta - LR * DECAY**round * (slope(theta, client, number) + lam * (theta - y))
                y = y - lr * lam * (y - theta)
            own[i] = theta
            ends.append(y)
        w = (1 - 0.8) * w + 0.8 * (shares(cohort) @ np.stack(ends))
        yield w, dict(own)


@cohorts
def test_pfedme_agrees_with_numpy(num: int | None) -> None:
    run = Federation(PFedMe(lam=2.0, lr=0.1, inner_steps=3, **averaging(4, num, lr=0.8)))
    for state, (w, own) in zip(run.states(), pfedme(run, 2.0, 0.1, 3), strict=True):
        close(state.vector.numpy(), w)
        assert set(state.memory) == set(own)
        for i, theta in own.items():
            close(personal_of(run.worker, state, i).numpy(), theta)


def perfedavg(run: Federation, beta: float, hessian_free: bool, delta: float) -> Any:
    w, count, places = run.start, 3 if hessian_free else 2, dict.fromkeys(range(3), 0)
    for round, cohort in enumerate(run.cohorts):
        rate, ends = LR * DECAY**round, []
        for i in cohort:
            y, client = w.copy(), run.clients[i]
            for _ in range(batches(client) // count):
                at = places[i]
                g = slope(y - rate * slope(y, client, at), client, at + 1)
                if hessian_free:
                    up, down = (slope(y + sign * delta * g, client, at + 2) for sign in (1, -1))
                    g = g - rate * (up - down) / (2 * delta)
                y, places[i] = y - beta * g, at + count
            ends.append(y)
        w = w + 0.8 * (shares(cohort) @ (np.stack(ends) - w))
        yield w


@cohorts
@pytest.mark.parametrize("hessian_free", [False, True], ids=["fo", "hf"])
def test_perfedavg_agrees_with_numpy(num: int | None, hessian_free: bool) -> None:
    strategy = PerFedAvg(beta=0.2, hessian_free=hessian_free, delta=0.01, **averaging(4, num, lr=0.8))
    run = Federation(strategy)
    for state, w in zip(run.states(), perfedavg(run, 0.2, hessian_free, 0.01), strict=True):
        np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-7, atol=1e-10)


# Limits.


@pytest.mark.parametrize(
    "engine", [pytest.param(name, marks=[] if name == "eager" else pytest.mark.slow) for name in ENGINES]
)
def test_apfl_is_the_global_model_at_0_and_a_local_one_at_1(engine: str) -> None:
    """Whatever alpha is, the global model is FedAvg's; a client alone is FedAvg with one client."""
    trainer = partial(ENGINES[engine], batch_size=8, local_epochs=2)
    average = fit(make_worker(FedAvg(**averaging(3)), trainer=trainer()))[0]
    runs = {alpha: make_worker(APFL(alpha=alpha, **averaging(3)), trainer=trainer()) for alpha in (0.0, 0.4, 1.0)}
    ends = {alpha: fit(worker)[0] for alpha, worker in runs.items()}
    assert {digest(state.vector) for state in ends.values()} == {digest(average.vector)}
    for client in range(3):
        assert torch.equal(personal_of(runs[0.0], ends[0.0], client), average.vector)
        own = personal_of(runs[1.0], ends[1.0], client)
        alone = _alone(client, trainer())
        if engine == "vectorized":  # whose last bits depend on the number of clients
            torch.testing.assert_close(own, alone, rtol=0, atol=2e-6)
        else:
            assert torch.equal(own, alone)


def _alone(client: int, trainer: Trainer) -> torch.Tensor:
    """The model of a client without a federation: FedAvg of it alone."""
    worker = make_worker(FedAvg(**averaging(3)), trainer=trainer)
    data = worker.data
    only = _Only(data, client)
    object.__setattr__(worker, "data", only)
    return fit(worker)[0].vector


class _Only:
    def __init__(self, data: Any, client: int) -> None:
        self._data, self._client = data, client
        self.sizes = data.sizes[client : client + 1]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def train_indices(self, client_id: int, round: int = 0) -> Any:
        return self._data.train_indices(self._client)


def test_pfedme_reaches_the_minimiser_of_the_envelopes() -> None:
    """On quadratics theta is near (a b + lam w) / (a + lam), as near as K steps bring it; their pulls cancel out."""
    lam, steps = 2.0, 8
    worker, state = on_quadratics(PFedMe(lam=lam, lr=0.5, inner_steps=steps, **averaging(60)), epochs=1)
    left = (1 - STEP * (A + lam)) ** steps
    pull = N * A / (A + lam) * (1 - left)
    shared = (pull * B).sum() / pull.sum()
    assert float(state.vector) == pytest.approx(shared, abs=1e-8)
    for i in range(3):
        theta = (A[i] * B[i] + lam * shared) / (A[i] + lam)
        assert float(personal_of(worker, state, i)) == pytest.approx(theta + left[i] * (shared - theta), abs=1e-8)


@pytest.mark.parametrize(("hessian_free", "power"), [(False, 1), (True, 2)], ids=["fo", "hf"])
def test_perfedavg_reaches_its_fixed_point_on_quadratics(hessian_free: bool, power: int) -> None:
    """The gradient after a step is a (1 - alpha a) (w - b); with the Hessian (1 - alpha a) comes twice."""
    strategy = PerFedAvg(beta=0.4, hessian_free=hessian_free, **averaging(40))
    _, state = on_quadratics(strategy, epochs=3)
    pull = N * A * (1 - STEP * A) ** power
    assert float(state.vector) == pytest.approx((pull * B).sum() / pull.sum(), abs=1e-7)


def test_the_personal_models_of_apfl_reach_the_clients_own_minimisers() -> None:
    steep = np.array([8.0, 10.0, 12.0])
    worker, state = on_quadratics(APFL(alpha=0.9, **averaging(60)), epochs=1, samples=(steep, B))
    for i in range(3):
        assert float(personal_of(worker, state, i)) == pytest.approx(B[i], abs=1e-6)


def test_who_has_not_taken_part_has_the_global_model() -> None:
    for kind in (APFL, PFedMe):
        worker = make_worker(kind(**averaging(1, 1)))
        state, _ = fit(worker)
        left_out = [client for client in range(3) if client not in state.memory]
        assert len(left_out) == 2
        assert all(torch.equal(personal_of(worker, state, client), state.vector) for client in left_out)


# What is sent, and what is refused.


@pytest.mark.parametrize("make", [partial(APFL, adaptive=True), PFedMe, PerFedAvg])
def test_a_model_is_sent_each_way(make: Any) -> None:
    worker = make_worker(make(**averaging(2)))
    for record in fit(worker)[1]:
        assert record.metrics["comm/up_bytes"] == record.metrics["comm/down_bytes"] == 3 * 18 * 4


@pytest.mark.parametrize("make", [APFL, PFedMe, PerFedAvg])
def test_other_optimizers_and_personal_parameters_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"plain torch\.optim\.SGD"):
        make(**averaging(1)).check(setup_of(Rich(), strategy=make(**averaging(1))))
    strategy = make(**averaging(1, personal=["net.bias"]))
    with pytest.raises(ValueError, match=r"strategy\.personal=\['net\.bias'\]: must be \[\], \w+ has clients keep"):
        strategy.check(setup_of(Linear(), strategy=strategy))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(APFL, alpha=1.5), r"strategy\.alpha=1\.5: must be in \[0, 1\]"),
        (partial(PFedMe, lam=0), r"strategy\.lam=0: must be positive"),
        (partial(PFedMe, lr=1.0), r"strategy\.lr=1\.0: must be positive, and lr \* lam at most 1"),
        (partial(PFedMe, inner_steps=0), r"strategy\.inner_steps=0: must be at least 1"),
        (partial(PerFedAvg, beta=0), r"strategy\.beta=0: must be positive"),
        (partial(PerFedAvg, delta=-1), r"strategy\.delta=-1: must be positive"),
    ],
)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**averaging(1))
