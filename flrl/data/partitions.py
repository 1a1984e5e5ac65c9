"""Partitions: functions that assign training samples to clients. A new one is a function here, or anywhere, and a yaml.

A partition is called as `partition(num_samples, labels, rng)` and returns each sample's owner, int64 `[num_samples]`
with values in `[0, num_clients)`. The same generator state gives the same partition. One with an argument `splits`
is given the dataset besides.
"""

import numpy as np

from flrl.data.grouping import by_owner, spans
from flrl.data.sources import LABEL_KEYS, Source, Splits


def iid(
    num_samples: int, labels: np.ndarray | None, rng: np.random.Generator, *, num_clients: int, min_samples: int = 1
) -> np.ndarray:
    """Random equal split: sizes differ by at most one.

    Args:
        num_samples: number of training samples.
        labels: not used.
        rng: generator of all random numbers.
        num_clients: number of clients.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: there are fewer samples than `num_clients * min_samples`.
    """
    _check(num_samples, num_clients, min_samples)
    owner = np.empty(num_samples, dtype=np.int64)
    owner[rng.permutation(num_samples)] = np.arange(num_samples) % num_clients
    return owner


def dirichlet(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    alpha: float,
    min_samples: int = 1,
) -> np.ndarray:
    """Label skew: each class is divided among clients in proportions drawn from a symmetric Dirichlet distribution.

    As in Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019, arXiv 1909.06335, drawn by class as in Yurochkin et al., ICML 2019, arXiv 1905.12022. Clients
    with fewer than `min_samples` get random samples of the largest clients.

    Args:
        num_samples: number of training samples.
        labels: their classes, int64 `[num_samples]`.
        rng: generator of all random numbers.
        num_clients: number of clients.
        alpha: concentration; towards 0 each class goes to one client, towards infinity all clients have equal shares.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: `alpha` is not positive, there are no labels, or there are too few samples.
    """
    _check(num_samples, num_clients, min_samples)
    labels = _require(labels, "dirichlet")
    _check_alpha(alpha, num_clients)
    owner = np.empty(num_samples, dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        owner[members] = _by_shares(len(members), rng.dirichlet(np.full(num_clients, alpha)))
    return _top_up(owner, num_clients, min_samples, rng)


def shards(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    shards_per_client: int = 2,
    min_samples: int = 1,
) -> np.ndarray:
    """The pathological split of McMahan et al., AISTATS 2017, arXiv 1602.05629: few classes per client.

    Samples are sorted by class and cut into `num_clients * shards_per_client` shards of equal size (to one sample),
    which are assigned to clients at random.

    Args:
        num_samples: number of training samples.
        labels: class of each sample.
        rng: generator of all random numbers.
        num_clients: number of clients.
        shards_per_client: shards of each client, and about as many classes.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: there are no labels, or too few samples for one in every shard and `min_samples` per client.
    """
    _check(num_samples, num_clients, min_samples)
    labels = _require(labels, "shards")
    if shards_per_client < 1:
        raise ValueError(f"partition.shards_per_client={shards_per_client}: must be at least 1")
    num_shards = num_clients * shards_per_client
    smallest = num_samples // num_shards
    if smallest < 1 or smallest * shards_per_client < min_samples:
        raise ValueError(
            f"partition.shards_per_client={shards_per_client}: {num_samples} samples do not make {num_shards} shards "
            f"with at least {min_samples} samples for each of {num_clients} clients"
        )
    shard_owner = rng.permutation(num_shards) // shards_per_client
    owner = np.empty(num_samples, dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    owner[order] = shard_owner[np.arange(num_samples) * num_shards // num_samples]
    return owner


def quantity_skew(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    alpha: float,
    min_samples: int = 1,
) -> np.ndarray:
    """Quantity skew: sizes follow a symmetric Dirichlet distribution, samples are drawn uniformly.

    As in Li et al., "Federated Learning on Non-IID Data Silos", ICDE 2022, arXiv 2102.02079.

    Args:
        num_samples: number of training samples.
        labels: not used.
        rng: generator of all random numbers.
        num_clients: number of clients.
        alpha: positive; the smaller, the more the sizes differ.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: `alpha` is not positive, or there are too few samples.
    """
    _check(num_samples, num_clients, min_samples)
    _check_alpha(alpha, num_clients)
    owner = np.empty(num_samples, dtype=np.int64)
    owner[rng.permutation(num_samples)] = _by_shares(num_samples, rng.dirichlet(np.full(num_clients, alpha)))
    return _top_up(owner, num_clients, min_samples, rng)


def blocks(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    share: float,
    min_samples: int = 1,
) -> np.ndarray:
    """Random equal splits of two blocks of samples: the last clients have the last samples, as many of both in shares.

    Args:
        num_samples: number of training samples.
        labels: not used.
        rng: generator of all random numbers.
        num_clients: number of clients.
        share: share of the samples, and of the clients, in the second block; both are rounded.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: `share` leaves a block without clients, or there are too few samples.
    """
    _check(num_samples, num_clients, min_samples)
    clients, samples = round((1 - share) * num_clients), round((1 - share) * num_samples)
    if not (0 < share < 1 and 0 < clients < num_clients):
        raise ValueError(f"partition.share={share}: both blocks need some of the {num_clients} clients")
    parts = ((samples, clients), (num_samples - samples, num_clients - clients))
    first, second = (iid(n, None, rng, num_clients=c, min_samples=min_samples) for n, c in parts)
    return np.concatenate([first, second + clients])


def natural(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    splits: Splits,
    *,
    num_clients: int | None = None,
    min_samples: int = 1,
    column: str | None = None,
) -> np.ndarray:
    """The dataset's own clients, ordered by their values in the dataset; or several of them joined to one client.

    Args:
        num_samples: number of training samples.
        labels: not used.
        rng: generator of all random numbers.
        splits: the dataset.
        num_clients: number of clients; null: as many as the dataset has; fewer than that: each is a random set of the
            dataset's clients, whose numbers differ by at most one.
        min_samples: smallest number of samples that a client may have.
        column: what says whose a sample is: an attribute or a column of the training samples' source or dataset, of
            whole numbers or texts; null: the dataset's `groups`.

    Raises:
        ValueError: the dataset does not say whose its samples are, it has fewer clients, or one has too few samples.
    """
    found = splits.groups if column is None else _column(splits.train, column)
    if found is None:
        raise ValueError(
            "partition natural needs a dataset that says whose its samples are, and this one has no Splits.groups: "
            "partition.column names an array of the dataset that says it"
        )
    if found.shape != (num_samples,):
        raise ValueError(f"partition.column={column}: has shape {found.shape}, must be one value of {num_samples} each")
    values, owner = np.unique(found, return_inverse=True)
    owner = owner.astype(np.int64)
    if num_clients is not None and num_clients != len(values):
        _check(num_samples, num_clients, min_samples)
        if num_clients > len(values):
            raise ValueError(
                f"partition.num_clients={num_clients}: the dataset has {len(values)} clients of its own; null takes all"
            )
        owner = iid(len(values), None, rng, num_clients=num_clients)[owner]
    sizes = np.bincount(owner)
    if sizes.min() < min_samples:
        raise ValueError(f"partition.min_samples={min_samples}: client {sizes.argmin()} has {sizes.min()}")
    return owner


def _column(source: Source, name: str) -> np.ndarray:
    """An array of that name that a source, or a dataset behind it, has as an attribute or as a column.

    Raises:
        ValueError: there is none.
    """
    dataset = getattr(source, "dataset", None)
    columns = getattr(dataset, "column_names", ())  # as those of Hugging Face's datasets
    found = next(
        (getattr(holder, name) for holder in (source, dataset) if getattr(holder, name, None) is not None), None
    )
    if found is None and dataset is not None and name in columns:
        found = dataset[name]
    if found is not None:
        return np.array([*found]) if all(np.ndim(value) == 0 for value in found) else np.empty((len(found), 0))
    there = f", whose columns are {', '.join(columns)}" if columns else ""
    kind = type(source if dataset is None else dataset).__name__
    raise ValueError(f"partition.column={name}: training samples are a {kind}{there}; it has none of that name")


def _check(num_samples: int, num_clients: int, min_samples: int) -> None:
    if num_clients < 1:
        raise ValueError(f"partition.num_clients={num_clients}: must be at least 1")
    if min_samples < 1:
        raise ValueError(f"partition.min_samples={min_samples}: must be at least 1")
    if num_clients * min_samples > num_samples:
        raise ValueError(
            f"partition.num_clients={num_clients}: {num_samples} training samples are too few for "
            f"{min_samples} (partition.min_samples) each; at most {num_samples // min_samples} clients"
        )


def _check_alpha(alpha: float, num_clients: int) -> None:
    if not (alpha > 0 and np.isfinite(alpha * num_clients)):
        raise ValueError(f"partition.alpha={alpha}: must be positive and finite")


def _require(labels: np.ndarray | None, name: str) -> np.ndarray:
    if labels is None:
        keys = ", ".join(LABEL_KEYS)
        raise ValueError(
            f"partition {name} needs class labels, which this dataset does not have: whole numbers are taken from its "
            f"targets, labels or y, else from each sample's second part, or where samples are dicts from their {keys}; "
            "label_key of flrl.data.from_datasets, from_datamodule or DatasetSource names another key"
        )
    return labels


def _by_shares(count: int, proportions: np.ndarray) -> np.ndarray:
    """Owners of `count` consecutive samples, int64 `[count]`; each share is within one sample of its proportion."""
    ends = np.rint(np.cumsum(proportions) / proportions.sum() * count).astype(np.int64)
    ends[-1] = count
    return np.repeat(np.arange(len(proportions)), np.diff(ends, prepend=0))


def _top_up(owner: np.ndarray, num_clients: int, min_samples: int, rng: np.random.Generator) -> np.ndarray:
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
