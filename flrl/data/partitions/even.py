"""Partitions whose clients have equal numbers of samples: random ones, or consecutive ones."""

import numpy as np

from flrl.data.partitions.sharing import check_sizes
from flrl.data.ranges import Consecutive


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
    check_sizes(num_samples, num_clients, min_samples)
    owner = np.empty(num_samples, dtype=np.int64)
    owner[rng.permutation(num_samples)] = np.arange(num_samples) % num_clients
    return owner


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
    check_sizes(num_samples, num_clients, min_samples)
    clients, samples = round((1 - share) * num_clients), round((1 - share) * num_samples)
    if not (0 < share < 1 and 0 < clients < num_clients):
        raise ValueError(f"partition.share={share}: both blocks need some of the {num_clients} clients")
    parts = ((samples, clients), (num_samples - samples, num_clients - clients))
    first, second = (iid(n, None, rng, num_clients=c, min_samples=min_samples) for n, c in parts)
    return np.concatenate([first, second + clients])


def consecutive(
    num_samples: int, labels: np.ndarray | None, rng: np.random.Generator, *, num_clients: int, min_samples: int = 1
) -> Consecutive:
    """Equal parts of the samples in the dataset's order, the first client the first ones; sizes differ by at most one.

    Nothing is held but a client's place, whatever the number of samples, and a client's samples stay in their order.

    Args:
        num_samples: number of training samples.
        labels: not used.
        rng: not used.
        num_clients: number of clients.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: there are fewer samples than `num_clients * min_samples`.
    """
    check_sizes(num_samples, num_clients, min_samples)
    each, more = divmod(num_samples, num_clients)
    return Consecutive(each + (np.arange(num_clients) < more).astype(np.int64))
