"""The dataset's own clients."""

import numpy as np

from flrl.data.partitions.even import iid
from flrl.data.partitions.sharing import check_sizes
from flrl.data.sources import Source, Splits


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
        check_sizes(num_samples, num_clients, min_samples)
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
