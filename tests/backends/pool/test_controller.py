"""The controller: who is given what, how sums are joined, what is sent to whom; workers live in this process."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from flrl.aggregation.exact_sum import LIMIT, ExactSum
from flrl.backends import SerialBackend
from flrl.backends.pool.job import Job
from flrl.backends.pool.messages import Evaluate, Train
from flrl.data import FederatedData
from flrl.evaluation import Evaluator
from flrl.examiner import EvaluationShare
from flrl.sampling import AllClients
from flrl.strategies import FedAvg, Scaffold
from flrl.trainers import EagerTrainer, Trained, VectorizedTrainer
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState
from flrl.worker import Worker
from tests.backends.inside import started
from tests.toys import Linear, make_worker

SIZES = (20, 40, 10, 30)
OPTIONS: dict[str, Any] = {
    "rounds": 2,
    "sampler": AllClients(),
    "server_optimizer": partial(torch.optim.SGD, lr=1.0),
}
EVERYWHERE = pytest.mark.parametrize(
    ("workers", "trains_here"), [(1, False), (2, False), (3, False), (1, True), (2, True)]
)


def worker(
    kind: Any = FedAvg, *, trainer: Any = None, module: Any = None, sizes: Any = SIZES, **options: Any
) -> Worker:
    evaluator = Evaluator(batch_size=7, clients_every=1)
    made = make_worker(kind(**OPTIONS), trainer=trainer, module=module, sizes=sizes, evaluator=evaluator)
    data = FederatedData(made.data.splits, lambda n, labels, rng: owners(sizes), seed=0, holdout=0.2)
    return replace(made, data=data, **options)


def owners(sizes: Any) -> Any:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).numpy()


def round_of(backend: Any, made: Worker, *, received: list[ClientReport] | None = None) -> Any:
    """What a backend makes of one round, in numbers and bits."""
    sizes = made.data.sizes.tolist()
    memory = {"control": torch.ones(made.model.layout.num_trainable)} if isinstance(made.strategy, Scaffold) else {}
    tasks = [ClientTask(1, client, size, float(size), memory) for client, size in enumerate(sizes)]
    variables = {name: torch.full_like(tensor, 0.5) for name, tensor in memory.items()}
    broadcast = Broadcast(1, torch.linspace(-1, 1, made.model.layout.size), float(sum(sizes)), variables)
    whole = backend.train(broadcast, tasks, (received if received is not None else []).append)
    vectors, total_weight = whole.reducer.result()
    bits = {name: mean.numpy().tobytes() for name, mean in vectors.items()}
    memories = [{n: t.tolist() for n, t in (report.memory or {}).items()} for report in whole.reports]
    reports = [replace(report, memory=None) for report in whole.reports]
    found = backend.evaluate(ServerState(1, broadcast.vector), rounds=1)
    return bits, total_weight, reports, memories, found


def serial(make: Any) -> Any:
    backend = SerialBackend()
    made = make()
    backend.start(made)
    return round_of(backend, made)


@EVERYWHERE
@pytest.mark.parametrize("kind", [FedAvg, Scaffold])
@pytest.mark.parametrize("schedule", ["longest_first", "random"])
def test_workers_give_what_one_gives(kind: Any, workers: int, trains_here: bool, schedule: Any) -> None:
    received: list[ClientReport] = []
    backend = started(partial(worker, kind), workers, trains_here=trains_here, schedule=schedule)
    found = round_of(backend, worker(kind), received=received)
    assert found == serial(partial(worker, kind))
    assert sorted(report.client_id for report in received) == [0, 1, 2, 3]


def test_the_largest_clients_are_assigned_first_each_with_its_memory() -> None:
    backend = started(partial(worker, Scaffold), 2)
    round_of(backend, worker(Scaffold))
    asked, evaluation = backend.hub.asked
    assert {index: [task.client_id for task in train.tasks] for index, train in asked.items()} == {0: [1, 2], 1: [0, 3]}
    assert all(isinstance(train, Train) and train.total_weight == 80.0 for train in asked.values())
    assert all(not task.memory for train in asked.values() for task in train.tasks)  # it is sent as tensors
    # Nine batches of seven of the 60 test samples; held out are 4, 8, 2 and 6.
    assert evaluation == {
        0: Evaluate(1, EvaluationShare(range(0, 4), [1, 2])),
        1: Evaluate(1, EvaluationShare(range(4, 9), [0, 3])),
    }


def test_the_controller_reports_which_clients_it_trains() -> None:
    backend = started(worker, 1, trains_here=True)
    round_of(backend, worker())
    assert backend.hub.trained_here == [1, 2, None]


class Large(EagerTrainer):
    """Every update is 0.4 of the largest sum, whatever the client has."""

    def fit(self, problem: Any, hooks: Any) -> Trained:
        trained = super().fit(problem, hooks)
        return replace(trained, difference=torch.full_like(trained.difference, 0.4 * LIMIT * 4))


@pytest.mark.parametrize(("workers", "trains_here"), [(2, False), (3, False), (1, True), (2, True)])
def test_sums_that_each_worker_can_hold_but_not_all_together_are_an_overflow(workers: int, trains_here: bool) -> None:
    """Four clients of weight 1/4 with updates of 1.6 times the limit: each fits, and two do, three do not."""

    def make() -> Worker:
        return worker(trainer=Large(batch_size=8), sizes=(10, 10, 10, 10))

    backend = started(make, workers, trains_here=trains_here)
    with pytest.raises(OverflowError, match=r"could pass the limit of 1\.34e\+08 on absolute values"):
        round_of(backend, make())


def test_pending_addends_of_all_workers_are_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers' sums may hold so many low parts that the controller's has to carry before they are added."""
    expected, seen = serial(worker), []
    original = ExactSum.expect

    def expect(self: ExactSum, bound: int, pending: int, **options: Any) -> None:
        seen.append((bound, pending))
        original(self, bound, pending, **options)

    monkeypatch.setattr("flrl.aggregation.exact_sum._MAX_PENDING", 4)
    monkeypatch.setattr(ExactSum, "expect", expect)
    assert round_of(started(worker, 2), worker()) == expected
    added, merged = seen[:-1], seen[-1]
    assert merged == (sum(bound for bound, _ in added), 8)  # four clients, each with an update and a weight


