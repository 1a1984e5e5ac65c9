"""Strategies, samplers, transforms and rules of a user's own: what they draw follows the seed, faults are named."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flrl.aggregation import RowRule, Rows
from flrl.layout import ParameterLayout, digest
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.strategies.base import Local
from flrl.trainers import EagerTrainer, LocalProblem, VectorizedTrainer
from flrl.transforms import Transform
from flrl.types import Aggregate, ServerState, Tensors
from tests.toys import fit, make_worker

OPTIONS: dict[str, Any] = {"sampler": AllClients(), "server_optimizer": partial(torch.optim.SGD, lr=1.0)}


class Drawing(FedAvg):
    """Draws before a training and after it, of all three generators."""

    def local(self, problem: LocalProblem) -> Local:
        noise = 0.01 * torch.randn_like(problem.start) * (1 + random.random())
        trained = yield replace(problem, start=problem.start + noise, epochs=int(np.random.randint(1, 4)))
        return trained.update(problem, memory={"drawn": torch.rand(2)})


class DrawingServer(FedAvg):
    """Draws on the server."""

    def initialize(self, vector: Tensor, layout: ParameterLayout) -> ServerState:
        return ServerState(0, vector + 0.01 * torch.randn_like(vector))

    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        after = super().aggregate(state, aggregate, layout)
        return replace(after, vector=after.vector + 0.01 * torch.randn(layout.size) * random.random())


def test_what_local_draws_follows_from_seed_round_and_client() -> None:
    """Whoever trains before whom."""
    worker = make_worker(Drawing(rounds=1, **OPTIONS))
    state = ServerState(0, worker.model.vector.clone())
    broadcast, tasks = worker.strategy.plan(state, worker.data.sizes, 0, worker.model.layout)
    found = []
    for order in (tasks, tasks[::-1], tasks[1:]):
        torch.rand(5), np.random.rand(3), random.random()
        reports = worker.train(broadcast, order, lambda report: None)[1]
        found.append({r.client_id: (r.checksum, r.memory["drawn"].tolist()) for r in reports if r.memory})
    assert found[0] == found[1]
    assert found[2].items() < found[0].items()
    assert len({drawn[0] for _, drawn in found[0].values()}) == 3
    later = replace(broadcast, round=2), [replace(task, round=2) for task in tasks]
    again = worker.train(*later, lambda report: None)[1]
    assert {r.checksum for r in again}.isdisjoint({checksum for checksum, _ in found[0].values()})


def test_what_the_server_draws_follows_from_seed_and_round() -> None:
    """Four rounds are two and two more, whatever was drawn in between."""
    whole, _ = fit(make_worker(DrawingServer(rounds=4, **OPTIONS)), state=start())
    half, history = fit(make_worker(DrawingServer(rounds=2, **OPTIONS)), state=start())
    torch.rand(7), random.random()
    rest, _ = fit(make_worker(DrawingServer(rounds=4, **OPTIONS)), state=half, history=history)
    assert digest(rest.vector) == digest(whole.vector) != digest(half.vector)


def start() -> ServerState:
    return ServerState(0, torch.linspace(-1, 1, 18))


class Own(FedAvg):
    """Does what it is told."""

    def __init__(self, part: Callable[[LocalProblem], Any]) -> None:
        super().__init__(rounds=1, **OPTIONS)
        self.part = part

    def local(self, problem: LocalProblem) -> Any:
        return self.part(problem)


def yielding(value: Callable[[LocalProblem], Any]) -> Callable[[LocalProblem], Any]:
    def part(problem: LocalProblem) -> Any:
        trained = yield value(problem)
        return trained.update(problem)

    return part


def returning(value: Callable[[Any, LocalProblem], Any]) -> Callable[[LocalProblem], Any]:
    def part(problem: LocalProblem) -> Any:
        trained = yield problem
        return value(trained, problem)

    return part


def changing(change: Callable[[LocalProblem], Any]) -> Callable[[LocalProblem], Any]:
    def part(problem: LocalProblem) -> Any:
        change(problem)
        trained = yield problem
        return trained.update(problem)

    return part


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (yielding(lambda problem: None), "Own.local yields NoneType, must be a LocalProblem"),
        (yielding(lambda p: replace(p, epochs=0)), "a problem with epochs=0: must be at least 1, or None"),
        (yielding(lambda p: replace(p, steps=-1)), "a problem with steps=-1: must be at least 1, or None"),
        (yielding(lambda p: replace(p, trainable=frozenset())), "in which no parameter is trainable"),
        (yielding(lambda p: replace(p, values={"a": 1.0})), "whose values must be tensors by name; found float as 'a'"),
        (lambda problem: None, "Own.local must be a generator, which yields problems; it returns NoneType"),
        (returning(lambda trained, p: None), "Own.local returns NoneType, must be a ClientUpdate"),
        (returning(lambda trained, p: trained), "Own.local returns Trained, must be a ClientUpdate"),
        (
            returning(lambda trained, p: trained.update(p, vectors={"more": [1.0]})),
            "returns vectors, which must be tensors by name; found list as 'more'",
        ),
        (
            returning(lambda trained, p: trained.update(p, vectors={"more": torch.zeros(2).double()})),
            r"sent vectors \{'update': 18, 'more': 2\}, expected \{'update': 18\}",
        ),
        (
            returning(lambda trained, p: trained.update(p, memory={"seen": 3})),
            "returns memory, which must be tensors by name; found int as 'seen'",
        ),
        (
            returning(lambda trained, p: trained.update(p, memory={"transforms/top_k/error": torch.zeros(1)})),
            "memory 'transforms/top_k/error': this name is taken",
        ),
        (changing(lambda p: p.start.mul_(0.5)), "Own.local changes problem.start in place"),
        (
            changing(lambda p: p.broadcast.vector.zero_()),
            r"Own.local changes (problem.start|broadcast.vector) in place",
        ),
        (changing(lambda p: p.indices.sort()), "Own.local changes problem.indices in place"),
    ],
)
def test_what_local_does_wrong_is_named_in_the_rehearsal(part: Any, message: str) -> None:
    worker = make_worker(Own(part), sizes=(20, 30))
    worker.data.train_indices(0)[:] = worker.data.train_indices(0)[::-1].copy()
    plan = worker.strategy.plan(start(), worker.data.sizes, 0, worker.model.layout)
    with pytest.raises((ValueError, TypeError), match=message):
        worker.rehearse(*plan)


def test_starts_and_models_of_other_dtypes_become_the_models() -> None:
    """`Trained.difference` and what is aggregated are float64, so sums with them are."""

    class Plain(FedAvg):
        def local(self, problem: LocalProblem) -> Local:
            trained = yield replace(problem, start=problem.start.double() + 1e-3)
            return trained.update(problem)

        def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
            return replace(state, vector=state.vector + aggregate.vectors["update"])

    for trainer in (EagerTrainer(batch_size=8), VectorizedTrainer(batch_size=8)):
        state, history = fit(make_worker(Plain(rounds=2, **OPTIONS), trainer=trainer), state=start())
        assert state.vector.dtype == torch.float32
        assert history[-1].digest == digest(state.vector)


@pytest.mark.parametrize("engine", [EagerTrainer, partial(VectorizedTrainer, width=2)])
def test_numbers_among_the_values(engine: Any) -> None:
    """A number of each client is that number in all places of its gradient."""

    class Scaled(FedAvg):
        def local(self, problem: LocalProblem) -> Local:
            factor = torch.tensor(float(problem.task.client_id))
            trained = yield replace(problem, values={"factor": factor})
            return trained.update(problem)

        def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
            gradient.mul_(values["factor"])

    worker = make_worker(Scaled(rounds=1, **OPTIONS), trainer=engine(batch_size=8), sizes=(30, 30))
    plan = worker.strategy.plan(start(), worker.data.sizes, 0, worker.model.layout)
    reducers = [worker.train(plan[0], worker.batched(plan[1])[: n + 1], lambda report: None)[0] for n in (0, 1)]
    assert reducers[0].result()[0]["update"].abs().max() == 0.0  # client 0 takes no step
    both = reducers[1].result()[0]["update"]
    plain = make_worker(FedAvg(rounds=1, **OPTIONS), trainer=engine(batch_size=8), sizes=(30, 30))
    one = plain.train(plan[0], [plan[1][1]], lambda report: None)[0].result()[0]["update"]
    torch.testing.assert_close(both, one / 2, rtol=0, atol=1e-7)


def test_a_gradient_is_changed_in_place() -> None:
    class Returning(FedAvg):
        def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> Any:
            return gradient * 2

    with pytest.raises(Exception, match=r"Returning.adjust_gradient returns something: it must change the gradient in"):
        fit(make_worker(Returning(rounds=1, **OPTIONS)))


@pytest.mark.parametrize(("cohort", "shown"), [([0, 1, 1], r"\[0, 1, 1\]"), ([-1, 0], r"\[-1, 0\]"), ([3], r"\[3\]")])
def test_a_cohort_is_distinct_clients(cohort: list[int], shown: str) -> None:
    class Sampler(AllClients):
        def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
            return np.array(cohort)

    strategy = FedAvg(rounds=1, **{**OPTIONS, "sampler": Sampler()})
    with pytest.raises(ValueError, match=f"Sampler gives {shown}: must be distinct clients, from 0 to 2"):
        fit(make_worker(strategy))


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        ("client", lambda first: (first, {}), "client must return three things: the update, .* it returns tuple"),
        ("client", lambda first: None, "it returns NoneType"),
        ("server", lambda first: first, "server must return three things: the vectors, .* it returns dict"),
        ("server", lambda first: (first, {"a": 1.0}, {}), "server has float remembered as 'a'"),
    ],
)
def test_what_a_transform_returns_is_checked(method: str, result: Any, message: str) -> None:
    made = type("Made", (Transform,), {method: lambda self, first, state, context: result(first)})()
    strategy = FedAvg(rounds=1, **OPTIONS, transforms={"mine": made})
    with pytest.raises(Exception, match=f"strategy.transforms.mine: .*{message}"):
        fit(make_worker(strategy))


@pytest.mark.parametrize(
    ("result", "found"),
    [(None, "NoneType"), (torch.zeros(2), r"shape \(2,\)"), (torch.zeros(18, 1), r"shape \(18, 1\)")],
)
def test_what_a_rule_gives_is_checked(result: Any, found: str) -> None:
    class Rule(RowRule):
        def rule(self, rows: Rows) -> Any:
            return result

    with pytest.raises(TypeError, match=rf"strategy.aggregator: Rule.rule gives {found}, must be \[18\]"):
        fit(make_worker(FedAvg(rounds=1, **OPTIONS, aggregator=Rule())))


def test_what_a_transform_draws_follows_from_seed_round_and_client() -> None:
    """From the global generators, in whatever order clients come, alone or in a client batch."""

    class Noisy(Transform):
        def client(self, update: Any, memory: Tensors, context: Any) -> Any:
            return update, {"drawn": torch.rand(3)}, {}

    found = []
    for trainer in (EagerTrainer(batch_size=8), VectorizedTrainer(batch_size=8, width=3)):
        worker = make_worker(FedAvg(rounds=1, **OPTIONS, transforms={"noisy": Noisy()}), trainer=trainer)
        broadcast, tasks = worker.strategy.plan(start(), worker.data.sizes, 0, worker.model.layout)
        for order in (worker.batched(tasks), worker.batched(tasks)[::-1]):
            reports = worker.train(broadcast, order, lambda report: None)[1]
            found.append({r.client_id: r.memory["transforms/noisy/drawn"].tolist() for r in reports if r.memory})
    assert all(other == found[0] for other in found)
    assert len({tuple(drawn) for drawn in found[0].values()}) == 3
