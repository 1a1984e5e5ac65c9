"""Partitions whose clients have samples of few classes."""

import numpy as np

from flrl.data.grouping import by_owner
from flrl.data.partitions.sharing import check_sizes, require_labels


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
    check_sizes(num_samples, num_clients, min_samples)
    labels = require_labels(labels, "shards")
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


def classes(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    classes_per_client: int,
    min_samples: int = 1,
) -> np.ndarray:
    """Exactly so many classes per client; the samples of a class are divided equally among those that have it.

    `#C = k` of Li et al., "Federated Learning on Non-IID Data Silos", ICDE 2022, arXiv 2102.02079: one class is dealt
    to each client in turn, so that each class has clients as evenly as possible, and the others are drawn. Where there
    are more classes than clients, as many are dealt as it takes for none to be left.

    Args:
        num_samples: number of training samples.
        labels: their classes, int64 `[num_samples]`.
        rng: generator of all random numbers.
        num_clients: number of clients.
        classes_per_client: number of classes of each client.
        min_samples: smallest number of samples that a client may have.

    Raises:
        ValueError: there are no labels, the classes are too few, or too many for all clients together, a class has too
            few samples for its clients, or a client has too few.
    """
    check_sizes(num_samples, num_clients, min_samples)
    labels = require_labels(labels, "classes")
    number = np.unique(labels, return_inverse=True)[1]
    num_classes, key = int(number.max()) + 1, f"partition.classes_per_client={classes_per_client}"
    if not 1 <= classes_per_client <= num_classes:
        raise ValueError(f"{key}: must be at least 1 and at most {num_classes}, the classes that there are")
    if classes_per_client * num_clients < num_classes:
        raise ValueError(f"{key}: {num_clients} clients leave some of {num_classes} classes to nobody")
    dealt = -(-num_classes // num_clients)
    turns = np.arange(num_clients * dealt).reshape(num_clients, dealt) % num_classes
    keys = rng.random((num_clients, num_classes))
    np.put_along_axis(keys, rng.permutation(num_classes)[turns], -1.0, axis=1)
    clients = np.repeat(np.arange(num_clients), classes_per_client)
    of = np.argsort(keys, axis=1)[:, :classes_per_client].ravel()
    sharing, members = np.bincount(of), np.bincount(number)
    if (sharing > members).any():
        few = int(np.argmax(sharing > members))
        raise ValueError(f"{key}: the {members[few]} samples of class {few} are too few for its {sharing[few]} clients")
    owners = by_owner(of, rng.permutation(len(of)))
    ends = np.cumsum(members)
    rank = np.arange(num_samples) - np.repeat(ends - members, members)
    which = np.repeat(np.cumsum(sharing) - sharing, members) + rank % np.repeat(sharing, members)
    owner = np.empty(num_samples, np.int64)
    owner[by_owner(number, rng.permutation(num_samples))] = clients[owners[which]]
    sizes = np.bincount(owner, minlength=num_clients)
    if sizes.min() < min_samples:
        raise ValueError(f"partition.min_samples={min_samples}: client {sizes.argmin()} of classes has {sizes.min()}")
    return owner
