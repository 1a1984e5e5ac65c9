"""The interface of a backend: where clients train. Nothing outside this folder depends on which one runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from flrl.aggregation import Reducer
from flrl.clients import ClientStore
from flrl.data import FederatedData
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState, Tensors
from flrl.worker import Worker


@dataclass(frozen=True, slots=True)
class Received:
    """A round's updates, the same on every backend.

    Attributes:
        reducer: holds the updates of all workers.
        reports: one per client of the cohort, in the order of client ids.
    """

    reducer: Reducer
    reports: Sequence[ClientReport]


class WorkerRecipe(Protocol):
    """How a worker is made, in a form that can be sent to another process; `flrl.recipe.Recipe` is one."""

    def data(self) -> FederatedData:
        """The clients' samples."""

    def client_store(self) -> ClientStore:
        """The store for the memory of clients that stay with one worker."""

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        """A worker with its own model, for the given data."""


class Backend(Protocol):
    """Where clients train. A run calls `share`, `start`, then `train` and `evaluate` round by round, then `close`.

    Attributes:
        threads: intra-op threads of each worker.
        device: where models train.
        portable: whether libraries are limited to the instructions that all x86-64 processors have.
    """

    threads: int
    device: str
    portable: bool

    @property
    def holds_samples(self) -> bool:
        """Whether the controller's process has training samples."""

    @property
    def sizes(self) -> np.ndarray:
        """Number of training samples of every client, int64 `[num_clients]`."""

    def share(self, data: FederatedData) -> FederatedData:
        """The data as the controller holds it, in shared memory for instance; called once, before `start`."""

    def start(self, worker: Worker, recipe: WorkerRecipe, *, folder: Path | None = None) -> None:
        """Make the workers, and wait until all are ready.

        Args:
            worker: the controller's own worker.
            recipe: makes the other workers.
            folder: the run's folder, where workers may write logs and clients' memory.

        Raises:
            WorkerError: a worker could not be made.
        """

    def keep(self, state: ServerState, folder: Path) -> ServerState:
        """The state with its client memory moved to where the backend keeps it; called once, after `start`.

        Args:
            state: the state that training begins with.
            folder: the run's folder; its `clients/` holds the files of the client memory.
        """

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Received:
        """Train a cohort and reduce its updates; `on_report` is called as clients finish, in any order.

        Raises:
            ClientError: a client's training raised.
            WorkerError: a worker has ended, or does not answer.
        """

    def root_update(self, broadcast: Broadcast) -> Tensors:
        """The update of the server's root samples, trained in the controller's process: see `flrl.root_update`."""

    def server_update(self, state: ServerState) -> ServerState:
        """The state after `Strategy.server`, which trains in the controller's process: see `flrl.root_update`."""

    def evaluate(self, state: ServerState, *, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round of a run of `rounds` rounds; may be empty."""

    def close(self) -> None:
        """End the workers."""
