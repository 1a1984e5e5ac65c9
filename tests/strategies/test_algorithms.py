"""Cases of the algorithms and of the round loop, computed by hand."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flrl.backends import SerialBackend
from flrl.bound_model import BoundModel
from flrl.callbacks import Callback, Callbacks
from flrl.errors import ClientError, TooFewUpdatesError
from flrl.layout import ParameterLayout, digest
from flrl.sampling import AllClients, UniformSampler
from flrl.strategies import FedAvg, FedProx, FedSGD
from flrl.strategies.base import Local
from flrl.strategies.server_optimizers import Yogi
from flrl.trainers import EagerTrainer, LocalProblem
from flrl.transforms.clip_norm import ClipNorm
from flrl.types import Aggregate, ServerState
from tests.toys import Linear, Rich, fit, make_worker

SGD = partial(torch.optim.SGD, lr=1.0)


def average(rounds: int = 1, **options: Any) -> FedAvg:
    return FedAvg(rounds=rounds, **({"sampler": AllClients(), "server_optimizer": SGD} | options))


def three() -> ParameterLayout:
    module = nn.Module()
    module.w = nn.Parameter(torch.zeros(2))
    module.register_buffer("b", torch.zeros(1))
    return ParameterLayout(module)


def step(strategy: FedAvg, state: ServerState, update: list[float]) -> ServerState:
    return strategy.aggregate(state, Aggregate({"update": torch.tensor(update).double()}, 1.0, ()), three())


def test_fedavg_adds_the_mean_update() -> None:
    state = step(average(), ServerState(0, torch.tensor([1.0, 2.0, 3.0])), [0.5, -1.0, 0.25])
    assert state.vector.tolist() == [1.5, 1.0, 3.25]
    assert state.vector.dtype == torch.float32


def test_a_float64_state_is_not_stepped_in_place() -> None:
    module = nn.Linear(1, 1).double()
    state = ServerState(0, torch.tensor([1.0, 2.0]).double())
    update = {"update": torch.tensor([0.5, -1.0]).double()}
    after = average().aggregate(state, Aggregate(update, 1.0, ()), ParameterLayout(module))
    assert after.vector.tolist() == [1.5, 1.0]
    assert state.vector.tolist() == [1.0, 2.0]
    assert update["update"].tolist() == [0.5, -1.0]


def test_server_momentum_by_hand_and_buffers_are_averaged() -> None:
    strategy = average(server_optimizer=partial(torch.optim.SGD, lr=0.5, momentum=0.9))
    state = step(strategy, ServerState(0, torch.zeros(3)), [2.0, 4.0, 1.0])
    assert state.vector.tolist() == [1.0, 2.0, 1.0]
    state = step(strategy, state, [2.0, 0.0, 1.0])
    # velocity: 0.9 * [2, 4] + [2, 0] = [3.8, 3.6]; half of it is added
    assert state.vector.tolist() == pytest.approx([2.9, 3.8, 2.0])


def test_yogi_by_hand() -> None:
    strategy = average(server_optimizer=partial(Yogi, lr=0.1, betas=(0.9, 0.99), eps=1e-3, initial_accumulator=1e-6))
    state = step(strategy, ServerState(0, torch.zeros(3)), [2.0, -1.0, 0.0])
    first, second = 0.1 * 2.0, 1e-6 + 0.01 * 4.0
    assert state.vector[0].item() == pytest.approx(0.1 * first / (math.sqrt(second) + 1e-3), rel=1e-6)
    state = step(strategy, state, [0.1, 0.0, 0.0])
    first, second = 0.9 * first + 0.1 * 0.1, second - 0.01 * 0.01
    moved = state.vector[0].item() - 0.1 * 0.2 / (math.sqrt(1e-6 + 0.04) + 1e-3)
    assert moved == pytest.approx(0.1 * first / (math.sqrt(second) + 1e-3), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"betas": (1.0, 0.9)}, "betas"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"initial_accumulator": -1.0}, "-1"),
    ],
)
def test_yogi_checks_its_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average(server_optimizer=partial(Yogi, **options))


@pytest.mark.parametrize("batch_size", [7, 1000])
def test_fedsgd_is_one_full_batch_step_of_the_union(batch_size: int) -> None:
    strategy = FedSGD(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=0.3))
    worker = make_worker(strategy, trainer=EagerTrainer(batch_size=batch_size))
    torch.manual_seed(0)
    plain = Linear()
    worker.model.load(BoundModel(plain).vector)
    source = worker.data.splits.train
    loss = nn.functional.cross_entropy(plain.net(source.inputs), source.targets)
    loss.backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.3 * parameter.grad
    state, history = fit(worker)
    torch.testing.assert_close(state.vector, BoundModel(plain).vector, rtol=0, atol=1e-6)
    assert history[0].metrics["train/loss"] == pytest.approx(float(loss.detach()), abs=1e-6)


def test_a_subclass_adds_to_what_clients_of_fedsgd_send() -> None:
    """Here, it doubles their gradients."""

    class Doubled(FedSGD):
        def local(self, problem: LocalProblem) -> Local:
            update = yield from super().local(problem)
            return replace(update, vectors={"update": 2 * update.vectors["update"]}, metrics={"train/own": 1.0})

    options: dict[str, Any] = {"rounds": 1, "sampler": AllClients()}
    once, _ = fit(make_worker(FedSGD(**options, server_optimizer=partial(torch.optim.SGD, lr=0.2))))
    twice, history = fit(make_worker(Doubled(**options, server_optimizer=partial(torch.optim.SGD, lr=0.1))))
    torch.testing.assert_close(twice.vector, once.vector, rtol=0, atol=1e-7)
    assert history[0].metrics["train/own"] == 1.0


def test_fedprox_without_mu_is_fedavg_bit_for_bit() -> None:
    states = []
    for strategy in (average(3), FedProx(mu=0.0, rounds=3, sampler=AllClients(), server_optimizer=SGD)):
        torch.manual_seed(0)
        states.append(fit(make_worker(strategy, module=Rich()))[0])
    assert digest(states[0].vector) == digest(states[1].vector)


def test_fedprox_gradient_is_that_of_the_proximal_loss() -> None:
    """Against the term written into the loss, where autograd differentiates it."""
    mu, worker = 0.7, make_worker(FedProx(mu=0.7, rounds=1, sampler=AllClients(), server_optimizer=SGD), sizes=(40,))
    torch.manual_seed(0)
    start = BoundModel(Linear()).vector.clone()

    class Proximal(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            parts = [part.view_as(p) for p, part in zip(self.parameters(), start.split([15, 3]), strict=True)]
            distance = sum(((p - part) ** 2).sum() for p, part in zip(self.parameters(), parts, strict=True))
            return super().training_step(batch, batch_idx) + mu / 2 * distance

    torch.manual_seed(0)
    explicit, _ = fit(make_worker(average(), module=Proximal(), sizes=(40,)))
    torch.testing.assert_close(fit(worker)[0].vector, explicit.vector, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"strategy\.mu=-0\.1: must be at least 0"):
        FedProx(mu=-0.1, rounds=1, sampler=AllClients(), server_optimizer=SGD)


def test_fedavg_is_the_weighted_mean_of_the_clients_models() -> None:
    worker = make_worker(average(), sizes=(10, 50))
    torch.manual_seed(0)
    start = BoundModel(Linear()).vector.clone()
    alone = []
    for size in (10, 50):
        index = {10: 0, 50: 1}[size]
        plain = Linear()
        model = BoundModel(plain)
        model.load(start)
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
        source, indices = worker.data.splits.train, worker.data.train_indices(index)
        for begin in range(0, size, 8):
            chosen = indices[begin : begin + 8]
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain.net(source.inputs[chosen]), source.targets[chosen]).backward()
            optimizer.step()
        alone.append(model.vector.double())
    state, history = fit(worker)
    torch.testing.assert_close(state.vector.double(), (alone[0] + 5 * alone[1]) / 6, rtol=0, atol=1e-7)
    assert [report.num_steps for report in history[0].reports] == [2, 7]


def test_bytes_are_counted() -> None:
    _, history = fit(make_worker(average(2, sampler=UniformSampler(num=2))))
    assert history[1].metrics["comm/up_bytes"] == history[1].metrics["comm/down_bytes"] == 2 * 18 * 4


class _Spoil(Linear):
    """Gives a NaN to a client whose samples contain a marked one."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if bool((batch[0] > 1e5).any()) else loss


