"""What a round costs: nothing for clients that do not take part, a small record for one that does."""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flrl.aggregation import Aggregator, Krum, Mean, Median, TrimmedMean
from flrl.callbacks import Callback, RunFolder, RunInfo
from flrl.callbacks.checkpoint import Checkpoint
from flrl.errors import TooFewUpdatesError
from flrl.evaluation import Evaluator
from flrl.layout import ParameterLayout
from flrl.sampling import AllClients, PoissonSampler, UniformSampler
from flrl.strategies import FedAvg, Scaffold
from flrl.strategies.base import Local
from flrl.trainers import LocalProblem
from flrl.transforms import Context, Transform
from flrl.types import ClientReport, ClientUpdate, Metrics, RoundRecord, ServerState, Tensors
from tests.counting import calls, peak_bytes
from tests.toys import Linear, fit, make_worker

SGD = partial(torch.optim.SGD, lr=1.0)


def fedavg(rounds: int, cohort: int, **options: Any) -> FedAvg:
    return FedAvg(rounds=rounds, sampler=UniformSampler(num=cohort), server_optimizer=SGD, **options)


def test_the_weight_of_all_clients_is_summed_once_a_run() -> None:
    asked: list[int] = []

    class Asked(FedAvg):
        def weight(self, num_samples: int) -> float:
            asked.append(num_samples)
            return super().weight(num_samples)

    strategy = Asked(rounds=4, sampler=UniformSampler(num=2), server_optimizer=SGD)
    fit(make_worker(strategy, sizes=(3, 4, 4, 5, 5, 5, 5)))
    assert len(asked) == 4 * 2 + 3  # the tasks of four rounds, and three different sizes
    assert strategy.weight_of_all(np.array([3, 4, 4, 5, 5, 5, 5])) == 31.0


def test_a_plan_takes_as_many_calls_and_bytes_in_any_population() -> None:
    strategy, state, layout = fedavg(1, 100), ServerState(0, torch.zeros(18)), ParameterLayout(Linear())
    plans = [partial(strategy.plan, state, np.full(size, 2), 0, layout) for size in (10_001, 10_001, 10**6)]
    counts = [calls(plan) for plan in plans]
    assert counts[2] == counts[1]
    assert peak_bytes(plans[2]) < peak_bytes(plans[1]) + 4096 < 100_000


def test_a_run_takes_as_many_calls_in_any_population(tmp_path: Path) -> None:
    def rounds(population: int, rounds: int, number: int) -> int:
        worker = make_worker(fedavg(rounds, 5), sizes=[2] * population)
        folder = tmp_path / f"{number}"
        folder.mkdir()
        config = {"strategy": {"_target_": "FedAvg"}, "model": {}, "trainer": {}}
        run = RunInfo("run", folder, 0, rounds, (), config, "", model=worker.model, data=worker.data)
        callbacks = [RunFolder(), Checkpoint()]
        for callback in callbacks:
            callback.setup(run)
        return calls(lambda: fit(worker, callbacks=callbacks))

    rounds(100, 1, 0)  # what is imported and compiled the first time
    few, many = rounds(100, 3, 1), rounds(20_000, 3, 2)
    assert many == pytest.approx(few, rel=0.01)


class Counted(Callback):
    """How much of what clients have sent and remember is still there."""

    def __init__(self) -> None:
        self.updates: list[weakref.ref[Tensor]] = []
        self.memories: list[weakref.ref[Tensor]] = []
        self.reports: list[list[int]] = []
        self.most_updates = 0

    def note(self, update: ClientUpdate) -> None:
        self.updates.append(weakref.ref(update.vectors["update"]))
        self.most_updates = max(self.most_updates, alive(self.updates))

    def on_client_end(self, report: ClientReport) -> None:
        self.memories += [weakref.ref(tensor) for tensor in (report.memory or {}).values()]

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        self.reports.append([len(record.reports) for record in history])


class Noting(Transform):
    """Passes each update to a function, since a strategy and what it holds may not change themselves."""

    def __init__(self, note: Callable[[ClientUpdate], None]) -> None:
        self.note = note

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        self.note(update)
        return update, memory, {}


