"""The process backend on toys: the same bits as the serial one, whatever a module, a dataset or a strategy brings."""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import Dataset

from flrl.aggregation import Bucketing, CenteredClipping, FLTrust, FoolsGold, Mean, Median
from flrl.backends import ProcessBackend, SerialBackend
from flrl.backends.local import backend as process
from flrl.backends.pool.job import WorkerLostError
from flrl.backends.pool.messages import Started
from flrl.backends.pool.shared_memory import Segment
from flrl.callbacks import Callback, Callbacks
from flrl.data import DatasetSource, FederatedData, Splits
from flrl.data.shifts import Drift, LabelNoise, Noise, Shift
from flrl.errors import ClientError, WorkerError
from flrl.evaluation import Evaluator
from flrl.layout import digest
from flrl.process_setup import prepare
from flrl.sampling import AllClients, ImportanceSampler, PoissonSampler, PowerOfChoice, UniformSampler
from flrl.strategies import AFL, FedAvg, FedSAM, Mime, MimeLite, Moon, QFedAvg, Scaffold
from flrl.strategies.base import Local
from flrl.trainers import EagerTrainer, LocalProblem, Trainer, VectorizedTrainer
from flrl.transforms import FTRL, AdaptiveDP, CentralDP, ClipNorm, GaussianNoise, LocalDP, TopK
from flrl.types import Broadcast, RoundRecord, ServerState
from flrl.worker import Worker
from tests.toys import Convolved, Linear, Rich, blobs, blocks

SIZES = (20, 30, 40, 5, 15)


class Noisy(Dataset[Any]):
    """Samples with random noise, and a lambda that cannot be pickled where that is asked for."""

    def __init__(self, *, unpicklable: bool) -> None:
        self.source = blobs(sum(SIZES))
        self.targets = self.source.targets
        self.change = (lambda x: x) if unpicklable else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        return self.source.inputs[index] + 0.1 * torch.randn(5), int(self.targets[index])


class WithHook(Rich):
    """Its evaluation cannot be divided."""

    def on_test_epoch_end(self) -> None:
        self.log("test/hook", 1.0)


class Named(FedAvg):
    """Sends a variable whose name the model's vector has too, and starts clients beside the global model by it."""

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        return Broadcast(round, state.vector, total_weight, {"vector": torch.tensor(0.5 * round)})

    def local(self, problem: LocalProblem) -> Local:
        trained = yield replace(problem, start=problem.start + problem.broadcast.variables["vector"])
        return trained.update(problem)


class Forgetful(FedAvg):
    """Clients remember a round's number, and forget it the next time."""

    def local(self, problem: LocalProblem) -> Local:
        trained = yield problem
        memory = {} if problem.task.memory else {"round": torch.tensor(problem.task.round)}
        return trained.update(problem, memory=memory)


def biased(**options: Any) -> FedAvg:
    """With a sampler that goes by what clients reported, clients that forget, and a rule that remembers each client."""
    return Forgetful(**{**options, "sampler": PowerOfChoice(num=2, candidates=4), "aggregator": FoolsGold()})


def important(**options: Any) -> FedAvg:
    """With a sampler that weighs its cohort by norms of updates, and the cosines of updates with their mean."""
    return FedAvg(**{**options, "sampler": ImportanceSampler(num=3), "aggregator": Mean(cosines=True)})


def agnostic(**options: Any) -> FedAvg:
    """With weights that follow what clients reported."""
    return AFL(mixture_lr=0.5, **{**options, "sampler": AllClients()})


def private(mechanism: Any, **options: Any) -> FedAvg:
    """With a mechanism of differential privacy, variates, and cohorts that may be empty."""
    return Scaffold(**{**options, "sampler": PoissonSampler(probability=0.5), "transforms": {"dp": mechanism}})


ROBUST = partial(
    FedAvg,
    aggregator=Median(),
    transforms={
        "clip": ClipNorm(max_norm=0.5),
        "top_k": TopK(share=0.5),
        "noise": GaussianNoise(std=0.01),
    },
)


