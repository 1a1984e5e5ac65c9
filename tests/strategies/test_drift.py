"""FedNova, FedDyn, FedLin, FedDC, FedExP against implementations in NumPy, closed forms of quadratics, identities."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flrl.aggregation import Median
from flrl.data import TensorSource
from flrl.errors import ClientError
from flrl.layout import digest
from flrl.sampling import PoissonSampler, UniformSampler
from flrl.strategies import FedAvg, FedDC, FedDyn, FedExP, FedLin, FedNova, FedProx
from flrl.trainers import EagerTrainer, Trained
from flrl.transforms.clip_norm import ClipNorm
from flrl.types import Aggregate, ServerState
from tests.strategies.test_scaffold import (
    LR,
    OPTIMUM,
    SIZES,
    STEPS,
    A,
    B,
    Double,
    N,
    Plain,
    averaging,
    gradient,
    quadratic,
    seeded,
    states,
)  # fmt: skip
from tests.toys import Linear, Rich, blobs, fit, make_worker, setup_of

Client = tuple[np.ndarray, np.ndarray]


class Momentum(Double):
    """With momentum, at a constant learning rate."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.sgd = {"momentum": momentum}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, **self.sgd)


# Against NumPy. Two epochs of batches of 8: the clients take 6, 8 and 10 steps. All references return the model.


def descent(
    w: np.ndarray,
    client: Client,
    lrs: Callable[[int], float],
    *,
    pull: float = 0.0,
    towards: Any = 0.0,
    added: Any = 0.0,
    momentum: float = 0.0,
) -> tuple[np.ndarray, list[float]]:  # fmt: skip
    """A client's model after local steps from w along its gradients and what is added, and the learning rates."""
    (inputs, labels), y, rates, velocity = client, w.copy(), [], np.zeros_like(w)
    for _ in range(2):
        for start in range(0, len(labels), 8):
            chosen = slice(start, start + 8)
            slope = gradient(y, inputs[chosen], labels[chosen]) + pull * (y - towards) + added
            velocity = momentum * velocity + slope
            rates.append(lrs(len(rates)))
            y = y - rates[-1] * velocity
    return y, rates


def nova(w: np.ndarray, clients: list[Client], cohorts: Any, lrs: Any, *, lr: float, rho: float, mu: float) -> Any:
    """Normalised averaging with the vectors a_i as the paper writes them, times the learning rates."""
    for round, cohort in enumerate(cohorts):
        sizes = [len(clients[i][1]) for i in cohort]
        directions, norms = [], []
        for i in cohort:
            y, rates = descent(w, clients[i], partial(lrs, round), pull=mu, towards=w, momentum=rho)
            t, a = len(rates), np.array(rates)
            if rho:
                a = rates[0] * (1 - rho ** np.arange(t, 0, -1)) / (1 - rho)
            if mu:
                a = rates[0] * (1 - rates[0] * mu) ** np.arange(t - 1, -1, -1)
            norms.append(np.abs(a).sum())
            directions.append((w - y) / norms[-1])
        w = w - lr * np.average(norms, weights=sizes) * np.average(directions, axis=0, weights=sizes)
    return w


def dyn(w: np.ndarray, clients: list[Client], cohorts: Any, lrs: Any, *, lr: float, alpha: float) -> Any:
    """Algorithm 1 of the paper, with shares of samples for its 1 / m and 1 / |P|; the minimisation is local steps."""
    sizes = np.array([len(labels) for _, labels in clients], float)
    h, gradients = np.zeros_like(w), np.zeros((len(clients), len(w)))
    for round, cohort in enumerate(cohorts):
        models = []
        for i in cohort:
            y, _ = descent(w, clients[i], partial(lrs, round), pull=alpha, towards=w, added=-gradients[i])
            gradients[i] -= alpha * (y - w)
            h -= alpha * sizes[i] / sizes.sum() * (y - w)
            models.append(y)
        w = w + lr * (np.average(models, axis=0, weights=sizes[cohort]) - h / alpha - w)
    return w


