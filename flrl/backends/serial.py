"""The serial backend: one worker in this process trains client after client."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from flrl.backends.portable import check, check_trainer
from flrl.backends.worker import Worker, WorkerRecipe, check_settings
from flrl.data import FederatedData
from flrl.types import Aggregate, Broadcast, ClientReport, ClientTask


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
        accumulator, reports = self._worker.train(broadcast, self._worker.stacked(tasks), on_report)
        means, total_weight = accumulator.result()
        place = {task.client_id: index for index, task in enumerate(tasks)}
        reports.sort(key=lambda report: place[report.client_id])
        return Aggregate({name: mean.cpu() for name, mean in means.items()}, total_weight, tuple(reports))

    def evaluate(self, vector: Tensor, *, round: int, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round."""
        return self._worker.evaluate(vector, round=round, rounds=rounds)