@dataclass(frozen=True)
class Toy:
    """A recipe."""

    module: Any = Linear
    source: str = "tensors"
    strategy: Any = FedAvg
    loader_workers: int = 0
    rounds: int = 3
    fail: bool = False
    vectorized: bool = False
    shift: Shift | None = None

    def data(self) -> FederatedData:
        source: Any = blobs(sum(SIZES))
        if self.source != "tensors":
            source = DatasetSource(Noisy(unpicklable=self.source == "unpicklable"), num_workers=self.loader_workers)
        splits, own = Splits(source, blobs(60, seed=8)), {"holdout": 0.2, "root_samples": 5, "shift": self.shift}
        return FederatedData(splits, blocks(SIZES), seed=0, **own)

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        if self.fail and os.environ.get("FLRL_PARENT") != str(os.getpid()):
            raise ValueError("no luck here")
        torch.manual_seed(0)
        server = partial(torch.optim.SGD, lr=0.5, momentum=0.9)
        options: dict[str, Any] = {"rounds": self.rounds, "sampler": UniformSampler(num=3), "server_optimizer": server}
        strategy = self.strategy(**options)
        trainer: Trainer = EagerTrainer(
            batch_size=8, shuffle=True, local_epochs=2, keep_optimizer_state=self.strategy is FedAvg
        )
        if self.vectorized:
            trainer = VectorizedTrainer(batch_size=8, local_epochs=2, gradient_clip_val=0.1)
        evaluator = Evaluator(batch_size=7, clients_every=0 if self.loader_workers else 1)
        model = prepare(self.module(), threads=threads, device=device, personal=strategy.personal)
        return Worker(model, data, trainer, strategy, evaluator, 0)


class Reports(Callback):
    """What the clients of each round reported: a history has it of its newest record only."""

    def __init__(self) -> None:
        self.rounds: list[Any] = []

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        self.rounds.append([(r.client_id, r.checksum, r.metrics) for r in history[-1].reports])


def run(backend: Any, toy: Toy) -> dict[str, Any]:
    reports = Reports()
    worker = toy.worker(backend.share(toy.data()), threads=1, device="cpu")
    try:
        backend.start(worker, toy)
        layout = worker.model.layout
        state, history = worker.strategy.fit(
            worker.strategy.initialize(worker.model.vector.clone(), layout),
            backend=backend, layout=layout, seed=0, callbacks=Callbacks([reports]),
        )  # fmt: skip
    finally:
        backend.close()
    return {
        "digests": [record.digest for record in history],
        "metrics": [{k: v for k, v in r.metrics.items() if not k.startswith("time/")} for r in history],
        "reports": reports.rounds,
        "memory": {c: {n: t.tolist() for n, t in m.items()} for c, m in state.memory.items()},
        "state": digest(state.vector),
    }