def alive(references: list[weakref.ref[Tensor]]) -> int:
    return sum(reference() is not None for reference in references)


def test_no_more_than_two_updates_are_held_at_a_time() -> None:
    counted = Counted()
    fit(
        make_worker(fedavg(2, 40, transforms={"noting": Noting(lambda update: counted.note(update))}), sizes=[2] * 50),
        callbacks=[counted],
    )
    assert len(counted.updates) == 80
    assert counted.most_updates <= 2  # one that has been added, and the next one
    assert alive(counted.updates) == 0


def test_reports_and_what_clients_remembered_do_not_pile_up() -> None:
    counted = Counted()
    strategy = Scaffold(rounds=4, sampler=UniformSampler(), server_optimizer=SGD)
    state, history = fit(make_worker(strategy, sizes=(10, 11, 12)), callbacks=[counted])
    assert counted.reports == [[3], [0, 3], [0, 0, 3], [0, 0, 0, 3]]
    assert [len(record.reports) for record in history] == [0, 0, 0, 3]
    assert len(counted.memories) == 12
    assert alive(counted.memories) == len(state.memory) == 3
    assert [report.memory for report in history[-1].reports] == [None] * 3  # it is the state's


def test_a_client_of_the_cohort_takes_a_small_record() -> None:
    def most(cohort: int) -> int:
        worker = make_worker(fedavg(2, cohort), sizes=[2] * 400)
        return peak_bytes(lambda: fit(worker))

    most(2)
    assert (most(300) - most(100)) / 200 < 2000  # a report and a task; what torch holds is counted above


def test_the_weight_of_all_clients_is_by_hand() -> None:
    class Squared(FedAvg):
        def weight(self, num_samples: int) -> float:
            return float(num_samples**2)

    sizes = np.array([3, 5, 3, 3])
    assert fedavg(1, 1).weight_of_all(sizes) == 14.0
    options: dict[str, Any] = {"rounds": 1, "sampler": UniformSampler(), "server_optimizer": SGD}
    assert Squared(**options).weight_of_all(sizes) == 52.0


def test_the_rounds_have_the_samplers_cohorts() -> None:
    """Rounds are counted from 1, for the sampler and for the clients."""
    strategy = fedavg(3, 2)
    worker = make_worker(strategy, sizes=(10, 11, 12, 13))
    for done in (0, 1, 2):
        state = ServerState(done, worker.model.vector)
        broadcast, tasks = strategy.plan(state, worker.data.sizes, 7, worker.model.layout)
        cohort = UniformSampler(num=2)(4, seed=7, round=done + 1).tolist()
        assert [task.client_id for task in tasks] == cohort
        assert {broadcast.round, *(task.round for task in tasks)} == {done + 1}
        assert [(task.num_samples, task.weight) for task in tasks] == [(10 + c, 10.0 + c) for c in cohort]
        assert broadcast.total_weight == sum(10.0 + c for c in cohort)
        assert (broadcast.cohort, broadcast.payload) == (tuple(cohort), {"vector": 18 * 4})


def test_the_evaluation_before_training_is_not_repeated() -> None:
    """A run that was interrupted in its first round goes on with round 0 in its history."""
    evaluator = Evaluator(at_start=True)
    _, history = fit(make_worker(fedavg(1, 2), evaluator=evaluator))
    assert [record.round for record in history] == [0, 1]
    _, resumed = fit(make_worker(fedavg(1, 2), evaluator=evaluator), history=history[:1])
    assert [(record.round, record.digest) for record in resumed] == [(r.round, r.digest) for r in history]


