"""Sorting by owner and joining slices without an object per client: a million clients take as long as their samples."""

import numpy as np


def by_owner(owner: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The entries of `order` by their owners, each owner's in the order that they had.

    The same as a stable sort, several times faster: place and owner make one number, which no two entries share.

    Args:
        owner: whole numbers from 0 on, `[entries]`; owners times entries must stay below 2^63.
        order: a permutation of the entries, int64 `[entries]`.

    Example:
        >>> by_owner(np.array([1, 0, 1, 0]), np.array([3, 2, 1, 0])).tolist()
        [3, 1, 2, 0]
    """
    keys = owner[order].astype(np.int64, copy=False) * len(order) + np.arange(len(order))
    keys.sort()
    keys %= max(1, len(order))
    grouped: np.ndarray = order[keys]
    return grouped


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers from each start on, so many for each, one after the other; all int64.

    Example:
        >>> spans(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    shifts: np.ndarray = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return shifts + np.arange(len(shifts))