def lin(w: np.ndarray, clients: list[Client], cohorts: Any, lrs: Any, *, lr: float) -> Any:
    """Algorithm 1 of the paper: the rounds are pairs of an exchange of gradients and one of models."""
    sizes = [len(labels) for _, labels in clients]
    for round in range(1, len(cohorts), 2):
        at_w = [gradient(w, *client) for client in clients]
        mean = np.average(at_w, axis=0, weights=sizes)
        models = [descent(w, clients[i], partial(lrs, round), added=mean - at_w[i])[0] for i in range(len(clients))]
        w = w + lr * (np.average(models, axis=0, weights=sizes) - w)
    return w


def dc(w: np.ndarray, clients: list[Client], cohorts: Any, lrs: Any, *, lr: float, alpha: float) -> Any:
    """The authors' code, step by step, but that samples weigh the means and not alpha and the global variate."""
    sizes = np.array([len(labels) for _, labels in clients], float)
    drifts, local, overall = np.zeros((len(clients), len(w))), np.zeros((len(clients), len(w))), np.zeros_like(w)
    for round, cohort in enumerate(cohorts):
        models, change = [], np.zeros_like(w)
        for i in cohort:
            near, added = w - drifts[i], overall - local[i]
            y, rates = descent(w, clients[i], partial(lrs, round), pull=alpha, towards=near, added=added)
            drifts[i] += y - w
            state = local[i] - overall - (y - w) / sum(rates)
            change += sizes[i] / sizes.sum() * (state - local[i])
            local[i] = state
            models.append(y)
        overall = overall + change
        mean = np.average(models, axis=0, weights=sizes[cohort]) + sizes @ drifts / sizes.sum()
        w = w + lr * (mean - w)
    return w


def exp(w: np.ndarray, clients: list[Client], cohorts: Any, lrs: Any, *, lr: float, eps: float) -> Any:
    """Algorithm 1 of the paper, with shares of samples."""
    for round, cohort in enumerate(cohorts):
        sizes = [len(clients[i][1]) for i in cohort]
        deltas = [w - descent(w, clients[i], partial(lrs, round))[0] for i in cohort]
        mean = np.average(deltas, axis=0, weights=sizes)
        norms = np.average([delta @ delta for delta in deltas], weights=sizes)
        step = max(1.0, norms / (2 * (mean @ mean + eps)))
        assert len(cohort) < 3 or step > 1.1  # this is no test of the lower clip
        w = w - lr * step * mean
    return w


def sorted_blobs() -> TensorSource:
    """Clients have one or two of three classes."""
    source = blobs(sum(SIZES))
    order = torch.argsort(source.targets, stable=True)
    return TensorSource(source.inputs[order], source.targets[order])


def decaying(step: int) -> float:
    return 0.1 * 0.9**step


CASES: dict[str, tuple[Any, Any, Any]] = {  # strategy, module, reference
    "fednova": (FedNova, Double, partial(nova, rho=0.0, mu=0.0)),
    "fednova, scheduled": (FedNova, partial(Double, decaying), partial(nova, rho=0.0, mu=0.0)),
    "fednova, momentum": (partial(FedNova, momentum=0.7), partial(Momentum, 0.7), partial(nova, rho=0.7, mu=0.0)),
    "fednova, proximal": (partial(FedNova, mu=2.0), partial(Momentum, 0.0), partial(nova, rho=0.0, mu=2.0)),
    "feddyn": (partial(FedDyn, alpha=0.3), partial(Double, decaying), partial(dyn, alpha=0.3)),
    "fedlin": (FedLin, partial(Double, decaying), lin),
    "feddc": (partial(FedDC, alpha=0.2), partial(Double, decaying), partial(dc, alpha=0.2)),
    "fedexp": (partial(FedExP, eps=1e-5), partial(Double, decaying), partial(exp, eps=1e-5)),
}


@pytest.mark.parametrize(("name", "num"), [(name, None) for name in CASES] + [(n, 2) for n in CASES if n != "fedlin"])
def test_rounds_agree_with_numpy(name: str, num: int | None) -> None:
    make, module, reference = CASES[name]
    strategy = make(**averaging(5, num, lr=0.8))
    trainer = EagerTrainer(batch_size=8, local_epochs=2, lr_decay=0.9)
    worker = make_worker(strategy, module=seeded(module), sizes=SIZES, trainer=trainer, source=sorted_blobs())
    source, indices = worker.data.splits.train, [worker.data.train_indices(client) for client in range(3)]
    clients = [(source.inputs[i].double().numpy(), source.targets[i].numpy()) for i in indices]
    cohorts = [strategy.sampler(3, seed=0, round=round).tolist() for round in range(1, 6)]
    rates = decaying if "decaying" in str(module) else lambda step: 0.1
    start = worker.model.vector.clone().numpy()
    for rounds, state in enumerate(states(worker), start=1):
        w = reference(start, clients, cohorts[:rounds], lambda round, step: rates(step) * 0.9**round, lr=0.8)
        np.testing.assert_allclose(state.vector.numpy(), w, rtol=1e-9, atol=1e-12)


