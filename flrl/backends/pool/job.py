"""What a controller's workers have been asked for, what has come back, and what went wrong with them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from flrl.aggregation import Parcel
from flrl.backends.pool.messages import (
    Evaluated,
    Failed,
    Ready,
    Restored,
    Started,
    Terminating,
    Trained,
    by_client,
    with_prefix,
)
from flrl.clients import ClientIndex
from flrl.errors import ClientError, WorkerError
from flrl.types import ClientReport, ClientTask
from flrl.worker import EvaluationPart

Received = tuple[int, Any, Mapping[str, Tensor]]
LOOK_EVERY_S = 0.5
"""Seconds between two looks at the other workers while the controller trains or waits."""
_OWN_SIGNAL_S = 0.5
"""Seconds to wait for a SIGTERM to the controller itself after a worker's: many launchers send it to all in turn."""


class WorkerLostError(Exception):
    """A worker has ended: which one, and how."""

    def __init__(self, worker: int, how: str) -> None:
        super().__init__(worker, how)
        self.worker, self.how = worker, how


class Hub(Protocol):
    """The controller's ends of the lines to its workers, by the workers' numbers."""

    @property
    def others(self) -> Sequence[int]:
        """Numbers of the workers that are not the controller itself."""

    def dispatch(
        self, messages: Mapping[int, Any], common: Mapping[str, Tensor], own: Mapping[int, Mapping[str, Tensor]]
    ) -> None:
        """Send a message to each of `others`, the same tensors to all of them, and tensors of its own to each.

        Raises:
            WorkerLostError: a worker has ended.
        """

    def receive(self, timeout: float | None) -> list[Received]:
        """Messages that have come, with their tensors; waits up to `timeout` seconds, or for ever, for the first.

        Raises:
            WorkerLostError: a worker has ended.
        """

    def reduce(self, parts: Tensor) -> None:
        """Add what each of `others` has finished its training with to the controller's float64 tensor, in place."""

    def name(self, worker: int) -> str:
        """How errors call a worker."""

    def trains(self, task: ClientTask | None) -> None:
        """The controller begins to train a client itself; None: it has done so with all of its own."""

    def close(self, *, busy: bool) -> None:
        """Let the workers go, at once if they are `busy`."""


class Job:
    """What the workers have been asked for, and what has come back."""

    def __init__(
        self,
        hub: Hub,
        what: str,
        timeout_s: float | None,
        on_report: Callable[[ClientReport], None],
        say: Callable[[Sequence[str]], None],
    ) -> None:
        self.hub, self.what, self.timeout_s, self.on_report, self.say = hub, what, timeout_s, on_report, say
        self.waiting = set(hub.others)
        self.heard = dict.fromkeys(hub.others, time.monotonic())
        self.clients: dict[int, int] = {}
        self.reports: dict[int, ClientReport] = {}
        self.parcels: list[Parcel] = []
        self.indexes: dict[int, ClientIndex] = {}
        self.parts: list[EvaluationPart] = []
        self._looking = False

    def dispatch(
        self, messages: Mapping[int, Any], common: Mapping[str, Tensor], own: Mapping[int, Mapping[str, Tensor]]
    ) -> None:
        """Ask the workers.

        Raises:
            WorkerError: one has ended.
        """
        try:
            self.hub.dispatch(messages, common, own)
        except WorkerLostError as lost:
            raise self._lost(lost) from None
        self.heard = dict.fromkeys(self.heard, time.monotonic())

    def started(self, worker: int, task: ClientTask) -> None:
        """A client's training has begun in this process."""
        self.clients[worker], self.heard[worker] = task.client_id, time.monotonic()

    def reported_here(self, worker: int, report: ClientReport) -> None:
        """A client's training has ended in this process."""
        self.heard[worker] = time.monotonic()
        self.on_report(report)
        self.look()

    def finish(self) -> None:
        """Wait until every worker has done what it was asked for."""
        while self.waiting:
            self.look(timeout=LOOK_EVERY_S)

    def look(self, *, timeout: float = 0.0) -> None:
        """Take what has come.

        Raises:
            ClientError: a client's training raised.
            WorkerError: a worker failed otherwise, has ended, or has not answered for too long.
        """
        if self._looking:  # a look from the alarm in the middle of another one
            return
        self._looking = True
        try:
            for index, message, tensors in self.hub.receive(timeout):
                self.heard[index] = time.monotonic()
                self._take(index, message, tensors)
        except WorkerLostError as lost:
            raise self._lost(lost) from None
        finally:
            self._looking = False
        self._check_silence()

    def _take(self, index: int, message: Any, tensors: Mapping[str, Tensor]) -> None:
        self.say(getattr(message, "warnings", ()))
        match message:
            case Started(client_id, reports):
                self._note(reports)
                self.clients[index] = client_id
            case Trained(numbers, reports, changed, described, _):
                self._note(reports)
                self.clients.pop(index, None)
                memory = by_client(with_prefix("memory", tensors))
                for client_id in changed:
                    kept = {name: tensor.clone() for name, tensor in memory.get(client_id, {}).items()}
                    self.reports[client_id] = replace(self.reports[client_id], memory=kept)
                if described is not None:
                    columns = {name: tensor.clone() for name, tensor in with_prefix("index", tensors).items()}
                    self.indexes[index] = ClientIndex.read(columns, described)
                self.parcels.append(Parcel(None, with_prefix("extras", tensors), numbers))
                self.waiting.discard(index)
            case Evaluated(part, _):
                self.parts.append(part)
                self.waiting.discard(index)
            case Terminating():
                self.waiting.discard(index)
                time.sleep(_OWN_SIGNAL_S)
                raise WorkerLostError(index, "was ended by SIGTERM")
            case Ready() | Restored():
                self.waiting.discard(index)
            case Failed():
                self._fail(index, message)

    def _note(self, reports: Sequence[ClientReport]) -> None:
        for report in reports:
            self.reports[report.client_id] = report
            self.on_report(report)

    def _fail(self, index: int, failure: Failed) -> None:
        self.waiting.discard(index)
        name = self.hub.name(index)
        if failure.client_id is None:
            raise WorkerError(f"{self.what}, {name}: {failure.error}", traceback=failure.traceback)
        where = f"client {failure.client_id}, {self.what}, {name}"
        raise ClientError(f"{where}: {failure.error}", client_id=failure.client_id, traceback=failure.traceback)

    def _check_silence(self) -> None:
        now = time.monotonic()
        for index in {*self.waiting, *self.clients}:
            if self.timeout_s is not None and now - self.heard[index] > self.timeout_s:
                raise WorkerError(
                    f"{self.hub.name(index)} has not answered for {self.timeout_s:g} s "
                    f"(backend.timeout_s){self.doing(index)}"
                )

    def _lost(self, lost: WorkerLostError) -> WorkerError:
        return WorkerError(f"{self.hub.name(lost.worker)} {lost.how}{self.doing(lost.worker)}")

    def doing(self, index: int) -> str:
        """What a worker is at."""
        if index in self.clients:
            return f" while training client {self.clients[index]}, {self.what}"
        return f", {self.what}"
