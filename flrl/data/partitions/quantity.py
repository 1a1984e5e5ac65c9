"""Quantity skew: clients alike in distribution, but not in size."""

import numpy as np

from flrl.data.partitions.sharing import by_shares, check_alpha, check_sizes, lognormal_shares, top_up


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
    check_sizes(num_samples, num_clients, min_samples)
    check_alpha(alpha, num_clients)
    return _of_sizes(num_samples, rng.dirichlet(np.full(num_clients, alpha)), min_samples, rng)


def quantity_lognormal(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    sigma: float,
    min_samples: int = 1,
) -> np.ndarray:
    """Quantity skew: sizes are log-normal, samples are drawn uniformly.

    As those of Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, arXiv 1812.06127, and of
    FedLab's unbalanced splits; the dataset's size is given, so only `sigma` matters.

    Args:
        num_samples: number of training samples.
        labels: not used.
        rng: generator of all random numbers.
        num_clients: number of clients.
        sigma: standard deviation of the logarithm of the sizes; 0: all are equal.
        min_samples: smallest number of samples of a client; those below get samples of the largest.

    Raises:
        ValueError: `sigma` is negative or not finite, or there are too few samples.
    """
    check_sizes(num_samples, num_clients, min_samples)
    return _of_sizes(num_samples, lognormal_shares(rng, num_clients, sigma), min_samples, rng)


def quantity_power_law(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    exponent: float,
    min_samples: int = 1,
) -> np.ndarray:
    """Quantity skew: the r-th largest client's size is proportional to `r ** -exponent`, samples are drawn uniformly.

    Zipf's law; which client is the r-th largest is drawn.

    Args:
        num_samples: number of training samples.
        labels: not used.
        rng: generator of all random numbers.
        num_clients: number of clients.
        exponent: 0: all sizes are equal.
        min_samples: smallest number of samples of a client; those below get samples of the largest.

    Raises:
        ValueError: `exponent` is negative or not finite, or there are too few samples.
    """
    check_sizes(num_samples, num_clients, min_samples)
    if not 0 <= exponent < np.inf:
        raise ValueError(f"partition.exponent={exponent}: must be at least 0 and finite")
    return _of_sizes(num_samples, (rng.permutation(num_clients) + 1.0) ** -exponent, min_samples, rng)


def _of_sizes(num_samples: int, shares: np.ndarray, min_samples: int, rng: np.random.Generator) -> np.ndarray:
    owner = np.empty(num_samples, dtype=np.int64)
    owner[rng.permutation(num_samples)] = by_shares(num_samples, shares)
    return top_up(owner, len(shares), min_samples, rng)
