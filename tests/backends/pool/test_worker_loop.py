"""The workers' loop: what it sends of a round, of an evaluation, and of what goes wrong."""

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from flrl.backends.pool.home import Home
from flrl.backends.pool.messages import Evaluate, Evaluated, Failed, Started, Train, Trained, of_broadcast
from flrl.backends.pool.worker_loop import serve, share_kept_samples
from flrl.backends.pool.worker_warnings import WarningCollector
from flrl.clients import ClientStore
from flrl.examiner import EvaluationShare
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.strategies.base import Local
from flrl.trainers import LocalProblem
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState
from flrl.worker import Worker
from tests.backends.inside import InsideLink
from tests.toys import Linear, Notes, make_worker

SIZES = (10, 12, 14)


def worker(module: Any = None) -> Worker:
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    return make_worker(strategy, module=module, sizes=SIZES)


def served(made: Worker, message: Any, *, talkative: bool = True) -> InsideLink:
    link = InsideLink(message, {"vector": made.model.vector.clone()}, {}, talkative=talkative)
    serve(link, made, WarningCollector())
    return link


TASKS = tuple(ClientTask(1, client, size, float(size)) for client, size in enumerate(SIZES))


@pytest.mark.parametrize("talkative", [True, False])
def test_each_report_is_sent_once(talkative: bool) -> None:
    """With the beginning of the next client, or all with the end."""
    link = served(worker(), Train(1, 36.0, TASKS), talkative=talkative)
    *before, (last, _) = link.sent
    begun = [(message.client_id, [report.client_id for report in message.reports]) for message, _ in before]
    assert begun == ([(0, []), (1, [0]), (2, [1])] if talkative else [])
    assert all(isinstance(message, Started) for message, _ in before)
    assert isinstance(last, Trained)
    assert [report.client_id for report in last.reports] == ([2] if talkative else [0, 1, 2])


def test_the_sum_is_carried_where_it_holds_more_than_a_few_addends() -> None:
    """A client adds two: its update, and its weight."""
    few = served(worker(), Train(1, 36.0, TASKS[:2])).sent[-1][0]
    many = served(worker(), Train(1, 36.0, TASKS)).sent[-1][0]
    assert (few.numbers["pending"], many.numbers["pending"]) == (4, 1)
    assert 0 < few.numbers["bound"] < many.numbers["bound"]


def test_clients_get_what_was_broadcast() -> None:
    """The vector, the variables, each its own memory, and nothing else."""
    seen = Notes()

    class Watching(FedAvg):
        def local(self, problem: LocalProblem) -> Local:
            broadcast, task = problem.broadcast, problem.task
            memory = {name: tensor.tolist() for name, tensor in task.memory.items()}
            seen.add((task.client_id, broadcast.round, broadcast.cohort, dict(broadcast.variables), memory))
            return super().local(problem)

    made = worker()
    strategy = Watching(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    # A variable may have any name: "vector" is not the model.
    broadcast = Broadcast(1, made.model.vector.clone(), 36.0, {"vector": torch.tensor(2.0)})
    message = Train(1, 36.0, TASKS[:2], (0, 1, 7))
    link = InsideLink(message, of_broadcast(broadcast), {"1/own": torch.tensor([3.0])})
    serve(link, replace(made, strategy=strategy), WarningCollector())
    variables = {"vector": torch.tensor(2.0)}
    assert seen.all() == [(0, 1, (0, 1, 7), variables, {}), (1, 1, (0, 1, 7), variables, {"own": [3.0]})]


def test_what_the_server_adds_to_a_task_reaches_a_client_whose_memory_is_at_home() -> None:
    """Beside what the client remembers there."""
    seen = Notes()

    class Watching(FedAvg):
        def local(self, problem: LocalProblem) -> Local:
            task = problem.task
            seen.add((task.client_id, {name: tensor.tolist() for name, tensor in sorted(task.memory.items())}))
            return super().local(problem)

    strategy = Watching(rounds=2, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    made, home = replace(worker(), strategy=strategy), Home(ClientStore())
    home.update([ClientReport(1, 12, 1, {}, 0, memory={"own": torch.tensor([3.0])})], 1)
    message = Train(2, 36.0, tuple(replace(task, round=2) for task in TASKS))
    sent = {"0/cloud": torch.tensor([1.0]), "1/cloud": torch.tensor([2.0])}
    link = InsideLink(message, of_broadcast(Broadcast(2, made.model.vector.clone(), 36.0)), sent)
    serve(link, made, WarningCollector(), home)
    assert dict(seen.all()) == {0: {"cloud": [1.0]}, 1: {"cloud": [2.0], "own": [3.0]}, 2: {}}


def test_an_evaluation_is_answered() -> None:
    made = worker()
    link = served(made, Evaluate(1, EvaluationShare(range(2), [])))
    [(message, tensors)] = link.sent
    assert isinstance(message, Evaluated)
    assert tensors == {}
    assert made.examiner.combine([message.part]) == made.examiner.evaluate(
        ServerState(1, made.model.vector.clone()), rounds=1
    )


class Exits(Linear):
    """Ends the process while it trains."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        sys.exit("enough")


class Raises(Linear):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        raise KeyError("missing")


@pytest.mark.parametrize(
    ("module", "error", "client"), [(Exits, "SystemExit: enough", None), (Raises, "KeyError: 'missing'", 0)]
)
def test_what_ends_a_clients_training_is_reported(module: Any, error: str, client: int | None) -> None:
    """An exit too, that the controller would otherwise take for a lost process; and the worker serves on."""
    made = worker(module())
    link = served(made, Train(1, 36.0, TASKS))
    failure = link.sent[-1][0]
    assert isinstance(failure, Failed)
    assert (failure.error, failure.client_id) == (error, client)
    assert "training_step" in failure.traceback
    assert not link.asked  # it has read on, to the end


def test_an_unknown_message_is_reported() -> None:
    [(failure, _)] = served(worker(), "what?").sent
    assert failure.error == "TypeError: no worker knows what to do with str"


def test_processes_share_the_room_for_kept_samples() -> None:
    data = worker().data
    limits = [source.kept_limit for source in (data.splits.train, data.splits.test)]  # type: ignore[attr-defined]
    share_kept_samples(data, 4)
    assert [source.kept_limit * 4 for source in (data.splits.train, data.splits.test)] == limits  # type: ignore[attr-defined]