@pytest.mark.parametrize("aggregator", [Mean(), Median()])
def test_a_cohort_may_be_empty(aggregator: Aggregator) -> None:
    """Nobody is drawn in the second of three rounds of two clients with these seeds; then the model stays."""
    sampler = PoissonSampler(probability=0.4)
    seed = next(s for s in range(1000) if [len(sampler(2, seed=s, round=r)) for r in (1, 2, 3)] == [2, 0, 1])
    options: dict[str, Any] = {"sampler": sampler, "server_optimizer": SGD, "aggregator": aggregator}
    worker = make_worker(FedAvg(rounds=3, **options), sizes=(10, 12), seed=seed)
    _, (first, second, third) = fit(worker)
    assert [record.metrics["clients/num"] for record in (first, second, third)] == [2.0, 0.0, 1.0]
    assert second.digest == first.digest != third.digest
    assert second.metrics["comm/up_bytes"] == second.metrics["comm/down_bytes"] == 0.0
    assert "train/loss" not in second.metrics


def test_the_fewest_updates_are_asked_of_rounds_with_clients() -> None:
    sampler = PoissonSampler(probability=0.4)
    seed = next(s for s in range(1000) if [len(sampler(2, seed=s, round=r)) for r in (1, 2, 3)] == [2, 0, 1])
    strategy = FedAvg(rounds=3, sampler=sampler, server_optimizer=SGD, min_clients=2)
    with pytest.raises(TooFewUpdatesError, match=r"1 usable updates, strategy\.min_clients=2; only 1 took part"):
        fit(make_worker(strategy, sizes=(10, 12), seed=seed))


def test_a_cohort_that_is_too_small_for_the_rule_leaves_the_model() -> None:
    sampler, rule = PoissonSampler(probability=0.6), TrimmedMean(num_malicious=1)
    seed = next(s for s in range(1000) if [len(sampler(4, seed=s, round=r)) for r in (1, 2, 3)] == [4, 2, 3])
    options: dict[str, Any] = {"sampler": sampler, "server_optimizer": SGD, "aggregator": rule}
    _, (first, second, third) = fit(make_worker(FedAvg(rounds=3, **options), sizes=(4, 4, 4, 4), seed=seed))
    assert [record.metrics["clients/num"] for record in (first, second, third)] == [4.0, 2.0, 3.0]
    assert second.digest == first.digest != third.digest
    assert second.metrics["clients/rejected"] == 2.0


@pytest.mark.parametrize(("lost", "ends"), [("failed", True), ("not finite", False)])
def test_clients_that_fail_may_leave_too_few_for_the_rule(lost: str, ends: bool) -> None:
    """Krum needs five rows to bear one malicious client; who sends NaN is that client."""

    class Losing(FedAvg):
        def local(self, problem: LocalProblem) -> Local:
            if problem.task.client_id == 0 and lost == "failed":
                raise RuntimeError("no")
            update = (yield problem).update(problem)
            if problem.task.client_id == 0:
                update.vectors["update"].fill_(torch.nan)
            return update

    strategy = Losing(rounds=1, sampler=AllClients(), server_optimizer=SGD, aggregator=Krum(num_malicious=1))
    worker = replace(make_worker(strategy, sizes=(4,) * 5), drop_failures=True)
    if not ends:
        assert fit(worker)[1][-1].metrics["clients/rejected"] == 1.0
        return
    with pytest.raises(
        TooFewUpdatesError, match=r"^round 1: 4 clients have sent updates, too few for Krum; client 0: "
    ):
        fit(worker)


def test_a_client_forgets_what_its_update_does_not_bring_again() -> None:
    """What was remembered in one round is forgotten in the next; a rejected update changes nothing."""

    class Forgetful(FedAvg):
        def local(self, problem: LocalProblem) -> Local:
            trained = yield problem
            task = problem.task
            memory = {} if task.memory else {"round": torch.tensor(task.round)}
            update = trained.update(problem, memory=memory)
            if (task.client_id, task.round) == (1, 2):
                update.vectors["update"].fill_(torch.nan)  # it is rejected
            return update

    seen: list[dict[int, list[int]]] = []

    class Seen(Callback):
        def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
            seen.append({c: [int(value) for value in memory.values()] for c, memory in state.memory.items()})

    strategy = Forgetful(rounds=3, sampler=UniformSampler(), server_optimizer=SGD)
    fit(make_worker(strategy, sizes=(10, 12)), callbacks=[Seen()])
    assert seen == [{0: [1], 1: [1]}, {1: [1]}, {0: [3]}]