# Quadratics with a known minimiser.

DRIFT_FREE = {"feddyn": partial(FedDyn, alpha=3.0), "feddc": partial(FedDC, alpha=3.0)}


@pytest.mark.parametrize(("num", "rounds"), [(None, 40), (2, 50), pytest.param(1, 140, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", DRIFT_FREE)
def test_the_optimum_of_quadratics_is_reached(name: str, num: int | None, rounds: int) -> None:
    assert quadratic(DRIFT_FREE[name](**averaging(rounds, num))) == pytest.approx(OPTIMUM, abs=1e-6)


@pytest.mark.parametrize("batch_size", [5, 1], ids=["equal steps", "unequal steps"])
def test_fedlin_reaches_the_optimum_of_quadratics(batch_size: int) -> None:
    assert quadratic(FedLin(**averaging(60)), batch_size) == pytest.approx(OPTIMUM, abs=1e-6)


def test_fednova_takes_the_number_of_steps_out_of_the_bias() -> None:
    """Client i takes N[i] * STEPS steps; the bias that is left vanishes with the learning rate, FedAvg's does not."""
    steps = N * STEPS
    pull = N * (1 - (1 - LR * A) ** steps)
    average, nova = ((weight @ B) / weight.sum() for weight in (pull, pull / steps))
    assert quadratic(FedAvg(**averaging(25)), 1) == pytest.approx(average, abs=1e-6)
    assert quadratic(FedNova(**averaging(25)), 1) == pytest.approx(nova, abs=1e-6)
    slow = N * (1 - (1 - 1e-6 * A) ** steps)
    assert (slow / steps) @ B / (slow / steps).sum() == pytest.approx(OPTIMUM, abs=1e-3)
    assert abs(slow @ B / slow.sum() - OPTIMUM) > 0.1


# Identities.


def digests(strategy: Any, module: Any = Plain, sizes: Sequence[int] = (24, 20, 22), **trainer: Any) -> list[str]:
    """Of the models after every round."""
    return [digest(vector) for vector in rounds_of(strategy, module, sizes, **trainer)]


def rounds_of(strategy: Any, module: Any = Plain, sizes: Sequence[int] = (24, 20, 22), **trainer: Any) -> list[Tensor]:
    """The model after every round; by default all clients take three steps of 8 samples at most."""
    worker = make_worker(strategy, module=seeded(module), sizes=sizes, trainer=EagerTrainer(batch_size=8, **trainer))
    return [state.vector for state in states(worker)]


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
def test_fednova_with_equal_steps_is_fedavg(num: int | None) -> None:
    """Up to the rounding of a product with a factor and a quotient by it."""
    heavy = partial(Linear, momentum=0.9)
    same(FedNova(**averaging(3, num)), FedAvg(**averaging(3, num)), Plain)
    same(FedNova(momentum=0.9, **averaging(3, num)), FedAvg(**averaging(3, num)), heavy)
    same(FedNova(mu=0.5, **averaging(3, num)), FedProx(mu=0.5, **averaging(3, num)), Linear)
    one, other = (rounds_of(make(**averaging(3)), Linear, SIZES)[0] for make in (FedNova, FedAvg))
    assert float((one - other).abs().max()) > 1e-3


def same(one: Any, other: Any, module: Any) -> None:
    """The models of two strategies are the same after every round."""
    for a, b in zip(rounds_of(one, module), rounds_of(other, module), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_fednovas_norms_are_those_of_the_paper() -> None:
    steps, lr, rho, mu = 7, 0.1, 0.9, 0.5
    trained = Trained(torch.zeros(1), torch.zeros(1), {}, steps, lr * steps)
    assert FedNova(**averaging(1)).total(trained) == lr * steps
    heavy = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert FedNova(momentum=rho, **averaging(1)).total(trained) == pytest.approx(lr * heavy, rel=1e-14)
    proximal = (1 - (1 - lr * mu) ** steps) / (lr * mu)
    assert FedNova(mu=mu, **averaging(1)).total(trained) == pytest.approx(lr * proximal, rel=1e-14)
    assert FedNova(mu=mu, **averaging(1)).total(replace(trained, num_steps=0, lr_sum=0.0)) == 0.0


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
def test_feddyn_without_a_regulariser_is_fedavg(num: int | None) -> None:
    assert digests(FedDyn(alpha=0.0, **averaging(3, num))) == digests(FedAvg(**averaging(3, num)))


def test_a_small_regulariser_leaves_clients_as_in_fedavg_but_not_the_server() -> None:
    """In the paper's server step h / alpha does not depend on alpha: at first it adds the mean update a second time."""
    start, small, average = (
        fit(make_worker(strategy, module=seeded(Double)))[0].vector
        for strategy in (
            FedAvg(**averaging(1, lr=1e-300)),
            FedDyn(alpha=1e-12, **averaging(1)),
            FedAvg(**averaging(1)),
        )
    )
    torch.testing.assert_close(small - start, 2 * (average - start), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
def test_fedexp_at_its_lower_clip_is_fedavg(num: int | None) -> None:
    for module in (Plain, Rich):
        assert digests(FedExP(eps=1e9, **averaging(3, num)), module) == digests(FedAvg(**averaging(3, num)), module)


@pytest.mark.parametrize("make", [FedNova, partial(FedDyn, alpha=0.0), partial(FedExP, eps=1e9)])
def test_they_are_fedavg_with_personal_parameters_too(make: Any) -> None:
    own = {"personal": ["net.bias"]}
    assert digests(make(**averaging(3, **own)), Linear) == digests(FedAvg(**averaging(3, **own)), Linear)
    drifting = fit(make_worker(FedDC(alpha=0.2, **averaging(2, **own)), module=seeded(Linear)))[0]
    assert {name: len(tensor) for name, tensor in drifting.memory[0].items()} == {
        "control": 15, "drift": 15, "personal": 3,
    }  # fmt: skip


def test_fedexps_step_by_hand() -> None:
    layout = make_worker(FedExP(**averaging(1)), module=Linear(features=1, classes=1)).model.layout

    def step(squared: float, lr: float = 1.0) -> list[float]:
        vectors = {"update": torch.tensor([2.0, 1.0]).double(), "squared_norm": torch.tensor([squared]).double()}
        strategy = FedExP(eps=0.5, **averaging(1, lr=lr))
        return strategy.aggregate(ServerState(0, torch.zeros(2)), Aggregate(vectors, 1.0, ()), layout).vector.tolist()

    assert step(22.0) == [4.0, 2.0]  # 22 / (2 * (5 + 0.5)) = 2
    assert step(22.0, lr=0.5) == [2.0, 1.0]  # times the server's learning rate, not over it
    assert step(10.0) == [2.0, 1.0]  # 10 / 11, clipped
    assert step(0.0) == [2.0, 1.0]


@pytest.mark.parametrize("make", [partial(FedDyn, alpha=0.3), partial(FedDC, alpha=0.2), FedLin, FedNova, FedExP])
def test_buffers_are_averaged_and_what_a_client_sends_is_counted(make: Any) -> None:
    worker = make_worker(make(**averaging(2)), module=seeded(Plain), sizes=(24, 20, 22))
    layout = worker.model.layout
    trainable, model = layout.num_trainable * 4, layout.nbytes
    _, history = fit(worker)
    up = {FedDC: [model + trainable] * 2, FedLin: [trainable, model], FedNova: [model + 8] * 2}
    up[FedExP] = up[FedNova]
    down = {FedDC: [model, model + trainable], FedLin: [model, model + trainable]}
    kind = getattr(make, "func", make)
    assert [record.metrics["comm/up_bytes"] for record in history] == [3 * n for n in up.get(kind, [model] * 2)]
    assert [record.metrics["comm/down_bytes"] for record in history] == [3 * n for n in down.get(kind, [model] * 2)]
    if kind is not FedLin:
        statistics = fit(make_worker(FedAvg(**averaging(1)), module=seeded(Plain), sizes=(24, 20, 22)))[0].vector
        first = fit(make_worker(make(**averaging(1)), module=seeded(Plain), sizes=(24, 20, 22)))[0].vector
        after = slice(layout.num_trainable, None)
        if kind in (FedNova, FedExP):  # the others train along other gradients
            assert torch.equal(first[after], statistics[after])
        else:
            torch.testing.assert_close(first[after], statistics[after], rtol=0.1, atol=0.05)


# What they keep.


@pytest.mark.parametrize("make", [partial(FedDyn, alpha=0.3), partial(FedDC, alpha=0.2), FedNova, FedExP])
def test_an_empty_cohort_leaves_all_as_it_is(make: Any) -> None:
    worker = make_worker(make(**averaging(2)), module=seeded(Linear), sizes=SIZES)
    state, layout = fit(worker)[0], worker.model.layout
    zeros = {name: torch.zeros(size).double() for name, size in worker.strategy.vector_sizes(layout).items()}
    after = worker.strategy.aggregate(state, Aggregate(zeros, 0.0, (), share=0.0), layout)
    assert torch.equal(after.vector, state.vector)
    assert all(torch.equal(after.variables[name], tensor) for name, tensor in state.variables.items())


@pytest.mark.parametrize("num", [None, 2], ids=["full", "partial"])
@pytest.mark.parametrize(("make", "pairs"), [
    (partial(FedDyn, alpha=0.3), {"h": "gradient"}),
    (partial(FedDC, alpha=0.2), {"control": "control", "drift": "drift"}),
])  # fmt: skip
def test_the_servers_state_is_the_mean_of_the_clients(make: Any, pairs: dict[str, str], num: int | None) -> None:
    for state in states(make_worker(make(**averaging(6, num)), module=seeded(Double), sizes=SIZES)):
        for there, here in pairs.items():
            mean = sum(SIZES[client] / 90 * memory[here] for client, memory in state.memory.items())
            assert float(mean.norm()) > 1e-3
            torch.testing.assert_close(state.variables[there], mean, rtol=1e-10, atol=1e-13)


def test_fedlins_corrections_are_those_of_the_present_model_and_cancel() -> None:
    worker = make_worker(FedLin(**averaging(4)), module=seeded(Double), sizes=SIZES)
    before = worker.model.vector.clone()
    first, second, third, fourth = states(worker)
    assert torch.equal(first.vector, before)
    assert torch.equal(third.vector, second.vector)
    assert not torch.equal(fourth.vector, third.vector)
    for state in (first, third):
        mean = sum(SIZES[client] / 90 * memory["gradient"] for client, memory in state.memory.items())
        torch.testing.assert_close(state.variables["mean_gradient"], mean, rtol=1e-12, atol=1e-15)
    for state in (second, fourth):
        assert "mean_gradient" not in state.variables
        assert not any("gradient" in memory for memory in state.memory.values())


def test_fedlin_keeps_momentum_and_personal_parts_over_an_exchange_of_gradients() -> None:
    trainer = EagerTrainer(batch_size=8, keep_optimizer_state=True)
    module = seeded(partial(Linear, momentum=0.9))
    worker = make_worker(FedLin(**averaging(3), personal=["net.bias"]), module=module, trainer=trainer, sizes=SIZES)
    _, second, third = states(worker)
    for client in range(3):
        before, after = second.memory[client], third.memory[client]
        assert set(after) == {*before, "gradient"}
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        assert float(before["personal"].norm()) > 0


def test_a_client_without_a_gradient_computes_it_late() -> None:
    """A client whose gradient was left out has none in memory when it trains; its steps are corrected all the same."""
    worker = make_worker(FedLin(**averaging(2)), module=seeded(Double), sizes=SIZES)
    first = fit(make_worker(FedLin(**averaging(1)), module=seeded(Double), sizes=SIZES))[0]
    forgetful = replace(first, memory=first.memory.updated({1: {}}))
    assert 1 not in forgetful.memory or not forgetful.memory[1]
    assert torch.equal(fit(worker, state=forgetful)[0].vector, fit(worker, state=first)[0].vector)


def test_who_takes_no_step_keeps_its_variate_and_drift() -> None:
    class Lazy(Linear):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.trainer.num_training_batches == 3 and self.lazy else None  # client 0

    for make in (partial(FedDC, alpha=0.2), FedNova):
        module = seeded(Lazy)
        module.lazy = False
        first, _ = fit(make_worker(make(**averaging(1)), module=module, sizes=SIZES))
        module.lazy = True
        second, history = fit(make_worker(make(**averaging(2)), module=module, sizes=SIZES), state=first)
        assert [report.num_steps for report in history[0].reports] == [0, 4, 5]
        assert history[0].metrics["clients/rejected"] == 0
        if 0 in first.memory:
            assert all(torch.equal(second.memory[0][name], kept) for name, kept in first.memory[0].items())


# What they refuse.

MEAN = {"fednova": FedNova, "feddyn": partial(FedDyn, alpha=1.0), "fedexp": FedExP, "feddc": partial(FedDC, alpha=1.0)}


@pytest.mark.parametrize("name", MEAN)
def test_other_rules_than_the_mean_are_refused(name: str) -> None:
    strategy = MEAN[name](**averaging(1, aggregator=Median()))
    with pytest.raises(ValueError, match=r"^strategy\.aggregator=Median: Fed.* need the mean, "):
        strategy.check(setup_of(strategy=strategy))


@pytest.mark.parametrize(("make", "message"), [
    (partial(FedNova, momentum=1.0), r"strategy\.momentum=1\.0: must be at least 0 and below 1"),
    (partial(FedNova, mu=-1.0), r"strategy\.mu=-1\.0: must be at least 0"),
    (partial(FedDyn, alpha=-0.1), r"strategy\.alpha=-0\.1: must be at least 0"),
    (partial(FedDC, alpha=float("nan")), r"strategy\.alpha=nan: must be at least 0"),
    (partial(FedExP, eps=0.0), r"strategy\.eps=0\.0: must be positive"),
])  # fmt: skip
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**averaging(1))


class Scheduled(Linear):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize(("strategy", "module", "trainer", "message"), [
    (FedNova(**averaging(1)), Linear(momentum=0.9), {}, r"plain torch\.optim\.SGD with one lr, got SGD, momentum=0\.9"),
    (FedNova(momentum=0.9, **averaging(1)), Linear(), {}, r"momentum=0\.9 and one lr, got one without momentum"),
    (FedNova(momentum=0.9, **averaging(1)), Linear(momentum=0.5), {}, r"got SGD, momentum=0\.5, lr=0\.1"),
    (FedNova(momentum=0.9, **averaging(1)), Linear(momentum=0.9, nesterov=True), {}, r"nesterov=True"),
    (FedNova(momentum=0.9, **averaging(1)), Linear(momentum=0.9, weight_decay=0.1), {}, r"weight_decay=0\.1"),
    (FedNova(momentum=0.9, **averaging(1)), Linear(momentum=0.9), {"keep_optimizer_state": True}, "begins at zero"),
    (FedNova(mu=0.9, **averaging(1)), Scheduled(), {}, r"has a scheduler, StepLR"),
    (FedNova(**averaging(1)), Linear(), {"gradient_clip_val": 1.0}, r"gradient_clip_val=1\.0"),
    (FedDC(alpha=1.0, **averaging(1)), Linear(momentum=0.9), {}, r"plain torch\.optim\.SGD"),
    (FedExP(**averaging(1), transforms={"bound": ClipNorm(max_norm=1.0)}), Linear(), {}, r"=\['bound'\]: must"),
    (FedLin(**averaging(1) | {"sampler": UniformSampler(num=2)}), Linear(), {}, r"FedLin needs all clients"),
    (FedLin(**averaging(1) | {"sampler": PoissonSampler(probability=0.9)}), Linear(), {}, r"FedLin needs all clients"),
])  # fmt: skip
def test_what_the_formulas_do_not_hold_for_is_refused(strategy: Any, module: Any, trainer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        strategy.check(setup_of(module, EagerTrainer(**trainer), strategy))


def test_what_they_hold_for_is_not() -> None:
    FedNova(**averaging(1)).check(setup_of(Scheduled()))
    FedNova(momentum=0.9, **averaging(1)).check(setup_of(Linear(momentum=0.9)))
    FedLin(**averaging(1) | {"sampler": UniformSampler()}).check(setup_of(Rich()))
    FedDyn(alpha=1.0, **averaging(1)).check(setup_of(Rich()))
    with pytest.raises(ClientError, match=r"got SGD, momentum=0\.5"):  # also where nobody has called `check`
        fit(make_worker(FedNova(momentum=0.9, **averaging(1)), module=Linear(momentum=0.5)))
