"""What a strategy may ask of a training: its start, its length, the parameters that are stepped; on every engine."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flrl.layout import digest
from flrl.sampling import AllClients
from flrl.strategies import FedAvg, Strategy
from flrl.strategies.base import Local
from flrl.trainers import EagerTrainer, LightningTrainer, LocalProblem, TracedTrainer, Trainer, VectorizedTrainer
from flrl.types import ServerState, Tensors
from tests.toys import Linear, fit, make_worker

ENGINES: dict[str, Callable[..., Trainer]] = {
    "eager": EagerTrainer,
    "traced": TracedTrainer,
    "lightning": LightningTrainer,
    "vectorized": partial(VectorizedTrainer, width=2),
}
SIZES = (20, 30, 40)


class Asking(FedAvg):
    """Changes each problem before it is trained."""

    def __init__(self, change: Callable[[LocalProblem], LocalProblem], rounds: int = 2) -> None:
        super().__init__(rounds=rounds, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
        self.change = change

    def local(self, problem: LocalProblem) -> Local:
        trained = yield self.change(problem)
        return trained.update(problem)


def as_it_is(problem: LocalProblem) -> LocalProblem:
    return problem


class Deep(Linear):
    """Two layers, with momentum and weight decay, which would move what is not trained too."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr, momentum=0.9, weight_decay=0.1)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def run(strategy: Strategy, trainer: Trainer, *, sizes: tuple[int, ...] = SIZES, lr: float = 0.1) -> ServerState:
    torch.manual_seed(0)
    return fit(make_worker(strategy, module=Deep(lr), trainer=trainer, sizes=sizes))[0]


def same(engine: str, state: ServerState, expected: ServerState) -> None:
    """To the bit, but for vectorized."""
    if engine == "vectorized":
        torch.testing.assert_close(state.vector, expected.vector, rtol=0, atol=2e-6)
    else:
        assert digest(state.vector) == digest(expected.vector)


@pytest.mark.parametrize("engine", ENGINES)
def test_each_client_starts_where_it_is_told(engine: str) -> None:
    """Without learning, the mean of the updates is the mean of the starts: 0.25 (1 * 30 + 2 * 40) / 90 everywhere."""

    def moved(problem: LocalProblem) -> LocalProblem:
        return replace(problem, start=problem.start + 0.25 * problem.task.client_id)

    trainer = ENGINES[engine](batch_size=8)
    torch.manual_seed(0)
    initial = make_worker(Asking(moved), module=Deep()).model.vector.clone()
    still = run(Asking(moved, rounds=1), trainer, lr=0.0)
    torch.testing.assert_close(still.vector - initial, torch.full_like(initial, 27.5 / 90), rtol=0, atol=1e-6)
    same(engine, run(Asking(moved), trainer), run(Asking(moved), EagerTrainer(batch_size=8)))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_not_trainable_stays_to_the_bit(engine: str) -> None:
    head = partial(replace, trainable=frozenset(["net.2.weight", "net.2.bias"]))
    trainer = ENGINES[engine](batch_size=8)
    torch.manual_seed(0)
    worker = make_worker(Asking(head), module=Deep(), trainer=trainer)
    initial = worker.model.vector.clone()
    state, _ = fit(worker)
    body = sum(p.numel() for p in Deep().net[0].parameters())
    assert torch.equal(state.vector[:body], initial[:body])
    assert (state.vector[body:] != initial[body:]).all()
    same(engine, state, run(Asking(head), EagerTrainer(batch_size=8)))


