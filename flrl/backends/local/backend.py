"""The process backend: workers on this machine, spawned once per run; vectors and samples lie in shared memory."""

import atexit
import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from flrl.backends.base import WorkerRecipe
from flrl.backends.pool.controller import PoolBackend
from flrl.backends.pool.job import Hub, Received, WorkerLostError
from flrl.backends.pool.messages import Ready, Specs, Started
from flrl.backends.pool.shared_memory import Handle, Reader, Segment, into_shared_memory
from flrl.backends.pool.termination import terminable
from flrl.backends.pool.watch import begin, signals_ignored
from flrl.backends.pool.worker_loop import Tensors, device_of, failure, log_into, serve, share_kept_samples
from flrl.data import FederatedData
from flrl.portable import check
from flrl.types import ClientReport, ClientTask
from flrl.worker import Worker

log = logging.getLogger(__name__)
Posted = tuple[str, Specs] | None
"""Tensors in shared memory: path of the segment, and their layout; None if there are none."""
_SPAWN = multiprocessing.get_context("spawn")
_SUMMAND = "summand"
_END_WITHIN_S = 2.0
"""Seconds that idle workers have to end by themselves before they are killed."""
_SEND_EVERY_S = 0.1
"""Seconds after which a worker sends its finished clients' reports, instead of updating its slot alone."""
_NO_CLIENT = -1
_SLOT_BYTES = 16
"""Two int64 for each worker: see `_slots`."""


class ProcessBackend(PoolBackend):
    """Trains in several processes on this machine; the controller only serves them.

    Args:
        workers: processes; null takes as many as there are cores, or clients in a round if those are fewer.
        threads: intra-op threads of torch in each process. Another number gives other bits.
        device: where the models train; the workers of "cuda" are spread over the devices there are.
        portable: limit libraries to the instructions that all x86-64 processors have, for the same bits on all of them.
        timeout_s: longest time in seconds that a worker may take for one client, or for its part of an evaluation;
            null sets no limit.
        schedule: which worker trains which client: "longest_first" assigns the clients with most samples first, each to
            the worker with the least work; "random" shows that no result depends on it.

    Raises:
        ValueError: a setting is invalid.
    """

    workers_here = ()

    def __init__(
        self,
        *,
        workers: int | None = None,
        threads: int = 1,
        device: str = "cpu",
        portable: bool = False,
        timeout_s: float | None = None,
        schedule: Literal["longest_first", "random"] = "longest_first",
    ) -> None:
        super().__init__(threads=threads, device=device, portable=portable, timeout_s=timeout_s, schedule=schedule)
        if workers is not None and workers < 1:
            raise ValueError(f"backend.workers={workers}: must be at least 1, or null")
        self.workers = workers

    def share(self, data: FederatedData) -> FederatedData:
        """The data in memory shared with the workers, where it can be pickled."""
        data, self.shared = into_shared_memory(data)
        return data

    def connect(self, worker: Worker, recipe: WorkerRecipe, folder: Path | None) -> Hub:
        """Spawn the worker processes."""
        most = worker.strategy.sampler.largest(worker.data.num_clients)
        number = min(_cores(), most) if self.workers is None else self.workers
        if number > min(_cores(), most):
            clients = "1 client takes" if most == 1 else f"{most} clients take"
            cores = "is 1 core" if _cores() == 1 else f"are {_cores()} cores"
            log.warning("backend.workers=%d, but %s part in a round and there %s", number, clients, cores)
        handle = None if self.shared is None else self.shared.handle
        slots = Segment()
        common = (number, recipe, handle, self.threads, self.device, self.portable, folder, slots.path)
        return _ProcessHub([_Start(index, *common) for index in range(number)], slots)


