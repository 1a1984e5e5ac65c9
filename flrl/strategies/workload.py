"""How much a strategy's clients compute in a round, which the virtual clock has to know before they are trained."""

from collections.abc import Collection

import numpy as np

from flrl.devices import Work


class Workload:
    """What a strategy says of its clients' work; they train as FedAvg's do unless it says otherwise."""

    passes, gradients = 1.0, 0.0
    """How many trainings, and full gradients besides, a client does in a round: for virtual time and DP-SGD."""

    def client_samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """The samples that clients go through in a round, forwards and backwards: for the virtual clock alone.

        Args:
            work: the trainer's settings, with `passes` and `gradients`; `work.samples(sizes)` is the default.
            sizes: training samples of some clients, int64 `[clients]`.
            sent: names of the variables that clients are sent in the round; None: as in a usual round.

        Returns:
            A number for each client, `[clients]`; it must not fall with `work.steps`.
        """
        return work.samples(sizes)


def has(sent: Collection[str] | None, name: str) -> bool:
    """Whether clients are sent a variable, as they are in a usual round."""
    return sent is None or name in sent
