"""The sums of several workers merge into the sum of one worker: the property that other backends rely on."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from flrl.backends import SerialBackend
from flrl.data import FederatedData
from flrl.data.partitions import iid
from flrl.evaluation import Evaluator
from flrl.examiner import EvaluationShare
from flrl.process_setup import prepare
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.trainers import VectorizedTrainer
from flrl.transforms import ClipNorm, Transform
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState
from flrl.worker import client_batches
from tests.toys import Linear, Rich, make_worker, merged


@pytest.mark.parametrize("assigned", [[(0, 1, 2)], [(2,), (0, 1)], [(1,), (2,), (0,)], [(), (1, 0, 2)]])
def test_any_assignment_of_clients_gives_the_same_bits(assigned: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    worker = make_worker(strategy, module=Rich())
    broadcast = Broadcast(1, worker.model.vector.clone(), 90.0)
    tasks = [ClientTask(1, client, int(size), float(size)) for client, size in enumerate(worker.data.sizes)]
    reported: list[ClientReport] = []
    whole, _ = worker.train(broadcast, tasks, reported.append)
    assert [report.client_id for report in reported] == [0, 1, 2]
    parts = [worker.train(broadcast, [tasks[client] for client in part], lambda report: None)[0] for part in assigned]
    (means, weight), (expected, total) = merged(parts), whole.result()
    assert means["update"].numpy().tobytes() == expected["update"].numpy().tobytes()
    assert weight == total == 90.0


def test_what_cannot_run_here_is_refused() -> None:
    with pytest.raises(ValueError, match=r"backend\.threads=0: must be at least 1"):
        SerialBackend(threads=0)
    with pytest.raises(ValueError, match=r"^threads=0: must be at least 1$"):
        prepare(Linear(), threads=0, device="cpu")


def test_client_batches_depend_on_sizes_alone() -> None:
    """The largest together, whose steps are as many; of equal ones the first. Who is numbered keeps the number."""
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    worker = make_worker(strategy, trainer=VectorizedTrainer(batch_size=8, width=2))
    tasks = [ClientTask(1, client, size, 1.0) for client, size in enumerate((10, 40, 10, 30, 20))]
    batched = worker.batched(tasks)
    assert [task.batch for task in batched] == [1, 0, 2, 0, 1]
    assert [[task.client_id for task in batch] for batch in client_batches(batched)] == [[0, 4], [1, 3], [2]]
    assert worker.batched(batched[:2]) == batched[:2]
    assert [task.batch for task in make_worker(strategy).batched(tasks)] == [None] * 5


def test_a_client_that_fails_is_left_out_of_its_batch_alone() -> None:
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    trainer = VectorizedTrainer(batch_size=8, width=3)
    worker = replace(make_worker(strategy, trainer=trainer, sizes=(8, 8, 8)), drop_failures=True)
    broadcast = Broadcast(1, worker.model.vector.clone(), 24.0)
    tasks = worker.batched([ClientTask(1, client, 8, 8.0, {"x": torch.ones(1)}) for client in range(3)])
    worker.train(broadcast, tasks, lambda report: None)  # records the step
    worker.data.splits.train.targets[worker.data.train_indices(1)] = 99  # type: ignore[attr-defined]
    worker.data.splits.train._forget()  # type: ignore[attr-defined]
    reports = worker.train(broadcast, tasks, lambda report: None)[1]
    assert [report.rejected is None for report in reports] == [True, False, True]
    assert str(reports[1].rejected).startswith("client 1, round 1: RuntimeError: index 99 is out of bounds")
    assert (reports[1].up_bytes, reports[1].num_steps, reports[1].memory) == (0, 0, None)  # what it had, it keeps


class Noisy(Linear):
    """Logs a random number for each batch."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/noise", torch.rand(()))


def test_an_evaluation_in_parts_is_that_of_one_worker() -> None:
    """Whoever evaluates a batch or a client draws the same random numbers for it."""
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    made = make_worker(strategy, module=Noisy(), evaluator=Evaluator(batch_size=7, clients_every=1))
    data = FederatedData(made.data.splits, partial(iid, num_clients=4), seed=0, holdout=0.2)
    worker, vector = replace(made, data=data), made.model.vector.clone()
    whole = worker.examiner.evaluate(ServerState(3, vector), rounds=3)
    shares = [EvaluationShare(range(4, 9), [3, 0]), EvaluationShare(range(0), []), EvaluationShare(range(4), [1, 2])]
    parts = [worker.examiner.evaluate_share(vector, 3, share, {}) for share in shares]
    assert worker.examiner.combine(parts) == whole
    assert len({row["global"]["test/noise"] for part in parts for row in part.clients.values()}) == 4
    later = worker.examiner.evaluate(ServerState(4, vector), rounds=4)
    assert later["test/noise"] != whole["test/noise"]
    assert later["clients/global/noise_mean"] != whole["clients/global/noise_mean"]


class Hiding(Transform):
    hides_updates = True


def test_a_report_has_the_norm_and_the_weight_of_the_update_as_it_was_sent() -> None:
    """And not the norm where single updates are hidden, or where the update was left out."""
    clip = ClipNorm(max_norm=1e-3)
    for transforms, shown in (({}, True), ({"clip": clip}, True), ({"hide": Hiding()}, False)):
        options = {"rounds": 1, "sampler": AllClients(), "transforms": transforms}
        worker = make_worker(FedAvg(server_optimizer=partial(torch.optim.SGD, lr=1.0), **options))
        state = worker.strategy.initialize(worker.model.vector.clone(), worker.model.layout)
        broadcast, tasks = worker.strategy.plan(state, worker.data.sizes, 0, worker.model.layout)
        _, reports = worker.train(broadcast, tasks, lambda report: None)
        assert [report.weight for report in reports] == [20.0, 30.0, 40.0]
        assert ["update/norm" in report.metrics for report in reports] == [shown] * 3
        if shown:
            sent = [worker.updates([task], broadcast)[0].vectors["update"] for task in tasks]
            norms = [report.metrics["update/norm"] for report in reports]
            assert norms == pytest.approx([float(vector.norm()) for vector in sent], rel=1e-12)
            assert transforms == {} or norms == pytest.approx([1e-3] * 3)
