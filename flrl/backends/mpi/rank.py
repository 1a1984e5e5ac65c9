"""The processes of an MPI job other than process 0: each makes a worker and serves with it, run after run."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flrl.backends.base import WorkerRecipe
from flrl.backends.mpi.transport import LOOK_EVERY_S, MpiLink, alive
from flrl.backends.mpi.world import DOWN, Content, World, launchers_stderr, wait_for_message
from flrl.backends.pool.home import Home
from flrl.backends.pool.messages import Ready
from flrl.backends.pool.shared_memory import Handle, Reader, SharedObject, into_shared_memory
from flrl.backends.pool.termination import terminable
from flrl.backends.pool.worker_loop import device_of, failure, log_into, serve, share_kept_samples
from flrl.backends.pool.worker_warnings import WarningCollector
from flrl.data import FederatedData
from flrl.portable import check


@dataclass(frozen=True, slots=True)
class Setup:
    """The message from process 0 to make a worker for a run.

    Attributes:
        recipe: makes the worker.
        data: the dataset in the shared memory of process 0's machine, if it could be put there.
        owners: with a dedicated server, the clients of each process from 1 on.
        threads: intra-op threads.
        device: where the model trains.
        portable: whether libraries are limited to the instructions that all x86-64 processors have.
        folder: the run's folder.
        leader: the process id of process 0.
        status: path of the segment in which process 0 notes the client that it is training.
        timeout_s: longest time in seconds that process 0 may take for one client.
    """

    recipe: WorkerRecipe
    data: Handle | None
    owners: Sequence[Sequence[int]] | None
    threads: int
    device: str
    portable: bool
    folder: Path | None
    leader: int
    status: str
    timeout_s: float | None


def follow(here: World, first: Content) -> None:
    """Serve process 0, from its first message until it sends None."""
    link = MpiLink(here, first)
    while not link.ended:
        setup, _, _ = link.receive()
        if isinstance(setup, Setup):
            monitor = _ServerMonitor(setup, here) if here.leader == 0 and here.comm.rank == 1 else None
            collector = log_into(None if setup.folder is None else setup.folder / f"rank{here.comm.rank}.log")
            _serve_run(setup, here, link, collector)
            if monitor is not None:
                monitor.close()


def _serve_run(setup: Setup, here: World, link: MpiLink, collector: WarningCollector) -> None:
    shared = None
    try:
        check(setup.portable, device=setup.device)
        data, shared = _data(setup, here)
        share_kept_samples(data, here.node.size)
        device = device_of(setup.device, here.node.rank)
        with terminable():
            worker = setup.recipe.worker(data, threads=setup.threads, device=device)
        home = _home(setup, here)
    except BaseException as error:
        link.send(failure(error, collector.take()), {})
        return
    link.send(Ready(os.getpid(), socket.gethostname(), collector.take()), {})
    serve(link, worker, collector, home)
    if shared is not None:
        shared.segment.close()


def _home(setup: Setup, here: World) -> Home | None:
    """The memory of this process's own clients, with a dedicated server; else None."""
    if setup.owners is None:
        return None
    home = Home(setup.recipe.client_store())
    if setup.folder is not None:
        home.open(setup.folder, f"rank{here.comm.rank}-")
    return home


def _data(setup: Setup, here: World) -> tuple[FederatedData, SharedObject | None]:
    """The samples that this process may use; and the shared memory it has put them in for others of its machine."""
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


class _ServerMonitor:
    """A thread that reports, until it is closed, that process 0 has died or hangs in the training of a client.

    It has to run on the machine of process 0, and to be made before standard error becomes a log file.
    """

    def __init__(self, setup: Setup, here: World) -> None:
        self._over = threading.Event()
        self._setup, self._here = setup, here
        self._terminal = launchers_stderr()
        # As an array: if the process ends while a thread is inside of torch, it ends with SIGABRT.
        self._status = Reader().buffer(setup.status, 16).view(torch.int64).numpy()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        limit = self._setup.timeout_s
        doing, since = self._status.tolist(), time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            if not alive(self._setup.leader):
                self._report("has ended")
                break
            if self._status.tolist() != doing:
                doing, since = self._status.tolist(), time.monotonic()
            # Process 0 checks the timeout itself too, but cannot while one call in a client's training blocks.
            elif limit is not None and doing[0] >= 0 and time.monotonic() - since > limit + 2:
                self._report(f"has not answered for {limit:g} s (backend.timeout_s)")
                self._here.comm.Abort(1)
        os.close(self._terminal)

    def _report(self, what: str) -> None:
        client_id, round = self._status.tolist()
        doing = "" if client_id < 0 else f" while training client {client_id}, round {round}"
        line = f"error: rank 0 (process {self._setup.leader}) {what}{doing}\n"
        os.write(self._terminal, line.encode())
        if self._setup.folder is not None:
            with (self._setup.folder / "error.txt").open("a") as file:
                file.write(line)
