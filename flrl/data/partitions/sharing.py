"""What partitions have in common: checks of their settings, and ways to share samples out."""

import numpy as np

from flrl.data.grouping import by_owner, spans
from flrl.data.sources import LABEL_KEYS


def check_sizes(num_samples: int, num_clients: int, min_samples: int) -> None:
    """Raise ValueError unless there are `min_samples`, at least one, for each of `num_clients`, at least one."""
    if num_clients < 1:
        raise ValueError(f"partition.num_clients={num_clients}: must be at least 1")
    if min_samples < 1:
        raise ValueError(f"partition.min_samples={min_samples}: must be at least 1")
    if num_clients * min_samples > num_samples:
        raise ValueError(
            f"partition.num_clients={num_clients}: {num_samples} training samples are too few for "
            f"{min_samples} (partition.min_samples) each; at most {num_samples // min_samples} clients"
        )


def check_alpha(alpha: float, number: int, key: str = "alpha") -> None:
    """Raise ValueError unless `alpha` can be the concentration of a Dirichlet distribution of `number` parts."""
    if not (alpha > 0 and np.isfinite(alpha * number)):
        raise ValueError(f"partition.{key}={alpha}: must be positive and finite")


def require_labels(labels: np.ndarray | None, name: str) -> np.ndarray:
    """The labels; ValueError if there are none, naming the partition that needs them."""
    if labels is None:
        keys = ", ".join(LABEL_KEYS)
        raise ValueError(
            f"partition {name} needs class labels, which this dataset does not have: whole numbers are taken from its "
            f"targets, labels or y, else from each sample's second part, or where samples are dicts from their {keys}; "
            "label_key of flrl.data.from_datasets, from_datamodule or DatasetSource names another key"
        )
    return labels


def by_shares(count: int, proportions: np.ndarray) -> np.ndarray:
    """Owners of `count` consecutive samples, int64 `[count]`; each share is within one sample of its proportion."""
    ends = np.rint(np.cumsum(proportions) / proportions.sum() * count).astype(np.int64)
    ends[-1] = count
    return np.repeat(np.arange(len(proportions)), np.diff(ends, prepend=0))


def top_up(owner: np.ndarray, num_clients: int, min_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Move random samples to clients below the minimum, each from the client that is then largest, lowest id first."""
    sizes = np.bincount(owner, minlength=num_clients)
    missing = np.maximum(min_samples - sizes, 0)
    if not missing.any():
        return owner
    by_client = by_owner(owner, rng.permutation(len(owner)))
    # All samples that may be moved, from each client's last one on, and the number that its owner has at that time: the
    # owner with most samples is next.
    spare = np.maximum(sizes - min_samples, 0)
    given = spans(np.zeros_like(spare), spare)
    holds = np.repeat(sizes, spare) - given
    turns = by_owner(holds.max() - holds, np.arange(len(holds)))[: missing.sum()]
    samples = by_client[(np.repeat(np.cumsum(sizes), spare) - 1 - given)[turns]]
    owner[samples] = np.repeat(np.arange(num_clients), missing)
    return owner


def equal_sizes(num_samples: int, num_clients: int) -> np.ndarray:
    """Numbers of samples that differ by at most one, the first clients' the larger ones; int64 `[num_clients]`."""
    return np.bincount(np.arange(num_samples) % num_clients, minlength=num_clients)


def lognormal_shares(rng: np.random.Generator, num_clients: int, sigma: float) -> np.ndarray:
    """Shares of clients that are log-normal before they are divided by their sum, `[num_clients]`.

    Raises:
        ValueError: `sigma`, the standard deviation of their logarithms, is negative or not finite.
    """
    if not 0 <= sigma < np.inf:
        raise ValueError(f"partition.sigma={sigma}: must be at least 0 and finite")
    logarithms = sigma * rng.standard_normal(num_clients)
    shares: np.ndarray = np.exp(logarithms - logarithms.max())
    return shares


def by_mixes(labels: np.ndarray, mixes: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Owners of samples of clients who draw without replacement, each by a label mix of its own, until none is left.

    All draw a class for each of their places at once. Where a class is drawn more often than it has samples, chance
    decides which draws count; the other places draw again, from the classes that are left: as long as these have a part
    in the client's mix by it, else by the numbers that are left.

    Args:
        labels: class of each sample, int64 `[num_samples]`.
        mixes: the shares of the classes that occur, in ascending order, float64 `[num_clients, classes]`.
        sizes: number of samples of each client, int64 `[num_clients]`; their sum is `num_samples`.
        rng: generator of all random numbers.

    Returns:
        int64 `[num_samples]`.
    """
    num_classes = mixes.shape[1]
    number = np.unique(labels, return_inverse=True)[1]
    left = np.bincount(number)
    members = by_owner(number, rng.permutation(len(labels)))
    first = np.cumsum(left) - left
    owner = np.empty(len(labels), np.int64)
    places = np.repeat(np.arange(len(sizes)), sizes)
    while len(places):
        shares = np.where(left > 0, mixes, 0.0)
        ends = np.cumsum(np.where(shares.sum(axis=1, keepdims=True) > 0, shares, left), axis=1)
        ends = ends / ends[:, -1:] + np.arange(len(sizes))[:, None]
        drawn = np.searchsorted(ends.ravel(), places + rng.random(len(places)), side="right") - places * num_classes
        drawn = np.clip(drawn, 0, num_classes - 1)
        counts = np.bincount(drawn, minlength=num_classes)
        taken = np.minimum(counts, left)
        served = by_owner(drawn, rng.permutation(len(places)))[spans(np.cumsum(counts) - counts, taken)]
        owner[members[spans(first, taken)]] = places[served]
        first, left = first + taken, left - taken
        places = np.delete(places, served)
    return owner
