"""The loop of a worker in a backend with several: receive a message, train or evaluate, send the result."""

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from flrl.backends.pool.encoded import leaving, vector_of
from flrl.backends.pool.home import Home
from flrl.backends.pool.messages import (
    VECTOR,
    Evaluate,
    Evaluated,
    Failed,
    Restore,
    Restored,
    Terminating,
    Train,
    Trained,
    by_client,
    by_name,
    prefixed,
    with_prefix,
)
from flrl.backends.pool.termination import Terminated, terminable, unterminable
from flrl.backends.pool.worker_warnings import WarningCollector
from flrl.clients import ClientIndex
from flrl.data import FederatedData, TensorSource
from flrl.errors import ClientError
from flrl.types import Broadcast, ClientReport, ClientTask
from flrl.worker import Worker

log = logging.getLogger(__name__)
Tensors = Mapping[str, Tensor]


class Link(Protocol):
    """A worker's end of the line to its controller; a transport implements it."""

    def wait(self) -> None:
        """Wait until the next message can be received; SIGTERM may interrupt it."""

    def receive(self) -> tuple[Any, Tensors, Tensors]:
        """The next message, or None to end; the tensors sent to all workers with it, and those to this one alone."""

    def send(self, message: Any, tensors: Tensors) -> None:
        """Send a message and the tensors that belong to it."""

    def starts(self, client_id: int, reports: Callable[[], Sequence[ClientReport]]) -> None:
        """Report that a client's training begins; call `reports` for finished clients' reports if they are sent now."""

    def finish(self, message: Any, tensors: Tensors, summand: Tensor | None) -> None:
        """Send a round's last message and tensors; the summand, if any, is added up by `Hub.reduce`."""


def serve(link: Link, worker: Worker, collector: WarningCollector, home: Home | None = None) -> None:
    """Answer the controller's messages until it ends the line, or until SIGTERM.

    Args:
        link: the line to the controller.
        worker: trains and evaluates.
        collector: this process's warnings, which are sent to the controller.
        home: the memory of the worker's own clients, where that stays with it.
    """
    try:
        while _serve_one(link, worker, collector, home):
            pass
    except Terminated as error:
        log.info("ended by SIGTERM")
        link.send(failure(error), {})


def _serve_one(link: Link, worker: Worker, collector: WarningCollector, home: Home | None) -> bool:
    """Wait for a message and answer it; returns False where there will be no other one."""
    with terminable():
        link.wait()
    message, common, own = link.receive()
    if message is None:
        return False
    try:
        if isinstance(message, Train):
            _train(link, worker, message, common, own, collector, home)
        elif isinstance(message, Restore) and home is not None:
            columns = {name: tensor.clone() for name, tensor in own.items()}
            home.restore(message.round, ClientIndex.read(columns, message.described), message.folder)
            link.send(Restored(), {})
        elif isinstance(message, Evaluate):
            with terminable():
                memory = by_client(own) if home is None else home.after(message.round)
                sent = with_prefix("variables", common)
                part = worker.examiner.evaluate_share(common[VECTOR], message.round, message.share, memory, sent)
            link.send(Evaluated(part, collector.take()), {})
        else:
            raise TypeError(f"no worker knows what to do with {type(message).__name__}")
    except Terminated:
        raise
    except BaseException as error:
        log.error("%s", traceback.format_exc())
        link.send(failure(error, collector.take()), {})
    return True


def failure(error: BaseException, warnings: tuple[str, ...] = ()) -> Failed | Terminating:
    """The message that reports an error to the controller, with the warnings before it; `Terminating` for SIGTERM."""
    if isinstance(error, Terminated):
        return Terminating()
    if isinstance(error, ClientError) and error.__cause__ is not None:
        cause = error.__cause__
        return Failed(f"{type(cause).__name__}: {cause}", error.client_id, error.traceback, warnings)
    return Failed(f"{type(error).__name__}: {error}", None, traceback.format_exc(), warnings)


def _train(
    link: Link,
    worker: Worker,
    message: Train,
    common: Tensors,
    own: Tensors,
    collector: WarningCollector,
    home: Home | None,
) -> None:
    started = time.perf_counter()
    sent = by_client(own)
    kept = {} if home is None else home.tasks(message.tasks, message.round + message.later)
    memory = {c: {**kept.get(c, {}), **sent.get(c, {})} for c in (task.client_id for task in message.tasks)}
    tasks = [replace(task, memory=memory[task.client_id]) for task in message.tasks]
    finished: list[ClientReport] = []

    def take_reports() -> tuple[ClientReport, ...]:
        reports = tuple(finished)
        finished.clear()
        return reports

    def on_start(task: ClientTask) -> None:
        with unterminable():
            link.starts(task.client_id, take_reports)

    variables = with_prefix("variables", common)
    broadcast = Broadcast(
        message.round,
        vector_of(common, worker),
        message.total_weight,
        variables,
        message.cohort,
        later=message.later,
        first=message.first,
    )
    with terminable():
        reducer, reports = worker.train(
            broadcast,
            tasks,
            lambda report: finished.append(replace(report, memory=None)),
            on_start,
            leaving(worker, broadcast, each=home is not None),
        )
    parcel = reducer.parcel()
    changed = {report.client_id: report.memory for report in reports if report.memory is not None}
    tensors = prefixed("extras", parcel.extras)
    described = None
    if home is None:
        tensors |= prefixed("memory", by_name(changed))
    else:
        index = home.update(reports, broadcast.step, first=broadcast.first)
        changed = {}
        if index is not None:
            tensors, described = tensors | prefixed("index", index.tensors()), index.described()
    trained = Trained(parcel.numbers, take_reports(), tuple(changed), described, collector.take())
    link.finish(trained, tensors, parcel.summand)
    clients = ", ".join(str(task.client_id) for task in tasks) or "none"
    log.info("round %d: clients %s, %.3f s", message.round, clients, time.perf_counter() - started)


def share_kept_samples(data: FederatedData, processes: int) -> None:
    """Divide the limit of prepared samples kept in memory by the number of processes on the machine."""
    for source in (data.splits.train, data.splits.test, data.splits.public):
        if isinstance(source, TensorSource):
            source.kept_limit //= processes


def device_of(device: str, index: int) -> str:
    """The device of a machine's worker `index`: "cuda" gives each in turn one of the machine's devices."""
    return f"cuda:{index % torch.cuda.device_count()}" if device == "cuda" else device


def log_into(path: Path | None) -> WarningCollector:
    """Write all that this process prints and logs into a file from now on; returns the collector of its warnings.

    Without a file, warnings are not printed here, as the controller logs them.
    """
    collector, root = WarningCollector(), logging.getLogger()
    if path is None:
        for handler in [handler for handler in root.handlers if isinstance(handler, WarningCollector)]:
            root.removeHandler(handler)
        root.addHandler(collector)
        return collector
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
    root.addHandler(collector)
    return collector
