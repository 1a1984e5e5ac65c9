"""What a backend is: where clients train. Nothing outside this folder knows which one runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from flrl.clients import ClientStore
from flrl.data import FederatedData
from flrl.types import Aggregate, Broadcast, ClientReport, ClientTask, ServerState
from flrl.worker import Worker


class WorkerRecipe(Protocol):
    """How a worker is made, in a form that can be sent to another process; `flrl.recipe.Recipe` is one."""

    def data(self) -> FederatedData:
        """The clients' samples."""

    def client_store(self) -> ClientStore:
        """Where client memory is kept that stays with a worker."""

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        """A worker with a model of its own over the given data."""


class Backend(Protocol):
    """Where clients train. A run calls `share`, `start`, then `train` and `evaluate` round by round, then `close`.

    Attributes:
        threads: intra-op threads of each worker.
        device: where models train.
        portable: whether libraries are held to what all processors can do.
    """

    threads: int
    device: str
    portable: bool

    @property
    def holds_samples(self) -> bool:
        """Whether the controller's process has training samples."""

    @property
    def sizes(self) -> np.ndarray:
        """Training samples of every client."""

    def share(self, data: FederatedData) -> FederatedData:
        """The data as the controller is to hold it; called once, before `start`."""

    def start(self, worker: Worker, recipe: WorkerRecipe, *, folder: Path | None = None) -> None:
        """Make the workers, and wait until all are ready.

        Args:
            worker: the controller's own.
            recipe: makes the others.
            folder: the run's folder, where workers may write logs and clients' memory.

        Raises:
            WorkerError: one could not be made.
        """

    def keep(self, state: ServerState, folder: Path) -> ServerState:
        """The state to begin with, its client memory as the backend keeps it; called once, after `start`.

        Args:
            state: the state.
            folder: the run's folder in whose `clients/` the files of its client memory lie.
        """

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Aggregate:
        """Train a cohort; `on_report` is called as clients finish, in any order.

        Raises:
            ClientError: a client's training raised.
            WorkerError: a worker has ended, or does not answer.
        """

    def evaluate(self, state: ServerState, *, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round; may be empty."""

    def close(self) -> None:
        """End the workers."""
