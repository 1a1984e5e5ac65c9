"""The MPI backend: `mpiexec -n 3 python -m flrl.train backend=mpi`, on one machine or many, with any MPI.

Messages are small pickled dataclasses; vectors, client memory and sums are buffers: Bcast, Send, Reduce. A process that
waits for work polls with short sleeps, because MPI's own waiting keeps a core busy and cannot be interrupted.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flrl.backends.dealing import at_random, longest_first
from flrl.backends.messages import Ready, Specs
from flrl.backends.pool import Heard, Hub, PoolBackend, WorkerLostError
from flrl.backends.serving import Tensors, device_of, failure, log_into, serve, share_kept_samples
from flrl.backends.shared import Handle, SharedObject, into_shared_memory
from flrl.backends.worker import EvaluationShare, Worker, WorkerRecipe
from flrl.backends.world import DATA, DOWN, PREPARE, UP, Content, Pause, World, wait_for_message, world
from flrl.data import FederatedData
from flrl.errors import WorkerError
from flrl.seeding import SERVER, generator_for
from flrl.types import Aggregate, Broadcast, ClientReport, ClientTask

_HERE, _REDUCE, _OVER = "here", "reduce", "over"


@dataclass(frozen=True, slots=True)
class Setup:
    """Make a worker for a run.

    Attributes:
        recipe: how.
        data: where on the machine of process 0 the dataset lies, if it could be put there.
        owners: with a dedicated server, the clients of each process from 1 on.
        threads: intra-op threads.
        device: where the model trains.
        folder: the run's folder.
    """

    recipe: WorkerRecipe
    data: Handle | None
    owners: Sequence[Sequence[int]] | None
    threads: int
    device: str
    folder: Path | None


class MpiBackend(PoolBackend):
    """Trains in the processes of an MPI job; alone, without mpiexec, in this process.

    Args:
        dedicated_server: process 0 only serves, and each other process stands for the machines of its own clients: it
            holds their samples and no others, and trains them and nobody else. Otherwise process 0 trains too, any
            process trains any client, and those of one machine share one copy of the dataset.
        threads: intra-op threads of torch in each process. Another number gives other bits.
        device: where the models train; the processes of "cuda" on one machine share out its devices.
        timeout_s: longest time in seconds that a process may take over one client, or over its part of an evaluation;
            null waits for ever.
        dealing: who trains whom: "longest_first" gives the clients with most samples first, each to the process that
            has least to do; "random" is there to show that no result depends on it.
    """

    def __init__(
        self,
        *,
        dedicated_server: bool = False,
        threads: int = 1,
        device: str = "cpu",
        timeout_s: float | None = None,
        dealing: Literal["longest_first", "random"] = "longest_first",
    ) -> None:
        here = world()
        device = device if here is None else device_of(device, here.node.rank)
        super().__init__(threads=threads, device=device, timeout_s=timeout_s, dealing=dealing)
        self.dedicated_server = dedicated_server
        self._world = here
        self._owners: list[list[int]] | None = None
        if dedicated_server and here is None:
            raise ValueError(
                "backend.dedicated_server=true: needs a process for the server and one for clients at least: "
                "mpiexec -n 3 python -m flrl.train ..."
            )

    @property
    def workers_here(self) -> Sequence[int]:
        """Process 0, unless it only serves."""
        return () if self.dedicated_server else (0,)

    def share(self, data: FederatedData) -> FederatedData:
        """The data in memory that this machine's processes share; a dedicated server has no training samples."""
        if self._world is None:
            return data
        if self.dedicated_server:
            deal = longest_first if self.dealing == "longest_first" else _at_random
            self._owners = deal(data.sizes.tolist(), self._world.comm.size - 1)
            return data.only((), test=True)
        if self._world.node.size > 1:
            data, self.shared = into_shared_memory(data)
        share_kept_samples(data, self._world.node.size)
        return data

    def connect(self, worker: Worker, recipe: WorkerRecipe, folder: Path | None) -> Hub:
        """Ask the other processes to make their workers."""
        hub = _MpiHub(self._world, self.timeout_s)
        handle = None if self.shared is None else self.shared.handle
        hub.tell(Setup(recipe, handle, self._owners, self.threads, self.device, folder))
        return hub

    def deal(self, tasks: Sequence[ClientTask], round: int) -> dict[int, list[ClientTask]]:
        """Each process's part of a cohort: with a dedicated server, its own clients."""
        if self._owners is None:
            return super().deal(tasks, round)
        home = {client: rank for rank, clients in enumerate(self._owners, 1) for client in clients}
        hands: dict[int, list[ClientTask]] = {rank: [] for rank in range(1, len(self._owners) + 1)}
        for task in tasks:
            hands[home[task.client_id]].append(task)
        return hands

    def divide(self, due: EvaluationShare) -> dict[int, EvaluationShare]:
        """Each process's part of an evaluation: with a dedicated server, the test set there, clients at home."""
        if self._owners is None:
            return super().divide(due)
        shares = {0: EvaluationShare(due.batches, ())}
        for rank, clients in enumerate(self._owners, 1):
            shares[rank] = EvaluationShare(range(0), sorted(set(clients) & set(due.clients)))
        return shares

    def start(self, worker: Worker, recipe: WorkerRecipe, *, folder: Path | None = None) -> None:
        """Have the workers made; arguments and errors as for every backend with several workers."""
        with self._naming_the_dead():
            super().start(worker, recipe, folder=folder)

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Aggregate:
        """Train the cohort; errors as for every backend with several workers."""
        with self._naming_the_dead():
            return super().train(broadcast, tasks, on_report)

    @contextlib.contextmanager
    def _naming_the_dead(self) -> Iterator[None]:
        """When a process dies the launcher ends all of them with SIGTERM: say which one it was, if that can be seen."""
        try:
            yield
        except SystemExit:
            hub, job = self._hub, self._job
            if isinstance(hub, _MpiHub) and job is not None:
                for rank in hub.gone():
                    raise WorkerError(f"{hub.name(rank)} has ended{job.doing(rank)}") from None
            raise