@pytest.mark.parametrize(
    "toy",
    [
        Toy(module=Rich),
        pytest.param(Toy(strategy=Scaffold), marks=pytest.mark.slow),
        pytest.param(Toy(strategy=Named), marks=pytest.mark.slow),
        pytest.param(Toy(strategy=partial(ROBUST, personal=["net.bias"])), marks=pytest.mark.slow),
        pytest.param(Toy(strategy=partial(FedAvg, aggregator=CenteredClipping(radius=0.5))), marks=pytest.mark.slow),
        Toy(strategy=partial(FedAvg, aggregator=FLTrust(before=Bucketing(size=1)))),
        pytest.param(Toy(strategy=biased, rounds=5), marks=pytest.mark.slow),
        pytest.param(Toy(strategy=important, rounds=4), marks=pytest.mark.slow),
        *(
            pytest.param(Toy(strategy=strategy, rounds=4), marks=pytest.mark.slow)
            for strategy in (
                agnostic,
                partial(private, CentralDP(clip=0.1, noise_multiplier=0.1, per_layer=True)),
                partial(private, AdaptiveDP(clip=0.1, noise_multiplier=0.01)),
                partial(private, LocalDP(clip=0.1, noise_multiplier=0.1)),
                partial(private, FTRL(clip=0.1, noise_multiplier=0.1, bands=2, sensitivity=3.0)),
                partial(FedSAM, rho=0.1),
                Mime,
                partial(MimeLite, statistics="adam", eps=0.3),
                partial(Moon, layer="net", mu=1.0),
                partial(QFedAvg, q=1.0),
            )
        ),
        pytest.param(Toy(module=WithHook, source="dataset", loader_workers=1, rounds=1), marks=pytest.mark.slow),
        pytest.param(Toy(source="unpicklable", shift=LabelNoise(low=0.5, high=0.9)), marks=pytest.mark.slow),
        pytest.param(
            Toy(module=Convolved, vectorized=True, shift=Drift(shift=Noise(low=1, high=2), kind="gradual", length=4)),
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "rich",
        "scaffold",
        "a variable named vector",
        "robust and personal",
        "a rule with a state",
        "a rule that selects, with the server's own update, of rows in random order",
        "a sampler that needs losses, clients that forget, a rule with a state of each",
        "a sampler that needs norms and weighs, cosines",
        *("afl", "dp per layer", "dp adaptive", "dp local", "dp ftrl"),
        *("fedsam", "mime", "mimelite", "moon", "qfedavg"),
        "dataset with loader workers",
        "unpicklable dataset, label noise",
        "client batches, noise that grows from round to round",
    ],
)
def test_the_same_bits_as_serial(toy: Toy) -> None:
    expected = run(SerialBackend(), toy)
    assert len(expected["metrics"][0]) >= 6
    assert run(ProcessBackend(workers=2, schedule="random"), toy) == expected


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[ProcessBackend]:
    backend, toy = ProcessBackend(workers=2), Toy()
    backend.start(toy.worker(backend.share(toy.data()), threads=1, device="cpu"), toy, folder=tmp_path)
    yield backend
    backend.close()


def test_a_worker_that_waits_does_not_keep_a_core_busy_and_ends_with_the_backend(
    backend: ProcessBackend, tmp_path: Path
) -> None:
    workers = [p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 2
    before = [sum(process.cpu_times()[:2]) for process in workers]
    time.sleep(2)
    assert sum(sum(process.cpu_times()[:2]) for process in workers) - sum(before) < 0.2
    backend.close()
    assert not any(process.is_running() for process in workers)
    assert sorted(path.name for path in tmp_path.glob("*.log")) == ["worker0.log", "worker1.log"]


def test_a_worker_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLRL_PARENT", str(os.getpid()))
    with pytest.raises(WorkerError, match=r"^start, worker \d \(process \d+\): ValueError: no luck here$"):
        run(ProcessBackend(workers=1), Toy(fail=True))


@pytest.mark.parametrize(
    ("code", "end"),
    [
        (7, "ended with exit code 7"),
        (-9, "was killed by SIGKILL (is memory short?)"),
        (-11, "was killed by SIGSEGV"),
        (None, "has closed its line"),
    ],
)
def test_how_a_worker_ended_is_named(code: int | None, end: str) -> None:
    hub = process._ProcessHub([], Segment())
    hub._processes = [SimpleNamespace(join=lambda timeout=None: None, exitcode=code, kill=lambda: None)]  # type: ignore
    assert hub._end_of(0) == end
    hub.close(busy=True)


class Failing(Linear):
    """Raises in the training of a client with five samples."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.num_training_batches == 1:
            raise RuntimeError("no")
        return super().training_step(batch, batch_idx)


@pytest.mark.slow
def test_a_failing_client_has_its_traceback() -> None:
    expected = r"^client 3, round \d, worker \d \(process \d+\): RuntimeError: no$"
    with pytest.raises(ClientError, match=expected) as error:
        run(ProcessBackend(workers=2), Toy(module=Failing))
    assert "training_step" in error.value.traceback
    assert error.value.client_id == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, r"backend\.workers=0: must be at least 1, or null"),
        ({"timeout_s": 0.0}, r"backend\.timeout_s=0\.0: must be positive, or null"),
        ({"threads": 0}, r"backend\.threads=0: must be at least 1"),
        ({"schedule": "fair"}, r"backend\.schedule='fair': must be 'longest_first' or 'random'"),
    ],
)
def test_settings_are_checked(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProcessBackend(**options)


def test_workers_are_no_more_than_a_cohort_has_clients(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("flrl.backends.local.backend._cores", lambda: 64)
    monkeypatch.setattr("flrl.backends.local.backend._ProcessHub", lambda starts, slots: started.append(starts))
    toy = Toy()
    worker = toy.worker(toy.data(), threads=1, device="cpu")
    ProcessBackend().connect(worker, toy, None)
    assert len(started[0]) == 3
    assert np.unique([start.processes for start in started[0]]).tolist() == [3]
    ProcessBackend(workers=3).connect(worker, toy, None)
    assert caplog.messages == []
    ProcessBackend(workers=4).connect(worker, toy, None)
    monkeypatch.setattr("flrl.backends.local.backend._cores", lambda: 1)
    ProcessBackend(workers=2).connect(worker, toy, None)
    assert caplog.messages == [
        "backend.workers=4, but 3 clients take part in a round and there are 64 cores",
        "backend.workers=2, but 3 clients take part in a round and there is 1 core",
    ]


def test_a_late_message_does_not_hide_who_trains_now() -> None:
    """The slot has named client 7 already when the older message arrives that client 3 begins."""
    segment = Segment()
    hub = process._ProcessHub([], segment)
    here, there = multiprocessing.Pipe()
    hub._lines, hub.others, hub._begun = [here], range(1), [0]
    hub._slots = np.array([[5, 7]])
    assert [message.client_id for _, message, _ in hub.receive(0)] == [7]
    assert hub.receive(0) == []
    there.send((Started(3, ()), None))
    assert [message.client_id for _, message, _ in hub.receive(0)] == [3, 7]
    hub._slots[0] = 6, process._NO_CLIENT
    assert hub.receive(0) == []
    hub.close(busy=False)


def test_a_lost_workers_last_messages_are_received_first() -> None:
    segment = Segment()
    hub = process._ProcessHub([], segment)
    here, there = multiprocessing.Pipe()
    hub._lines, hub.others, hub._begun = [here], range(1), [0]
    hub._slots = np.array([[0, process._NO_CLIENT]])
    hub._end_of = lambda index: "was killed"  # type: ignore[method-assign]
    there.send((Started(3, ()), None))
    there.close()
    assert [message.client_id for _, message, _ in hub.receive(0)] == [3]
    with pytest.raises(WorkerLostError) as lost:
        hub.receive(0)
    assert (lost.value.worker, lost.value.how) == (0, "was killed")
    hub.close(busy=False)


def test_a_workers_slot_holds_the_client_it_trains_until_it_is_done() -> None:
    segment = Segment()
    slots = process._slots(segment.buffer(2 * process._SLOT_BYTES))
    here, there = multiprocessing.Pipe()
    start = process._Start(1, 2, None, None, 1, "cpu", False, None, segment.path)  # type: ignore[arg-type]
    link = process._ProcessLink(there, start)
    for client in (7, 4):
        link.starts(client, tuple)
    assert slots.tolist() == [[0, 0], [2, 4]]
    link.finish("done", {}, torch.ones(2))
    assert slots.tolist() == [[0, 0], [2, process._NO_CLIENT]]
    messages = [here.recv()[0] for _ in range(2)]
    assert messages == [Started(7, ()), "done"]  # the second client followed too soon for a message of its own
    segment.close()