def spoiled_worker(strategy: FedAvg, clients: list[int]) -> Any:
    torch.manual_seed(0)
    worker = make_worker(strategy, module=_Spoil())
    for client in clients:
        worker.data.splits.train.inputs[worker.data.train_indices(client)[0]] = 1e6
    return worker


def test_a_client_gone_astray_is_left_out_named_and_counted() -> None:
    state, history = fit(spoiled_worker(average(), [1]))
    assert history[0].metrics["clients/rejected"] == 1
    assert [report.rejected for report in history[0].reports] == [None, "update is not finite", None]
    others = UniformSampler(num=2)
    others.__class__ = type(
        "Others", (UniformSampler,), {"__call__": lambda self, n, **k: torch.tensor([0, 2]).numpy()}
    )
    without, _ = fit(spoiled_worker(average(sampler=others), []))
    assert digest(state.vector) == digest(without.vector)
    assert history[0].metrics["train/loss"] == without_loss(history)


def without_loss(history: Any) -> float:
    reports = [report for report in history[0].reports if report.rejected is None]
    return math.fsum(r.metrics["train/loss"] * r.num_samples for r in reports) / sum(r.num_samples for r in reports)


def test_too_few_usable_updates_end_the_run() -> None:
    seen = []

    class Watch(Callback):
        def on_exception(self, state: Any, history: Any, error: BaseException) -> None:
            seen.append((state.round, len(history), type(error)))

    worker = spoiled_worker(average(3, min_clients=2), [0, 2])
    with pytest.raises(
        TooFewUpdatesError, match=r"round 1: 1 usable updates, strategy.min_clients=2; client 0: update is"
    ):
        fit(worker, callbacks=[Watch()])
    assert seen == [(0, 0, TooFewUpdatesError)]