def test_a_parameter_that_there_is_not_is_named() -> None:
    with pytest.raises(Exception, match=r"LocalProblem.trainable: 'net.9.weight' is no trainable parameter"):
        run(Asking(partial(replace, trainable=frozenset(["net.9.weight"]))), EagerTrainer())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("asked", "settings"), [({"epochs": 2}, {"local_epochs": 2}), ({"steps": 4}, {"local_steps": 4})]
)
def test_epochs_and_steps_are_asked_for_as_they_are_set(
    engine: str, asked: dict[str, int], settings: dict[str, int]
) -> None:
    by_problem = run(Asking(partial(replace, **asked)), ENGINES[engine](batch_size=8))
    by_trainer = run(Asking(as_it_is), ENGINES[engine](batch_size=8, **settings))
    assert digest(by_problem.vector) == digest(by_trainer.vector)
    assert digest(by_problem.vector) != digest(run(Asking(as_it_is), ENGINES[engine](batch_size=8)).vector)


@pytest.mark.parametrize("engine", ENGINES)
def test_as_many_steps_as_batches_are_an_epoch(engine: str) -> None:
    of_steps = run(Asking(as_it_is), ENGINES[engine](batch_size=10, local_steps=3), sizes=(30, 30))
    assert digest(of_steps.vector) == digest(
        run(Asking(as_it_is), ENGINES[engine](batch_size=10), sizes=(30, 30)).vector
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_go_on_where_the_last_round_ended(engine: str) -> None:
    """One client, whose model is the next global one: two rounds of three steps are one of six, of 2.5 batches."""

    def steps(number: int, rounds: int) -> ServerState:
        torch.manual_seed(0)
        trainer = ENGINES[engine](batch_size=8, local_steps=number)
        return fit(make_worker(Asking(as_it_is, rounds), module=Linear(), trainer=trainer, sizes=(20,)))[0]

    assert digest(steps(3, 2).vector) == digest(steps(6, 1).vector) == digest(steps(1, 6).vector)
    assert digest(steps(3, 1).vector) != digest(steps(6, 1).vector)


def test_the_batches_of_steps_by_hand() -> None:
    worker = make_worker(Asking(as_it_is), sizes=(20, 30, 40))
    trainer = EagerTrainer(batch_size=8, local_steps=4)
    task = next(t for t in plan(worker) if t.client_id == 0)
    problem = LocalProblem.of(
        worker.model, worker.data.splits.train, worker.data.train_indices(0), task, broadcast(worker), 0
    )
    own = worker.data.train_indices(0)
    inputs = worker.data.splits.train.inputs[own]  # type: ignore[attr-defined]
    parts = [inputs[:8], inputs[8:16], inputs[16:], inputs[:8], inputs[8:16], inputs[16:]]
    for position, expected in ((0, parts[:4]), (2, parts[2:6]), (5, [parts[2], *parts[:3]])):
        found = list(trainer.batches(replace(problem, position=position), 0))
        assert [number for _, number in found] == [len(part) for part in expected]
        for (batch, _), part in zip(found, expected, strict=True):
            assert torch.equal(batch[0], part)


def plan(worker: Any) -> Any:
    return worker.strategy.plan(state_of(worker), worker.data.sizes, 0, worker.model.layout)[1]


def broadcast(worker: Any) -> Any:
    return worker.strategy.plan(state_of(worker), worker.data.sizes, 0, worker.model.layout)[0]


def state_of(worker: Any) -> ServerState:
    return ServerState(0, worker.model.vector.clone())


class Normed(FedAvg):
    """Divides each gradient by its norm, which is not elementwise."""

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        gradient.div_(gradient.norm())


class NormedByRow(FedAvg):
    """Likewise, and for several clients each by itself."""

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        gradient.div_(gradient.norm(dim=-1, keepdim=True))


class ByRow(FedAvg):
    """Elementwise for one client, but not for several: it adds the sum over clients."""

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        gradient.add_(parameters if parameters.ndim == 1 else parameters.sum(0))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("strategy", [Normed, NormedByRow, ByRow])
def test_a_gradient_is_adjusted_elementwise(engine: str, strategy: type[FedAvg]) -> None:
    made = strategy(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    with pytest.raises(Exception, match=f"{strategy.__name__}.adjust_gradient is not elementwise"):
        run(made, ENGINES[engine](batch_size=8))
