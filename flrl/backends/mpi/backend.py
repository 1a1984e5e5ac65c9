"""The MPI backend: `mpiexec -n 3 python -m flrl.train backend=mpi`, on one machine or many, with any MPI.

Messages are small pickled dataclasses; vectors, client memory and sums are buffers: Bcast, Send, Reduce. See
`transport.py` for how they are sent, and `rank.py` for what processes other than 0 do.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from flrl.backends.base import Received, WorkerRecipe
from flrl.backends.mpi.rank import Setup
from flrl.backends.mpi.transport import MpiHub
from flrl.backends.mpi.world import world
from flrl.backends.pool.controller import PoolBackend
from flrl.backends.pool.job import Hub, WorkerLostError
from flrl.backends.pool.schedule import at_random, longest_first
from flrl.backends.pool.shared_memory import into_shared_memory
from flrl.backends.pool.worker_loop import device_of, share_kept_samples
from flrl.data import FederatedData
from flrl.errors import WorkerError
from flrl.examiner import EvaluationShare
from flrl.seeding import SERVER, generator_for
from flrl.types import Broadcast, ClientReport, ClientTask
from flrl.worker import Worker


class MpiBackend(PoolBackend):
    """Trains in the processes of an MPI job; without mpiexec, in this process alone.

    Args:
        dedicated_server: process 0 trains no client, and each other process stands for the machines of its own clients:
            it holds their samples and no others, and trains them and no others. Otherwise process 0 trains too, any
            process trains any client, and those of one machine share one copy of the dataset.
        threads: intra-op threads of torch in each process. Another number gives other bits.
        device: where the models train; the processes of "cuda" on one machine are spread over its devices.
        portable: limit libraries to the instructions that all x86-64 processors have, for the same bits on all of them.
        timeout_s: longest time in seconds that a process may take for one client, or for its part of an evaluation;
            null sets no limit.
        schedule: which process trains which client: "longest_first" assigns the clients with most samples first, each
            to the process with the least work; "random" shows that no result depends on it.

    Raises:
        ValueError: a setting is invalid, or a dedicated server has no other processes.
        FlrlError: the launcher and the MPI library do not belong together, or there is no library.
    """

    def __init__(
        self,
        *,
        dedicated_server: bool = False,
        threads: int = 1,
        device: str = "cpu",
        portable: bool = False,
        timeout_s: float | None = None,
        schedule: Literal["longest_first", "random"] = "longest_first",
    ) -> None:
        here = world()
        device = device if here is None else device_of(device, here.node.rank)
        super().__init__(threads=threads, device=device, portable=portable, timeout_s=timeout_s, schedule=schedule)
        self.dedicated_server = dedicated_server
        self._world = here
        self._owners: list[list[int]] | None = None
        self._home: np.ndarray  # with a dedicated server: each client's process, int64 [num_clients]
        if dedicated_server and here is None:
            raise ValueError(
                "backend.dedicated_server=true: needs a process for the server and one for clients at least: "
                "mpiexec -n 3 python -m flrl.train ..."
            )

    @property
    def workers_here(self) -> Sequence[int]:
        """Process 0, unless it is a dedicated server."""
        return () if self.dedicated_server else (0,)

    @property
    def owners(self) -> Mapping[int, Sequence[int]] | None:
        """With a dedicated server, the clients of each process; else None."""
        return None if self._owners is None else dict(enumerate(self._owners, 1))

    @property
    def holds_samples(self) -> bool:
        """False with a dedicated server, which has no training samples."""
        return not self.dedicated_server

    def share(self, data: FederatedData) -> FederatedData:
        """The data in memory that this machine's processes share; a dedicated server has no training samples."""
        if self._world is None:
            return data
        if self.dedicated_server:
            schedule = longest_first if self.schedule == "longest_first" else _at_random
            sizes = [*data.sizes.tolist(), *(len(data.train_indices(client)) for client in data.held_out_clients)]
            self._owners = schedule(sizes, self._world.comm.size - 1)
            self._home = np.empty(len(sizes), np.int64)
            for rank, clients in enumerate(self._owners, 1):
                self._home[clients] = rank
            return data.only((), test=True)
        if self._world.node.size > 1:
            data, self.shared = into_shared_memory(data)
        share_kept_samples(data, self._world.node.size)
        return data

    def connect(self, worker: Worker, recipe: WorkerRecipe, folder: Path | None) -> Hub:
        """Send the other processes what they need to make their workers."""
        hub = MpiHub(self._world, self.timeout_s)
        try:
            hub.finish_earlier()
        except WorkerLostError as lost:
            raise WorkerError(f"{hub.name(lost.worker)} {lost.how}, since the job before this one failed") from None
        setup = Setup(
            recipe=recipe,
            data=None if self.shared is None else self.shared.handle,
            owners=self._owners,
            threads=self.threads,
            device=self.device,
            portable=self.portable,
            folder=folder,
            leader=os.getpid(),
            status=hub.status,
            timeout_s=self.timeout_s,
        )
        hub.send(setup)
        return hub

    def assign(self, tasks: Sequence[ClientTask], round: int) -> dict[int, list[ClientTask]]:
        """The tasks that each process gets: with a dedicated server, those of its own clients."""
        if self._owners is None:
            return super().assign(tasks, round)
        assignment: dict[int, list[ClientTask]] = {rank: [] for rank in range(1, len(self._owners) + 1)}
        for task in tasks:
            assignment[int(self._home[task.client_id])].append(task)
        return assignment

    def divide(self, due: EvaluationShare) -> dict[int, EvaluationShare]:
        """The share of an evaluation that each process gets; a dedicated server gets the test set."""
        if self._owners is None:
            return super().divide(due)
        shares = {0: replace(due, clients=())}
        clients = np.sort(np.asarray(due.clients, np.int64))
        homes = self._home[clients]
        for rank in range(1, len(self._owners) + 1):
            shares[rank] = EvaluationShare(range(0), clients[homes == rank].tolist())
        return shares

    def start(self, worker: Worker, recipe: WorkerRecipe, *, folder: Path | None = None) -> None:
        """Make the workers; arguments and errors as for every backend with several workers.

        Raises:
            ValueError: the strategy trains on the samples of several clients at once, with a dedicated server.
        """
        if self.dedicated_server and self._world is not None and worker.strategy.pools_samples:
            name = type(worker.strategy).__name__
            raise ValueError(
                f"backend.dedicated_server=true: {name} trains on the samples of all, which stay with their clients"
            )
        with self._name_ended_process():
            super().start(worker, recipe, folder=folder)

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Received:
        """Train the cohort; errors as for every backend with several workers."""
        with self._name_ended_process():
            return super().train(broadcast, tasks, on_report)

    @contextlib.contextmanager
    def _name_ended_process(self) -> Iterator[None]:
        """Name the process that has ended in a WorkerError, where that is why the launcher sends SIGTERM to all."""
        try:
            yield
        except SystemExit:
            hub, job = self._hub, self._job
            if isinstance(hub, MpiHub) and job is not None:
                for rank in hub.gone():
                    raise WorkerError(f"{hub.name(rank)} has ended{job.doing(rank)}") from None
            raise


def _at_random(sizes: Sequence[int], num_workers: int) -> list[list[int]]:
    return at_random(sizes, num_workers, generator_for(0, 0, SERVER, "schedule"))