def test_an_error_in_a_client_names_it_and_keeps_its_cause() -> None:
    class Breaks(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise KeyError("missing")

    with pytest.raises(ClientError, match="client 0, round 1: KeyError: 'missing'") as caught:
        fit(make_worker(average(), module=Breaks()))
    assert isinstance(caught.value.__cause__, KeyError)


def test_transforms_run_and_are_counted() -> None:
    transforms = {"bound": ClipNorm(max_norm=1e-3)}
    state, history = fit(make_worker(average(transforms=transforms)))
    counts = {k: v for k, v in history[0].metrics.items() if k.startswith("transforms/")}
    assert counts == {"transforms/bound/clients": 3.0, "transforms/bound/clipped": 3.0}
    assert float((state.vector - make_worker(average()).model.vector).norm()) <= 1.001e-3


def test_a_transform_that_never_ran_fails_the_run() -> None:
    """The backend's workers have been made with a strategy that has none."""
    worker, backend = make_worker(average()), SerialBackend()
    backend.start(worker)
    strategy, layout = average(transforms={"bound": ClipNorm(max_norm=1.0)}), worker.model.layout
    state = strategy.initialize(worker.model.vector.clone(), layout)
    with pytest.raises(RuntimeError, match="transform bound was asked for but never ran"):
        strategy.fit(state, backend=backend, layout=layout, seed=0, callbacks=Callbacks())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rounds": 0}, r"strategy\.rounds=0: must be at least 1"), ({"min_clients": 0}, r"strategy\.min_clients=0")],
)
def test_settings_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average(**options)


def test_partial_participation_follows_the_seed() -> None:
    cohorts = []

    class Watch(Callback):
        def on_round_start(self, round: int, cohort: Any) -> None:
            cohorts.append(list(cohort))

    for seed in (0, 0, 1):
        fit(make_worker(average(5, sampler=UniformSampler(num=2)), seed=seed), callbacks=[Watch()])
    assert cohorts[:5] == cohorts[5:10] != cohorts[10:]
    assert {len(cohort) for cohort in cohorts} == {2}


def test_frozen_parameters_stay_frozen_or_are_named() -> None:
    class Thaws(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.net.bias.requires_grad_(False)

        def on_train_start(self) -> None:
            self.net.bias.requires_grad_(True)

    with pytest.raises(ClientError, match=r"parameter 'net\.bias' was frozen at the start and has been changed"):
        fit(make_worker(average(), module=Thaws()))


def test_evaluation_is_seeded_by_round_alone() -> None:
    class Noisy(Linear):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test/noise", torch.rand(()))

    losses = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        _, history = fit(make_worker(average(2), module=Noisy()))
        losses.append([record.metrics["test/noise"] for record in history])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]
