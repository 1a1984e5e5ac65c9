"""Statistics of a partition: how much clients differ in size and in their classes."""

import numpy as np

from flrl.data.federated import FederatedData

_AT_ONCE = 2**15


def partition_statistics(data: FederatedData) -> dict[str, float]:
    """Statistics of the training samples of the clients that take part.

    Returns:
        `size_min`, `_max`, `_mean`, `_gini`; where classes are known, `label_entropy_mean`, `_min` in nats, which are
        0 for a client with one class, and `label_distance_mean`, `_max`: the total variation distance of a client's
        classes to those of all clients together, from 0 to 1.
    """
    sizes, parts = data.sizes, [range(at, at + _AT_ONCE) for at in range(0, data.num_clients, _AT_ONCE)]
    found = {
        "size_min": int(sizes.min()),
        "size_max": int(sizes.max()),
        "size_mean": float(sizes.mean()),
        "size_gini": gini(sizes),
    }
    counts = data.label_counts(parts[0])
    if counts is None:
        return found
    total, entropies, distances = np.zeros(counts.shape[1]), [], []
    for part in parts:
        total += _counts(data, part).sum(axis=0)
    for part in parts:
        counts = _counts(data, part)
        shares = counts / counts.sum(axis=1, keepdims=True)
        entropies.append(-(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1))
        distances.append(0.5 * np.abs(shares - total / total.sum()).sum(axis=1))
    entropy, distance = np.concatenate(entropies), np.concatenate(distances)
    return found | {
        "label_entropy_mean": float(entropy.mean()),
        "label_entropy_min": abs(float(entropy.min())),
        "label_distance_mean": float(distance.mean()),
        "label_distance_max": float(distance.max()),
    }


def _counts(data: FederatedData, clients: range) -> np.ndarray:
    counts = data.label_counts(clients)
    assert counts is not None
    return counts


def gini(values: np.ndarray) -> float:
    """The Gini coefficient of positive values: 0 if all are equal, towards 1 if one has everything.

    Example:
        >>> gini(np.array([3, 3, 3]))
        0.0
        >>> gini(np.array([0, 0, 0, 8]))
        0.75
    """
    ascending, number = np.sort(values).astype(np.float64), len(values)
    ranked = (2 * np.arange(1, number + 1) - number - 1) * ascending
    return float(ranked.sum() / (number * ascending.sum()))
