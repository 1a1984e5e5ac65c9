"""The workers' half of every backend with several workers: trains and evaluates what it is told to."""

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

from flrl.backends.messages import Evaluate, Evaluated, Failed, Terminating, Train, Trained, by_client, by_name
from flrl.backends.saying import Collected
from flrl.backends.termination import Terminated, terminable, unterminable
from flrl.backends.worker import Worker
from flrl.data import FederatedData, TensorSource
from flrl.errors import ClientError
from flrl.types import Broadcast, ClientReport, ClientTask

log = logging.getLogger(__name__)
Tensors = Mapping[str, Tensor]
# A sum of so few need not be settled before it is sent: the controller can add a thousand such sums exactly. Those are
# one client's vectors and weight, the case in which two more passes over the sum would show.
_FEW_ADDENDS = 4


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

    def finish(self, message: Any, tensors: Tensors, parts: Tensor) -> None:
        """Send the last message and tensors of a round, and give `parts` to the sum, as the other workers do."""


def serve(link: Link, worker: Worker, said: Collected) -> None:
    """Do what the controller asks for, until there is no more, or until SIGTERM.

    Args:
        link: to the controller.
        worker: who does it.
        said: this process's warnings, which the controller is to repeat.
    """
    try:
        while _serve_one(link, worker, said):
            pass
    except Terminated as error:
        log.info("ended by SIGTERM")
        link.send(failure(error), {})


def _serve_one(link: Link, worker: Worker, said: Collected) -> bool:
    """Wait for a message and do what it asks for; whether there may be another one."""
    with terminable():
        link.wait()
    message, common, own = link.receive()
    if message is None:
        return False
    try:
        if isinstance(message, Train):
            _train(link, worker, message, common, own, said)
        elif isinstance(message, Evaluate):
            with terminable():
                part = worker.evaluate_share(common["vector"], message.round, message.share)
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
    """What the controller is told of an error, and of what was warned of before."""
    if isinstance(error, Terminated):
        return Terminating()
    if isinstance(error, ClientError) and error.__cause__ is not None:
        cause = error.__cause__
        return Failed(f"{type(cause).__name__}: {cause}", error.client_id, error.traceback, warnings)
    return Failed(f"{type(error).__name__}: {error}", None, traceback.format_exc(), warnings)


def _train(link: Link, worker: Worker, message: Train, common: Tensors, own: Tensors, said: Collected) -> None:
    started = time.perf_counter()
    memory = by_client(own)
    tasks = [replace(task, memory=memory.get(task.client_id, {})) for task in message.tasks]
    variables = {name: tensor for name, tensor in common.items() if name != "vector"}
    folded: list[ClientReport] = []

    def taken() -> tuple[ClientReport, ...]:
        taken = tuple(folded)
        folded.clear()
        return taken

    def on_start(task: ClientTask) -> None:
        with unterminable():
            link.starts(task.client_id, taken)

    broadcast = Broadcast(message.round, common["vector"], message.total_weight, variables)
    with terminable():
        accumulator, reports = worker.train(
            broadcast, tasks, lambda report: folded.append(replace(report, memory={})), on_start
        )
    if accumulator.sum.pending > _FEW_ADDENDS:
        accumulator.sum.settle()
    kept = by_name({report.client_id: report.memory for report in reports})
    trained = Trained(accumulator.sum.bound, accumulator.sum.pending, taken(), said.take())
    link.finish(trained, kept, accumulator.sum.parts.cpu())
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
