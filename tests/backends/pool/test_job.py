"""What a controller receives and how long it waits, with a fake clock and a fake line."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from flrl.backends.pool import job
from flrl.backends.pool.job import Job, WorkerLostError
from flrl.backends.pool.messages import Failed, Started, Trained
from flrl.errors import ClientError, WorkerError
from flrl.types import ClientReport, ClientTask


class Hub:
    """Returns what is put into `coming`, a list for each call of `receive`; an exception is raised."""

    def __init__(self) -> None:
        self.others = [0, 1]
        self.coming: list[Any] = []
        self.dispatched = 0
        self.buffer = torch.tensor([1.0, 2.0])

    def dispatch(self, messages: Any, common: Any, own: Any) -> None:
        self.dispatched += 1

    def receive(self, timeout: float | None) -> list[Any]:
        received = self.coming.pop(0) if self.coming else []
        if isinstance(received, Exception):
            raise received
        return received

    def name(self, worker: int) -> str:
        return f"worker {worker}"


class Clock:
    """`time.monotonic()` of the job."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(job, "time", clock)
    return clock  # type: ignore[return-value]


def report(client: int) -> ClientReport:
    return ClientReport(client, 10, 2, {"train/loss": 1.0}, 40)


def made(hub: Hub, reports: list[int]) -> Job:
    return Job(hub, "round 3", 10.0, lambda report: reports.append(report.client_id), lambda warnings: None)  # type: ignore[arg-type]


def test_reports_sums_and_memory_are_noted(clock: Clock) -> None:
    hub, reported = Hub(), []
    found = made(hub, reported)
    hub.coming = [
        [(0, Started(4, ()), {}), (1, Started(7, ()), {})],
        [(0, Started(5, (report(4),)), {})],
        [
            (0, Trained({"bound": 9}, (report(5),), (4, 5)), {"memory/4/control": hub.buffer, "extras/4": hub.buffer}),
            (1, Trained({"bound": 3}, (report(7),)), {}),
        ],
    ]
    found.finish()
    hub.buffer.zero_()  # the line's buffer is reused
    assert reported == [4, 5, 7]
    assert [parcel.numbers for parcel in found.parcels] == [{"bound": 9}, {"bound": 3}]
    assert [list(parcel.extras) for parcel in found.parcels] == [["4"], []]
    assert [found.reports[client].memory for client in (5, 7)] == [{}, None]  # one forgets, one keeps its memory
    assert found.reports[4].memory["control"].tolist() == [1.0, 2.0]
    assert found.clients == {}


def test_a_worker_may_be_silent_for_so_long_after_its_last_message(clock: Clock) -> None:
    hub = Hub()
    found = made(hub, [])
    clock.now = 8.0
    found.dispatch({}, {}, {})  # until here nobody had been asked
    clock.now = 17.0
    found.look()
    hub.coming = [[(0, Started(4, ()), {}), (1, Started(7, ()), {})]]
    found.look()
    clock.now = 26.0
    hub.coming = [[(1, Started(8, (report(7),)), {})]]
    found.look()
    clock.now = 27.5
    with pytest.raises(
        WorkerError, match=r"^worker 0 has not answered for 10 s \(backend\.timeout_s\) while training "
    ):
        found.look()
    hub.coming = [[(0, Trained({}, (report(4),)), {})]]
    found.look()
    clock.now = 36.5
    with pytest.raises(WorkerError, match=r"^worker 1 has not .* while training client 8, round 3$"):
        found.look()
    hub.coming = [[(1, Trained({}, (report(8),)), {})]]
    found.look()
    clock.now = 1000.0
    found.look()  # all is done: silence is as it should be


def test_what_the_controller_trains_itself_counts_too(clock: Clock) -> None:
    hub, reported = Hub(), []
    found = made(hub, reported)
    hub.coming = [[(0, Trained({}, ()), {}), (1, Trained({}, ()), {})]]
    found.finish()
    clock.now = 20.0
    found.started(2, ClientTask(3, 6, 10, 10.0))
    clock.now = 29.0
    found.reported_here(2, report(6))
    clock.now = 38.0
    found.look()
    clock.now = 39.5
    with pytest.raises(WorkerError, match=r"^worker 2 has not answered for 10 s .* while training client 6, round 3$"):
        found.look()
    assert reported == [6]


def test_failures_name_client_and_worker(clock: Clock) -> None:
    hub = Hub()
    hub.coming = [[(1, Failed("KeyError: 'x'", 7, "trace"), {})]]
    found = made(hub, [])
    with pytest.raises(ClientError, match=r"^client 7, round 3, worker 1: KeyError: 'x'$") as error:
        found.look()
    assert (error.value.client_id, error.value.traceback) == (7, "trace")
    assert found.waiting == {0}
    hub.coming = [[(0, Failed("MemoryError: no", None, "trace"), {})]]
    with pytest.raises(WorkerError, match=r"^round 3, worker 0: MemoryError: no$"):
        found.look()


def test_a_lost_worker_is_named_with_its_client(clock: Clock) -> None:
    hub = Hub()
    found = made(hub, [])
    hub.coming = [[(0, Started(4, ()), {})], WorkerLostError(0, "was killed"), WorkerLostError(1, "was killed")]
    found.look()
    with pytest.raises(WorkerError, match=r"^worker 0 was killed while training client 4, round 3$"):
        found.look()
    with pytest.raises(WorkerError, match=r"^worker 1 was killed, round 3$"):
        found.look()
