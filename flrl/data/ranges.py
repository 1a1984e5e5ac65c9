"""Clients that have consecutive samples each, so that whose a sample is can be computed and need not be held."""

from typing import Any

import numpy as np


class Consecutive:
    """Stands for the owners of samples that lie side by side: int64 `[sum of sizes]`, as which NumPy takes it.

    Args:
        sizes: samples of each client, int64 `[clients]`.
    """

    def __init__(self, sizes: np.ndarray) -> None:
        self.sizes = sizes

    @property
    def shape(self) -> tuple[int]:
        """That of the array that it stands for."""
        return (int(self.sizes.sum()),)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The owners."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes).astype(dtype or np.int64, copy=False)

    def indices(self, order: np.ndarray | None = None) -> "Ranges":
        """The samples of all clients, one after another; of the clients in some order."""
        starts = np.cumsum(self.sizes) - self.sizes
        return Ranges(starts, self.sizes) if order is None else Ranges(starts[order], self.sizes[order])


class Ranges:
    """Stands for the joined ranges from `start` to `start + size` of all clients, int64 `[sum of sizes]`.

    Args:
        starts: the first sample of each client, int64 `[clients]`.
        sizes: samples of each client, int64 `[clients]`.

    Example:
        >>> ranges = Ranges(np.array([5, 0]), np.array([2, 3]))
        >>> ranges[:].tolist(), ranges[1:4].tolist(), ranges[np.array([4, 0])].tolist()
        ([5, 6, 0, 1, 2], [6, 0, 1], [2, 5])
    """

    def __init__(self, starts: np.ndarray, sizes: np.ndarray) -> None:
        self.starts, self._ends = starts, np.cumsum(sizes)
        self._shifts = starts - (self._ends - sizes)

    def __len__(self) -> int:
        """How many indices they are."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, places: slice | np.ndarray) -> np.ndarray:
        """The indices at places, int64 `[places]`."""
        at = np.arange(*places.indices(len(self))) if isinstance(places, slice) else places
        found: np.ndarray = self._shifts[np.searchsorted(self._ends, at, side="right")] + at
        return found
