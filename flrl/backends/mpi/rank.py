"""What the processes of an MPI job do that are not process 0: make workers and serve with them, run after run."""

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
from flrl.backends.pool.worker_warnings import Collected
from flrl.data import FederatedData
from flrl.portable import check


@dataclass(frozen=True, slots=True)
class Setup:
    """Make a worker for a run.

    Attributes:
        recipe: how.
        data: where on the machine of process 0 the dataset lies, if it could be put there.
        owners: with a dedicated server, the clients of each process from 1 on.
        threads: intra-op threads.
        device: where the model trains.
        portable: whether libraries are held to what all processors can do.
        folder: the run's folder.
        leader: the number of process 0 as a process of its machine.
        status: where it notes what it is training itself.
        timeout_s: longest time in seconds that it may take over one client.
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
            witness = _Witness(setup, here) if here.leader == 0 and here.comm.rank == 1 else None
            said = log_into(None if setup.folder is None else setup.folder / f"rank{here.comm.rank}.log")
            _serve_run(setup, here, link, said)
            if witness is not None:
                witness.close()


def _serve_run(setup: Setup, here: World, link: MpiLink, said: Collected) -> None:
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
        link.send(failure(error, said.take()), {})
        return
    link.send(Ready(os.getpid(), socket.gethostname(), said.take()), {})
    serve(link, worker, said, home)
    if shared is not None:
        shared.segment.close()


def _home(setup: Setup, here: World) -> Home | None:
    """With a dedicated server, the memory of this process's clients."""
    if setup.owners is None:
        return None
    home = Home(setup.recipe.client_store())
    if setup.folder is not None:
        home.open(setup.folder, f"rank{here.comm.rank}-")
    return home


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


class _Witness:
    """Says, until it is closed, what process 0 cannot say itself: that it has died, or does not go on.

    It has to be on the same machine, and to be made before standard error becomes a log file.
    """

    def __init__(self, setup: Setup, here: World) -> None:
        self._over = threading.Event()
        self._setup, self._here = setup, here
        self._terminal = launchers_stderr()
        # As an array: a thread that is inside of torch when the process ends takes it down with SIGABRT.
        self._status = Reader().buffer(setup.status, 16).view(torch.int64).numpy()
        self._thread = threading.Thread(target=self._watch, name="witness", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        limit = self._setup.timeout_s
        doing, since = self._status.tolist(), time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            if not alive(self._setup.leader):
                self._say("has ended")
                break
            if self._status.tolist() != doing:
                doing, since = self._status.tolist(), time.monotonic()
            # Process 0 looks at its own clock too; this is for when it cannot.
            elif limit is not None and doing[0] >= 0 and time.monotonic() - since > limit + 2:
                self._say(f"has not answered for {limit:g} s (backend.timeout_s)")
                self._here.comm.Abort(1)
        os.close(self._terminal)

    def _say(self, what: str) -> None:
        client_id, round = self._status.tolist()
        doing = "" if client_id < 0 else f" while training client {client_id}, round {round}"
        line = f"error: rank 0 (process {self._setup.leader}) {what}{doing}\n"
        os.write(self._terminal, line.encode())
        if self._setup.folder is not None:
            with (self._setup.folder / "error.txt").open("a") as file:
                file.write(line)
