"""The serial backend: one worker in this process trains client after client."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flrl.backends.base import Received, WorkerRecipe
from flrl.data import FederatedData
from flrl.portable import check, check_trainer
from flrl.process_setup import check_settings
from flrl.root_update import root_update, server_update
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState, Tensors
from flrl.worker import Worker


class SerialBackend:
    """Trains in this process.

    Args:
        threads: intra-op threads of torch. Another number gives other bits.
        device: where the model trains: "cpu", "cuda", "cuda:1", ...
        portable: limit libraries to the instructions that all x86-64 processors have, for the same bits on all of them.

    Raises:
        ValueError: a setting is invalid, or `portable` cannot hold on this device.
    """

    def __init__(self, *, threads: int = 1, device: str = "cpu", portable: bool = False) -> None:
        check_settings(threads, device)
        check(portable, device=device)
        self.threads = threads
        self.device = device
        self.portable = portable
        self._worker: Worker

    def share(self, data: FederatedData) -> FederatedData:
        """The data as it is."""
        return data

    def start(self, worker: Worker, recipe: WorkerRecipe | None = None, *, folder: Path | None = None) -> None:
        """Use the controller's worker.

        Args:
            worker: trains all clients.
            recipe: not needed, as there are no other processes.
            folder: not needed, as there are no other processes.

        Raises:
            ValueError: the trainer cannot be portable, and the backend has to be.
        """
        check_trainer(self.portable, worker.trainer)
        self._worker = worker

    @property
    def holds_samples(self) -> bool:
        """Always: this process holds all samples."""
        return True

    def keep(self, state: ServerState, folder: Path) -> ServerState:
        """The state as it is: client memory stays in this process."""
        return state

    def close(self) -> None:
        """End the workers."""

    @property
    def sizes(self) -> np.ndarray:
        """Number of training samples of every client, int64 `[num_clients]`."""
        return self._worker.data.sizes

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Received:
        """Train the cohort, one client batch after another.

        Raises:
            ClientError: a client's training raised.
        """
        reducer, reports = self._worker.train(broadcast, self._worker.batched(tasks), on_report)
        place = {task.client_id: index for index, task in enumerate(tasks)}
        reports.sort(key=lambda report: place[report.client_id])
        return Received(reducer, tuple(reports))

    def root_update(self, broadcast: Broadcast) -> Tensors:
        """The update of the server's root samples: see `flrl.root_update`."""
        return root_update(self._worker, broadcast)

    def server_update(self, state: ServerState) -> ServerState:
        """The state after what the server trains itself: see `flrl.root_update`."""
        return server_update(self._worker, state)

    def evaluate(self, state: ServerState, *, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round."""
        return self._worker.examiner.evaluate(state, rounds=rounds)
