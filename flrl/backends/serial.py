"""The serial backend: one worker in this process trains client after client."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from flrl.backends.worker import Worker
from flrl.types import Aggregate, Broadcast, ClientReport, ClientTask


class SerialBackend:
    """Trains in this process.

    Args:
        threads: intra-op threads of torch. Another number gives other bits.
        device: where the model trains: "cpu", "cuda", "cuda:1", ...
    """

    def __init__(self, *, threads: int = 1, device: str = "cpu") -> None:
        if threads < 1:
            raise ValueError(f"backend.threads={threads}: must be at least 1")
        kind = torch.device(device).type
        if kind == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"backend.device={device}: torch finds no CUDA device here")
        self.threads = threads
        self.device = device
        self._worker: Worker

    def start(self, worker: Worker, make_worker: Callable[..., Worker]) -> None:
        """Begin to serve.

        Args:
            worker: the controller's own.
            make_worker: called with `threads` and `device`, makes the like in another process; not needed here.
        """
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
        accumulator, reports = self._worker.train(broadcast, tasks, on_report)
        means, total_weight = accumulator.result()
        return Aggregate({name: mean.cpu() for name, mean in means.items()}, total_weight, tuple(reports))

    def evaluate(self, vector: Tensor, *, round: int, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round."""
        return self._worker.evaluate(vector, round=round, rounds=rounds)