def _cores() -> int:
    """The cores that this process may use, divided among the jobs of a sweep that run at the same time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("FLRL_JOBS", "1")))


@dataclass(frozen=True, slots=True)
class _Start:
    """All that a worker process needs to begin."""

    index: int
    processes: int
    recipe: WorkerRecipe
    data: Handle | None
    threads: int
    device: str
    portable: bool
    folder: Path | None
    slots: str


class _ProcessHub:
    """The controller's end: a pipe to each worker for messages, segments of shared memory for tensors.

    Which client a worker trains is in a slot of shared memory too: one message for each small client would keep the
    controller busy on a core that the workers need.
    """

    def __init__(self, starts: Sequence[_Start], slots: Segment) -> None:
        self.others = range(len(starts))
        self._slots, self._slots_segment = _slots(slots.buffer(_SLOT_BYTES * len(starts))), slots
        self._begun = [0 for _ in starts]
        self._lines: list[Connection] = []
        self._processes: list[SpawnProcess] = []
        self._reader, self._common = Reader(), Segment()
        self._own = [Segment() for _ in starts]
        self._finished: dict[int, Tensor] = {}
        atexit.register(self._kill)
        with signals_ignored():  # a Ctrl-C reaches all processes of a terminal; the controller alone answers it
            for start in starts:
                here, there = _SPAWN.Pipe()
                # As bytes: reading them imports torch, and by then the worker has to be mortal.
                arguments = (_run.__module__, _run.__name__, pickle.dumps(start), there, start.portable)
                process = _SPAWN.Process(target=begin, args=arguments, name=f"flrl worker {start.index}")
                process.start()
                there.close()
                self._lines.append(here)
                self._processes.append(process)

    def dispatch(self, messages: Mapping[int, Any], common: Tensors, own: Mapping[int, Tensors]) -> None:
        to_all = _post(self._common, common)
        for index, message in messages.items():
            try:
                self._lines[index].send((message, to_all, _post(self._own[index], own.get(index, {}))))
            except OSError:
                raise WorkerLostError(index, self._end_of(index)) from None

    def receive(self, timeout: float | None) -> list[Received]:
        received: list[Received] = []
        lost: int | None = None
        wait(self._lines, timeout)  # a line ends when its worker does
        for index, line in enumerate(self._lines):
            try:
                while line.poll():
                    message, posted = line.recv()
                    tensors = _open(self._reader, posted)
                    if _SUMMAND in tensors:
                        self._finished[index] = tensors.pop(_SUMMAND)
                    received.append((index, message, tensors))
                    if isinstance(message, Started):
                        self._begun[index] = -1  # it may be older than the slot: read that once more
            except (EOFError, OSError):
                lost = index
        for index in self.others:  # after the lines: slots are newer, and cleared before a worker's last message
            begun, client_id = self._slots[index].tolist()
            if begun != self._begun[index] and client_id != _NO_CLIENT:
                received.append((index, Started(client_id, ()), {}))
            self._begun[index] = begun
        if lost is not None and not received:  # a lost worker's last messages are returned first
            raise WorkerLostError(lost, self._end_of(lost))
        return received

    def reduce(self, parts: Tensor) -> None:
        for index in self.others:
            parts.add_(self._finished.pop(index))

    def name(self, worker: int) -> str:
        return f"worker {worker} (process {self._processes[worker].pid})"

    def trains(self, task: ClientTask | None) -> None:
        raise AssertionError("the controller does not train")

    def close(self, *, busy: bool) -> None:
        for line in self._lines:
            line.close()  # a worker that waits sees this and ends
        until = time.monotonic() + (0.0 if busy else _END_WITHIN_S)
        for process in self._processes:
            process.join(max(0.0, until - time.monotonic()))
        self._kill()
        atexit.unregister(self._kill)
        for segment in (self._common, self._slots_segment, *self._own):
            segment.close()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def _end_of(self, index: int) -> str:
        self._processes[index].join(1.0)
        code = self._processes[index].exitcode
        if code is None:
            return "has closed its line"
        hint = " (is memory short?)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}" if code < 0 else f"ended with exit code {code}"


class _ProcessLink:
    """A worker's end."""

    def __init__(self, line: Connection, start: _Start) -> None:
        self._line = line
        self._reader, self._segment = Reader(), Segment()
        slots = self._reader.buffer(start.slots, _SLOT_BYTES * start.processes)
        self._slot = _slots(slots)[start.index]
        self._sent_at = 0.0

    def wait(self) -> None:
        with contextlib.suppress(OSError):  # `receive` will return None
            self._line.poll(None)

    def receive(self) -> tuple[Any, Tensors, Tensors]:
        try:
            message, common, own = self._line.recv()
        except (EOFError, OSError):
            return None, {}, {}
        return message, _open(self._reader, common), _open(self._reader, own)

    def send(self, message: Any, tensors: Tensors) -> None:
        with contextlib.suppress(BrokenPipeError):  # the controller has gone: `receive` will return None
            self._line.send((message, _post(self._segment, tensors)))
        self._sent_at = time.monotonic()

    def starts(self, client_id: int, reports: Callable[[], Sequence[ClientReport]]) -> None:
        self._slot[1] = client_id
        self._slot[0] += 1
        if time.monotonic() - self._sent_at > _SEND_EVERY_S:
            self.send(Started(client_id, reports()), {})

    def finish(self, message: Any, tensors: Tensors, summand: Tensor | None) -> None:
        self._slot[1] = _NO_CLIENT
        self.send(message, tensors if summand is None else {**tensors, _SUMMAND: summand})


def _slots(buffer: Tensor) -> np.ndarray:
    """The workers' slots as int64 `[workers, 2]`: number of clients begun, id of the last one or `_NO_CLIENT`."""
    return buffer[: len(buffer) // _SLOT_BYTES * _SLOT_BYTES].numpy().view(np.int64).reshape(-1, 2)


def _post(segment: Segment, tensors: Tensors) -> Posted:
    """Copy tensors into shared memory; returns where they are."""
    if not tensors:
        return None
    specs = Specs.of(tensors)
    specs.fill(segment.buffer(specs.nbytes), tensors)
    return segment.path, specs


def _open(reader: Reader, posted: Posted) -> dict[str, Tensor]:
    """The tensors that `_post` has put into shared memory, as views of it."""
    if posted is None:
        return {}
    path, specs = posted
    return specs.views(reader.buffer(path, specs.nbytes))


def _run(start: _Start, line: Connection) -> None:
    """The life of a worker process: make a worker and serve the controller until it closes the line."""
    collector = log_into(None if start.folder is None else start.folder / f"worker{start.index}.log")
    link = _ProcessLink(line, start)
    try:
        with terminable():
            check(start.portable, device=start.device)
            data = start.recipe.data() if start.data is None else start.data.load()
            share_kept_samples(data, start.processes)
            worker = start.recipe.worker(data, threads=start.threads, device=device_of(start.device, start.index))
    except BaseException as error:
        link.send(failure(error, collector.take()), {})
        return
    link.send(Ready(os.getpid(), socket.gethostname(), collector.take()), {})
    serve(link, worker, collector)
