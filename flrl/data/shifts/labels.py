"""Shifts of labels: other classes for the same inputs."""

import numpy as np

from flrl.data.shifts.base import Shift
from flrl.seeding import SERVER, generator_for


class LabelPermutation(Shift):
    """Concept shift: the classes of each client are permuted, so that clients contradict each other.

    As the label swaps of Sattler et al., "Clustered Federated Learning", 2019, arXiv 1910.01991.

    Args:
        levels: draw one of so many permutations, so that clients form groups; the first leaves classes as they are.
            Null: each client has one of its own.

    Raises:
        ValueError: there are no levels.
    """

    def __init__(self, *, levels: int | None = None) -> None:
        if levels is not None and levels < 1:
            raise ValueError(f"partition.shift.levels={levels}: must be at least 1, or null")
        self.levels = levels

    def labels(self, labels: np.ndarray | None, owners: np.ndarray, num_clients: int, seed: int) -> np.ndarray:
        """The permuted labels; permutations are of the classes up to the greatest that occurs."""
        labels = _required(labels, "LabelPermutation")
        rng, num_classes = generator_for(seed, 0, SERVER, "shift/LabelPermutation"), int(labels.max()) + 1
        permutations = rng.random((self.levels or num_clients, num_classes)).argsort(axis=1)
        which = np.arange(num_clients)
        if self.levels is not None:
            permutations[0] = np.arange(num_classes)
            which = generator_for(seed, 0, SERVER, "shift/levels").integers(0, self.levels, num_clients)
        permuted: np.ndarray = permutations[which[owners], labels]
        return permuted


class LabelNoise(Shift):
    """Symmetric label noise: of each client, a share of its own of the labels becomes another class at random.

    Args:
        low: the least share; each client draws its own uniformly.
        high: the greatest share.

    Raises:
        ValueError: a share is not between 0 and 1, or `low` is above `high`.
    """

    def __init__(self, *, low: float = 0.0, high: float = 0.4) -> None:
        if not 0 <= low <= 1:
            raise ValueError(f"partition.shift.low={low}: must be between 0 and 1")
        if not low <= high <= 1:
            raise ValueError(f"partition.shift.high={high}: must be at least partition.shift.low={low} and at most 1")
        self.low = low
        self.high = high

    def labels(self, labels: np.ndarray | None, owners: np.ndarray, num_clients: int, seed: int) -> np.ndarray:
        """The noisy labels, drawn from the classes up to the greatest that occurs."""
        labels = _required(labels, "LabelNoise")
        shares = generator_for(seed, 0, SERVER, "shift/LabelNoise").random(num_clients)
        shares = self.low + (self.high - self.low) * shares
        rng, num_classes = generator_for(seed, 0, SERVER, "shift/LabelNoise/samples"), int(labels.max()) + 1
        noisy = rng.random(len(labels)) < shares[owners]
        if num_classes < 2:
            return labels
        others = (labels + rng.integers(1, num_classes, len(labels))) % num_classes
        return np.where(noisy, others, labels)


def _required(labels: np.ndarray | None, shift: str) -> np.ndarray:
    if labels is None:
        raise ValueError(f"partition.shift: {shift} needs samples with a class, and the dataset has none")
    return labels
