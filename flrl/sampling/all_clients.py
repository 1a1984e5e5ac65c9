"""Full participation."""

import numpy as np

from flrl.sampling.base import everybody_of
from flrl.setup import Setup


class AllClients:
    """Full participation: every client in every round."""

    def check(self, setup: Setup) -> None:
        """Accept any number of clients."""

    def largest(self, num_clients: int) -> int:
        """The number of all clients."""
        return num_clients

    def __call__(self, num_clients: int, *, seed: int, round: int, available: np.ndarray | None = None) -> np.ndarray:
        """All client ids; those of the available ones, where not all are."""
        return everybody_of(num_clients, available)
