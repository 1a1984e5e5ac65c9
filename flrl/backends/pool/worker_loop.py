"""The loop of a worker on every backend with several: receive a message, train or evaluate, send the result."""

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
from flrl.backends.pool.worker_warnings import Collected
from flrl.clients import ClientIndex
from flrl.data import FederatedData, TensorSource
from flrl.errors import ClientError
from flrl.types import Broadcast, ClientReport, ClientTask
from flrl.worker import Worker

log = logging.getLogger(__name__)
Tensors = Mapping[str, Tensor]


class Link(Protocol):
    """A worker's end of the line to its controller."""

    def wait(self) -> None:
        """Wait until there is a next message; SIGTERM may interrupt it."""

    def receive(self) -> tuple[Any, Tensors, Tensors]:
        """The next message, or None to end; tensors that all workers were sent with it, and this worker's own."""

    def send(self, message: Any, tensors: Tensors) -> None:
        """Send a message and tensors."""

    def starts(self, client_id: int, reports: Callable[[], Sequence[ClientReport]]) -> None:
        """Let the controller know that a client's training begins, and have the reports before it or keep them."""

    def finish(self, message: Any, tensors: Tensors, summand: Tensor | None) -> None:
        """Send a round's last message and tensors; add a summand to the sum, if all the other workers do so too."""


def serve(link: Link, worker: Worker, said: Collected, home: Home | None = None) -> None:
    """Do what the controller asks for, until there is no more, or until SIGTERM.

    Args:
        link: to the controller.
        worker: who does it.
        said: this process's warnings, which the controller is to repeat.
        home: the memory of the worker's own clients, where that stays with it.
    """
    try:
        while _serve_one(link, worker, said, home):
            pass
    except Terminated as error:
        log.info("ended by SIGTERM")
        link.send(failure(error), {})


def _serve_one(link: Link, worker: Worker, said: Collected, home: Home | None) -> bool:
    """Wait for a message and do what it asks for; whether there may be another one."""
    with terminable():
        link.wait()
    message, common, own = link.receive()
    if message is None:
        return False
    try:
        if isinstance(message, Train):
            _train(link, worker, message, common, own, said, home)
        elif isinstance(message, Restore) and home is not None:
            columns = {name: tensor.clone() for name, tensor in own.items()}
            home.restore(message.round, ClientIndex.read(columns, message.described), message.folder)
            link.send(Restored(), {})
        elif isinstance(message, Evaluate):
            with terminable():
                personal = by_client(own) if home is None else home.after(message.round)
                part = worker.evaluate_share(common[VECTOR], message.round, message.share, personal)
            link.send(Evaluated(part, said.take()), {})
        else:
            raise TypeError(f"no worker knows what to do with {type(message).__name__}")
    except Terminated:
        raise
    except BaseException as error:
        log.error("%s", traceback.format_exc())
        link.send(failure(error, said.take()), {})
    return True


def failure(error: BaseException, warnings: tuple[str, ...] = ()) -> Failed | Terminating:
    """The message that reports an error to the controller, with the warnings before it."""
    if isinstance(error, Terminated):
        return Terminating()
    if isinstance(error, ClientError) and error.__cause__ is not None:
        cause = error.__cause__
        return Failed(f"{type(cause).__name__}: {cause}", error.client_id, error.traceback, warnings)
    return Failed(f"{type(error).__name__}: {error}", None, traceback.format_exc(), warnings)


def _train(
    link: Link, worker: Worker, message: Train, common: Tensors, own: Tensors, said: Collected, home: Home | None
) -> None:
    started = time.perf_counter()
    memory = by_client(own) if home is None else home.tasks(message.tasks, message.round)
    tasks = [replace(task, memory=memory.get(task.client_id, {})) for task in message.tasks]
    finished: list[ClientReport] = []

    def taken() -> tuple[ClientReport, ...]:
        taken = tuple(finished)
        finished.clear()
        return taken

    def on_start(task: ClientTask) -> None:
        with unterminable():
            link.starts(task.client_id, taken)

    variables = with_prefix("variables", common)
    broadcast = Broadcast(message.round, common[VECTOR], message.total_weight, variables, message.cohort)
    with terminable():
        reducer, reports = worker.train(
            broadcast, tasks, lambda report: finished.append(replace(report, memory=None)), on_start
        )
    parcel = reducer.parcel()
    changed = {report.client_id: report.memory for report in reports if report.memory is not None}
    tensors = prefixed("extras", parcel.extras)
    described = None
    if home is None:
        tensors |= prefixed("memory", by_name(changed))
    else:
        index = home.update(reports, message.round)
        changed = {}
        if index is not None:
            tensors, described = tensors | prefixed("index", index.tensors()), index.described()
    trained = Trained(parcel.numbers, taken(), tuple(changed), described, said.take())
    link.finish(trained, tensors, parcel.summand)
    clients = ", ".join(str(task.client_id) for task in tasks) or "none"
    log.info("round %d: clients %s, %.3f s", message.round, clients, time.perf_counter() - started)


def share_kept_samples(data: FederatedData, processes: int) -> None:
    """Let each of so many processes on a machine keep its part of the prepared samples."""
    for source in (data.splits.train, data.splits.test):
        if isinstance(source, TensorSource):
            source.kept_limit //= processes


def device_of(device: str, index: int) -> str:
    """The device of a machine's worker: those of "cuda" take turns over the devices there are."""
    return f"cuda:{index % torch.cuda.device_count()}" if device == "cuda" else device


def log_into(path: Path | None) -> Collected:
    """Let all that this process prints and logs go into a file, from now on; returns what collects its warnings.

    Without a file these are not printed here, as the controller will do so.
    """
    said, root = Collected(), logging.getLogger()
    if path is None:
        for handler in [handler for handler in root.handlers if isinstance(handler, Collected)]:
            root.removeHandler(handler)
        root.addHandler(said)
        return said
    sys.stdout.flush()
    sys.stderr.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
    root.addHandler(said)
    return said
