"""One job of all workers: the messages sent to them, the answers received, and the errors among those."""

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
from flrl.examiner import EvaluationPart
from flrl.types import ClientReport, ClientTask

Received = tuple[int, Any, Mapping[str, Tensor]]
"""The worker's number, its message, and the tensors sent with it."""
LOOK_EVERY_S = 0.5
"""Seconds between two looks at the other workers while the controller trains or waits."""
_OWN_SIGNAL_S = 0.5
"""Seconds to wait for a SIGTERM to the controller itself after a worker's: many launchers send it to all in turn."""


class WorkerLostError(Exception):
    """A worker has ended or does not answer.

    Attributes:
        worker: its number.
        how: how, as the end of a sentence that begins with its name.
    """

    def __init__(self, worker: int, how: str) -> None:
        super().__init__(worker, how)
        self.worker, self.how = worker, how


class Hub(Protocol):
    """The controller's end of the lines to its workers; a transport implements it. Workers are numbered."""

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
        """The messages that have arrived; waits for the first for up to `timeout` seconds, or without limit for None.

        Tensors may be views of memory that the next call overwrites.

        Raises:
            WorkerLostError: a worker has ended.
        """

    def reduce(self, parts: Tensor) -> None:
        """Add the summand that each of `others` has passed to `Link.finish` to `parts` (float64), in place."""

    def name(self, worker: int) -> str:
        """A worker's name in error messages."""

    def trains(self, task: ClientTask | None) -> None:
        """Called when the controller itself begins to train a client, and with None after its last one."""

    def close(self, *, busy: bool) -> None:
        """End the workers, without waiting for them if they are `busy`."""


class Job:
    """One message to each worker, and all that is received until every worker has answered it.

    Args:
        hub: the lines to the workers.
        what: what they do, for error messages: "round 3".
        timeout_s: longest time in seconds between two messages of a worker that is busy; None sets no limit.
        on_report: called with every client's report as it arrives.
        log_warnings: called with the warnings in every message.

    Attributes:
        waiting: workers that have not answered yet.
        last_message_at: monotonic time in seconds of each worker's last message.
        clients: the client that each worker is training, by worker.
        reports: the clients' reports, by client id.
        parcels: what the workers' reducers sent, without their summands.
        indexes: the index of each worker's client memory, by worker, where that stays with workers.
        parts: the workers' parts of an evaluation.
    """

    def __init__(
        self,
        hub: Hub,
        what: str,
        timeout_s: float | None,
        on_report: Callable[[ClientReport], None],
        log_warnings: Callable[[Sequence[str]], None],
    ) -> None:
        self.hub, self.what, self.timeout_s, self.on_report, self.log_warnings = (
            hub,
            what,
            timeout_s,
            on_report,
            log_warnings,
        )
        self.waiting = set(hub.others)
        self.last_message_at = dict.fromkeys(hub.others, time.monotonic())
        self.clients: dict[int, int] = {}
        self.reports: dict[int, ClientReport] = {}
        self.parcels: list[Parcel] = []
        self.indexes: dict[int, ClientIndex] = {}
        self.parts: list[EvaluationPart] = []
        self._looking = False

    def dispatch(
        self, messages: Mapping[int, Any], common: Mapping[str, Tensor], own: Mapping[int, Mapping[str, Tensor]]
    ) -> None:
        """Send the job's messages, with tensors for all workers and for each; arguments as for `Hub.dispatch`.

        Raises:
            WorkerError: a worker has ended.
        """
        try:
            self.hub.dispatch(messages, common, own)
        except WorkerLostError as lost:
            raise self._lost(lost) from None
        self.last_message_at = dict.fromkeys(self.last_message_at, time.monotonic())

    def started(self, worker: int, task: ClientTask) -> None:
        """Note that a client's training has begun in this process."""
        self.clients[worker], self.last_message_at[worker] = task.client_id, time.monotonic()

    def reported_here(self, worker: int, report: ClientReport) -> None:
        """Note that a client's training has ended in this process, and look at the other workers.

        Raises:
            ClientError: as `look` does.
            WorkerError: as `look` does.
        """
        self.last_message_at[worker] = time.monotonic()
        self.on_report(report)
        self.look()

    def finish(self) -> None:
        """Wait until every worker has answered.

        Raises:
            ClientError: as `look` does.
            WorkerError: as `look` does.
        """
        while self.waiting:
            self.look(timeout=LOOK_EVERY_S)

    def look(self, *, timeout: float = 0.0) -> None:
        """Receive and note the messages that have arrived, waiting for the first for up to `timeout` seconds.

        Raises:
            ClientError: a client's training raised.
            WorkerError: a worker failed otherwise, has ended, or has not answered for too long.
        """
        if self._looking:  # a look from the alarm in the middle of another one
            return
        self._looking = True
        try:
            for index, message, tensors in self.hub.receive(timeout):
                self.last_message_at[index] = time.monotonic()
                self._take(index, message, tensors)
        except WorkerLostError as lost:
            raise self._lost(lost) from None
        finally:
            self._looking = False
        self._check_silence()

    def _take(self, index: int, message: Any, tensors: Mapping[str, Tensor]) -> None:
        self.log_warnings(getattr(message, "warnings", ()))
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
            if self.timeout_s is not None and now - self.last_message_at[index] > self.timeout_s:
                raise WorkerError(
                    f"{self.hub.name(index)} has not answered for {self.timeout_s:g} s "
                    f"(backend.timeout_s){self.doing(index)}"
                )

    def _lost(self, lost: WorkerLostError) -> WorkerError:
        return WorkerError(f"{self.hub.name(lost.worker)} {lost.how}{self.doing(lost.worker)}")

    def doing(self, index: int) -> str:
        """What a worker is doing, as the end of an error message."""
        if index in self.clients:
            return f" while training client {self.clients[index]}, {self.what}"
        return f", {self.what}"