class _MpiHub:
    """The lines of process 0 to the others."""

    def __init__(self, here: World | None, timeout_s: float | None) -> None:
        self.others: Sequence[int] = range(1, 1 if here is None else here.comm.size)
        self._timeout_s = timeout_s
        self._known: dict[str, tuple[Tensor, int]] = {}
        self._backlog: list[Heard] = []
        self._processes: dict[int, Ready] = {}
        self._sent: list[Any] = []
        if here is not None:
            self._comm = here.comm

    def tell(self, message: Any) -> None:
        """Send a message alone to every other process."""
        for rank in self.others:
            self._send(rank, Content(message))

    def dispatch(self, messages: Mapping[int, Any], common: Tensors, own: Mapping[int, Tensors]) -> None:
        if not self.others:
            return
        fresh = {name: tensor for name, tensor in common.items() if not self._has(name, tensor)}
        heads = tuple((name, tensor.dtype, tuple(tensor.shape), name in fresh) for name, tensor in common.items())
        specs = {rank: Specs.of(own.get(rank, {})) for rank in self.others}
        wait = bool(fresh) or any(spec.nbytes for spec in specs.values())
        for rank, message in messages.items():
            self._send(rank, Content(message, heads, specs[rank], wait))
        if wait:
            self._wait_until_all_are_here()
        for name, tensor in fresh.items():
            self._comm.Bcast(_bytes(tensor.detach().cpu().contiguous()))
            self._known[name] = tensor, tensor._version
        for rank, spec in specs.items():
            if spec.nbytes:
                buffer = torch.empty(spec.nbytes, dtype=torch.uint8)
                spec.fill(buffer, own[rank])
                self._comm.Send(_bytes(buffer), rank, DATA)

    def hear(self, timeout: float | None) -> list[Heard]:
        until = None if timeout is None else time.monotonic() + timeout
        pause = Pause()
        while self.others:
            self._take_what_has_come()
            if self._backlog or (until is not None and time.monotonic() >= until):
                break
            pause()
        heard, self._backlog = self._backlog, []
        return heard

    def reduce(self, parts: Tensor) -> None:
        from mpi4py import MPI

        if self.others:
            self.tell(_REDUCE)
            self._comm.Reduce(MPI.IN_PLACE, parts.numpy())

    def name(self, worker: int) -> str:
        ready = self._processes.get(worker)
        return f"rank {worker}" + ("" if ready is None else f" (process {ready.process} on {ready.host})")

    def gone(self) -> list[int]:
        """The processes of this machine that are no more."""
        here = socket.gethostname()
        return [rank for rank, ready in self._processes.items() if ready.host == here and not _alive(ready.process)]

    def close(self, *, busy: bool) -> None:
        if not busy:  # else the entry point ends them
            self.tell(_OVER)

    def _has(self, name: str, tensor: Tensor) -> bool:
        known, version = self._known.get(name, (None, 0))
        return known is tensor and version == tensor._version

    def _send(self, rank: int, content: Any) -> None:
        self._sent = [request for request in self._sent if not request.Test()]
        self._sent.append(self._comm.isend(content, rank, DOWN))

    def _wait_until_all_are_here(self) -> None:
        """Wait without a collective call, which could be neither interrupted nor given up."""
        missing, pause = set(self.others), Pause()
        until = None if self._timeout_s is None else time.monotonic() + self._timeout_s
        while missing:
            self._take_what_has_come()
            missing -= {rank for rank, message, _ in self._backlog if message == _HERE}
            if until is not None and time.monotonic() > until:
                raise WorkerLostError(min(missing), f"has not answered for {self._timeout_s:g} s (backend.timeout_s)")
            if missing:
                pause()
        self._backlog = [heard for heard in self._backlog if heard[1] != _HERE]

    def _take_what_has_come(self) -> None:
        from mpi4py import MPI

        status = MPI.Status()
        while self._comm.iprobe(tag=UP, status=status):
            rank = status.source
            message, specs = self._comm.recv(source=rank, tag=UP)
            buffer = torch.empty(specs.nbytes, dtype=torch.uint8)
            if specs.nbytes:
                self._comm.Recv(_bytes(buffer), rank, DATA)
            if isinstance(message, Ready):
                self._processes[rank] = message
            self._backlog.append((rank, message, specs.views(buffer)))


