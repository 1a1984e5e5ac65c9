"""Sorting by owner and joining ranges without Python objects per client, so that a million clients are no problem."""

import numpy as np


def by_owner(owner: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The entries of `order` sorted by their owners; entries of one owner stay in their order.

    The same as a stable sort, but several times faster: owner and position are combined to one unique number.

    Args:
        owner: whole numbers from 0 on, `[entries]`; the product of owners and entries must be below 2^63.
        order: a permutation of the entries, int64 `[entries]`.

    Returns:
        int64 `[entries]`.

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
    """The joined ranges from `start` to `start + length`, int64 `[sum of lengths]`; both arguments are int64.

    Example:
        >>> spans(np.array([5, 0]), np.array([2, 3])).tolist()
        [5, 6, 0, 1, 2]
    """
    shifts: np.ndarray = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return shifts + np.arange(len(shifts))
