"""A pool whose workers live in this process: the messages of controller and workers, without processes."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flrl.backends.base import WorkerRecipe
from flrl.backends.pool.controller import PoolBackend
from flrl.backends.pool.job import Received
from flrl.backends.pool.messages import Ready, Started
from flrl.backends.pool.worker_loop import serve
from flrl.backends.pool.worker_warnings import WarningCollector
from flrl.data import FederatedData
from flrl.types import ClientReport, ClientTask
from flrl.worker import Worker

Tensors = Mapping[str, Tensor]


class InsideLink:
    """A worker's end: gives it one message, and keeps what the worker sends."""

    def __init__(self, message: Any, common: Tensors, own: Tensors, *, talkative: bool = True) -> None:
        self.asked: deque[Any] = deque([(message, common, own), (None, {}, {})])
        self.sent: list[tuple[Any, dict[str, Tensor]]] = []
        self.parts: Tensor | None = None
        self.talkative = talkative

    def wait(self) -> None:
        pass

    def receive(self) -> tuple[Any, Tensors, Tensors]:
        return self.asked.popleft()

    def send(self, message: Any, tensors: Tensors) -> None:
        self.sent.append((message, {name: tensor.clone() for name, tensor in tensors.items()}))

    def starts(self, client_id: int, reports: Callable[[], Sequence[ClientReport]]) -> None:
        if self.talkative:
            self.send(Started(client_id, reports()), {})

    def finish(self, message: Any, tensors: Tensors, summand: Tensor | None) -> None:
        self.send(message, tensors)
        self.parts = None if summand is None else summand.clone()


class InsideHub:
    """The controller's end: a worker does its part at once when it is asked."""

    def __init__(self, workers: Mapping[int, Worker]) -> None:
        self.workers = dict(workers)
        self.others: Sequence[int] = list(workers)
        self.received: deque[Received] = deque((index, Ready(0, "here"), {}) for index in workers)
        self.parts: list[Tensor] = []
        self.sent: list[Tensor] = []
        self.asked: list[dict[int, Any]] = []
        self.trained_here: list[int | None] = []
        self.closed: list[bool] = []

    def dispatch(self, messages: Mapping[int, Any], common: Tensors, own: Mapping[int, Tensors]) -> None:
        self.asked.append(dict(messages))
        for tensor in self.sent:
            tensor.fill_(77)  # shared memory is overwritten
        self.sent.clear()
        for index, message in messages.items():
            link = InsideLink(message, common, own.get(index, {}))
            serve(link, self.workers[index], WarningCollector())
            self.received.extend((index, *message) for message in link.sent)
            self.sent += [tensor for _, tensors in link.sent for tensor in tensors.values()]
            self.parts += [] if link.parts is None else [link.parts]

    def receive(self, timeout: float | None) -> list[Received]:
        return [self.received.popleft()] if self.received else []

    def reduce(self, parts: Tensor) -> None:
        for part in self.parts:
            parts.add_(part)
        self.parts.clear()

    def name(self, worker: int) -> str:
        return f"worker {worker}"

    def trains(self, task: ClientTask | None) -> None:
        self.trained_here.append(None if task is None else task.client_id)

    def close(self, *, busy: bool) -> None:
        self.closed.append(busy)


class InsideBackend(PoolBackend):
    """So many workers beside the controller, which may train too.

    Args:
        make: makes a worker.
        workers: beside the controller.
        trains_here: the controller is worker 0, and trains too.
        options: as for every pool.
    """

    def __init__(self, make: Callable[[], Worker], workers: int, *, trains_here: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.make, self.number, self.trains_here = make, workers, trains_here
        self.hub: InsideHub

    @property
    def workers_here(self) -> Sequence[int]:
        return (0,) if self.trains_here else ()

    def share(self, data: FederatedData) -> FederatedData:
        return data

    def connect(self, worker: Worker, recipe: WorkerRecipe, folder: Path | None) -> Any:
        first = int(self.trains_here)
        self.hub = InsideHub({index: self.make() for index in range(first, first + self.number)})
        return self.hub


def started(make: Callable[[], Worker], workers: int, **options: Any) -> InsideBackend:
    """A backend that is ready."""
    backend = InsideBackend(make, workers, **options)
    backend.start(make(), None)  # type: ignore[arg-type]
    torch.set_num_threads(1)
    return backend