class _MpiLink:
    """The line of another process to process 0."""

    def __init__(self, here: World) -> None:
        self._comm = here.comm
        self._common: dict[str, Tensor] = {}
        self._next: Any = None
        self.ended = False

    def receive(self) -> tuple[Any, Tensors, Tensors]:
        content, self._next = self._next or wait_for_message(self._comm), None
        if content.message is None or content.message == _OVER:
            self.ended = content.message is None
            self._common.clear()
            return None, {}, {}
        if content.wait:
            self._comm.send((_HERE, Specs()), 0, UP)
        for name, dtype, shape, fresh in content.heads:
            known = self._common.get(name)
            if known is None or known.dtype != dtype or known.shape != shape:
                self._common[name] = torch.empty(shape, dtype=dtype)
            if fresh:
                self._comm.Bcast(_bytes(self._common[name]))
        specs = Specs() if content.own is None else content.own
        own = torch.empty(specs.nbytes, dtype=torch.uint8)
        if specs.nbytes:
            self._comm.Recv(_bytes(own), 0, DATA)
        common = {name: self._common[name] for name, *_ in content.heads}
        return content.message, common, specs.views(own)

    def send(self, message: Any, tensors: Tensors) -> None:
        specs = Specs.of(tensors)
        self._comm.send((message, specs), 0, UP)
        if specs.nbytes:
            buffer = torch.empty(specs.nbytes, dtype=torch.uint8)
            specs.fill(buffer, tensors)
            request, pause = self._comm.Isend(_bytes(buffer), 0, DATA), Pause()
            while not request.Test():
                pause()

    def finish(self, message: Any, tensors: Tensors, parts: Tensor) -> None:
        self.send(message, tensors)
        content = wait_for_message(self._comm)
        if content.message == _REDUCE:
            self._comm.Reduce(parts.numpy(), None)
        else:  # the round came to nothing
            self._next = content


def follow(here: World) -> None:
    """Make workers and serve with them, run after run, until process 0 sends None."""
    link = _MpiLink(here)
    while True:
        setup, _, _ = link.receive()
        if link.ended:
            return
        if setup is None or setup == PREPARE:
            continue
        log_into(None if setup.folder is None else setup.folder / f"rank{here.comm.rank}.log")
        try:
            data, shared = _data(setup, here)
            share_kept_samples(data, here.node.size)
            device = device_of(setup.device, here.node.rank)
            worker = setup.recipe.worker(data, threads=setup.threads, device=device)
        except BaseException as error:
            link.send(failure(error), {})
            continue
        link.send(Ready(os.getpid(), socket.gethostname()), {})
        serve(link, worker)
        if shared is not None:
            shared.segment.close()
        if link.ended:
            return


def _data(setup: Setup, here: World) -> tuple[FederatedData, SharedObject | None]:
    """The samples that this process may use, and the shared memory that it offers to the others of its machine."""
    if setup.owners is not None:
        return setup.recipe.data().only(setup.owners[here.comm.rank - 1], test=False), None
    handle = setup.data
    if here.leader != 0:  # another machine than that of process 0: the first process here loads the dataset
        if here.node.rank == 0:
            data, shared = into_shared_memory(setup.recipe.data())
            for rank in range(1, here.node.size):
                here.node.send(Content(None if shared is None else shared.handle), rank, DOWN)
            return data, shared
        handle = wait_for_message(here.node).message
    return (setup.recipe.data() if handle is None else handle.load()), None


def _bytes(tensor: Tensor) -> np.ndarray:
    """A contiguous tensor's memory."""
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _at_random(sizes: Sequence[int], num_workers: int) -> list[list[int]]:
    return at_random(sizes, num_workers, generator_for(0, 0, SERVER, "dealing"))
