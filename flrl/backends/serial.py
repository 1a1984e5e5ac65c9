"""The serial backend: one worker in this process trains client after client."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from flrl.backends.base import WorkerRecipe
from flrl.data import FederatedData
from flrl.portable import check, check_trainer
from flrl.process_setup import check_settings
from flrl.types import Aggregate, Broadcast, ClientReport, ClientTask, ServerState
from flrl.worker import Worker


class SerialBackend:
    """Trains in this process.

    Args:
        threads: intra-op threads of torch. Another number gives other bits.
        device: where the model trains: "cpu", "cuda", "cuda:1", ...
        portable: hold libraries to what all x86-64 processors can do, for the same bits on all of them.
    """

    def __init__(self, *, threads: int = 1, device: str = "cpu", portable: bool = False) -> None:
        check_settings(threads, device)
        check(portable, device=device)
        self.threads = threads
        self.device = device
        self.portable = portable
        self._worker: Worker

    def share(self, data: FederatedData) -> FederatedData:
        """The data as the controller is to hold it."""
        return data

    def start(self, worker: Worker, recipe: WorkerRecipe | None = None, *, folder: Path | None = None) -> None:
        """Begin to serve.

        Args:
            worker: the controller's own.
            recipe: makes the like in another process; not needed here.
            folder: where other processes may write logs; not needed here.
        """
        check_trainer(self.portable, worker.trainer)
        self._worker = worker

    @property
    def holds_samples(self) -> bool:
        """This process has them all."""
        return True

    def keep(self, state: ServerState, folder: Path) -> ServerState:
        """Client memory stays in this process."""
        return state

    def close(self) -> None:
        """End the workers."""

    @property
    def sizes(self) -> np.ndarray:
        """Training samples of every client."""
        return self._worker.data.sizes

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Aggregate:
        """Train the cohort in the order of client ids."""
        reducer, reports = self._worker.train(broadcast, self._worker.batched(tasks), on_report)
        vectors, total_weight = reducer.result()
        place = {task.client_id: index for index, task in enumerate(tasks)}
        reports.sort(key=lambda report: place[report.client_id])
        return Aggregate({name: vector.cpu() for name, vector in vectors.items()}, total_weight, tuple(reports))

    def evaluate(self, state: ServerState, *, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round."""
        return self._worker.evaluate(state, rounds=rounds)