@pytest.mark.parametrize(
    ("width", "warned"), [(4, ["2 workers have nothing to train: 4 clients in 1 batches"]), (1, [])]
)
def test_workers_that_have_nothing_to_train_are_named_in_one_warning(
    width: int, warned: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    make = partial(worker, trainer=VectorizedTrainer(batch_size=8, width=width))
    backend = started(make, 3)
    for _ in range(2):
        round_of(backend, make())
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(";")[0] for message in messages] == warned


def test_four_client_batches_leave_none_of_four_workers_idle(caplog: pytest.LogCaptureFixture) -> None:
    round_of(started(worker, 4), worker())
    assert caplog.records == []


def test_what_the_controller_has_trained_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be taken for silent while it waits for the others."""
    jobs: list[Any] = []
    original = Job.finish
    monkeypatch.setattr(Job, "finish", lambda self: (jobs.append((dict(self.clients), self)), original(self))[1])
    round_of(started(worker, 1, trains_here=True), worker())
    assert [clients.get(0) for clients, _ in jobs] == [None] * 3  # to start, to train, to evaluate


def test_an_answer_that_is_still_awaited_makes_the_close_busy() -> None:
    backend = started(worker, 2)
    hub = backend.hub
    backend.close()
    assert hub.closed == [False]
    backend = started(worker, 2)
    backend._new_job("round 1", None)
    hub = backend.hub
    backend.close()
    backend.close()
    assert hub.closed == [True]


class WithHook(Linear):
    """Its evaluation cannot be divided."""

    def on_test_epoch_end(self) -> None:
        self.log("test/hook", 1.0, reduce_fx="sum")


def test_held_out_samples_are_evaluated_by_whoever_has_least_to_do() -> None:
    """Of clients 3, 1 and 0, which hold out 6, 8 and 4 samples."""
    assert started(worker, 2).divide(EvaluationShare(range(9), [3, 1, 0])) == {
        0: EvaluationShare(range(0, 4), [1]),
        1: EvaluationShare(range(4, 9), [3, 0]),
    }


def test_an_evaluation_that_cannot_be_divided_is_one_workers() -> None:
    make = partial(worker, module=WithHook())
    backend = started(make, 3)
    assert backend.divide(EvaluationShare(range(9), [0, 1])) == {
        0: EvaluationShare(range(9), [1]),
        1: EvaluationShare(range(0), [0]),
        2: EvaluationShare(range(0), []),
    }
    vector = torch.linspace(-1, 1, 18)
    found = backend.evaluate(ServerState(1, vector), rounds=1)
    assert found["test/hook"] == 1.0  # the others have not run the hook
    assert found == make().examiner.evaluate(ServerState(1, vector), rounds=1)


def test_nothing_is_asked_where_nothing_is_due() -> None:
    def make() -> Worker:
        return replace(worker(), evaluator=Evaluator(every=5))

    backend = started(make, 2)
    assert backend.evaluate(ServerState(2, make().model.vector), rounds=7) == {}
    assert backend.hub.asked == []
    assert set(backend.evaluate(ServerState(5, make().model.vector), rounds=7)) == {"test/loss", "test/accuracy"}
