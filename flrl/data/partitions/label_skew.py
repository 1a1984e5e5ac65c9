"""Label skew by Dirichlet distributions: of each class over clients, or of each client over classes."""

import numpy as np

from flrl.data.partitions.sharing import (
    by_mixes,
    by_shares,
    check_alpha,
    check_sizes,
    equal_sizes,
    lognormal_shares,
    require_labels,
    top_up,
)


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
    check_sizes(num_samples, num_clients, min_samples)
    labels = require_labels(labels, "dirichlet")
    check_alpha(alpha, num_clients)
    owner = np.empty(num_samples, dtype=np.int64)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        owner[members] = by_shares(len(members), rng.dirichlet(np.full(num_clients, alpha)))
    return top_up(owner, num_clients, min_samples, rng)


def dirichlet_equal(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    alpha: float,
    min_samples: int = 1,
) -> np.ndarray:
    """Label skew of clients of equal size: each draws its label mix from Dirichlet(alpha p), p being the dataset's.

    As in Hsu, Qi, Brown, 2019, arXiv 1909.06335, section 3. As all samples are dealt out, `by_mixes` says what happens
    where classes run out. With C balanced classes this is `inner_dirichlet` with `alpha / C`.

    Args:
        num_samples: number of training samples.
        labels: their classes, int64 `[num_samples]`.
        rng: generator of all random numbers.
        num_clients: number of clients.
        alpha: concentration; towards 0 each client has one class, towards infinity all have the dataset's mix.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: `alpha` is not positive, there are no labels, or there are too few samples.
    """
    check_sizes(num_samples, num_clients, min_samples)
    labels = require_labels(labels, "dirichlet_equal")
    check_alpha(alpha, 1)
    counts = np.unique(labels, return_counts=True)[1]
    mixes = rng.dirichlet(alpha * counts / num_samples, num_clients)
    return by_mixes(labels, mixes, equal_sizes(num_samples, num_clients), rng)


def inner_dirichlet(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    alpha: float,
    sigma: float = 0.0,
    min_samples: int = 1,
) -> np.ndarray:
    """Label skew whose clients each draw a label mix from a symmetric Dirichlet distribution; sizes are log-normal.

    As in Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, arXiv 2111.04263, and FedLab's
    `client_inner_dirichlet_partition`, which draw one sample after another; `by_mixes` draws all at once, and says what
    happens where classes run out.

    Args:
        num_samples: number of training samples.
        labels: their classes, int64 `[num_samples]`.
        rng: generator of all random numbers.
        num_clients: number of clients.
        alpha: concentration of the mixes; towards 0 each client has one class, towards infinity all are alike.
        sigma: standard deviation of the logarithm of the sizes; 0: they differ by at most one.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: `alpha` is not positive, `sigma` is negative, there are no labels, or there are too few samples.
    """
    check_sizes(num_samples, num_clients, min_samples)
    labels = require_labels(labels, "inner_dirichlet")
    num_classes = len(np.unique(labels))
    check_alpha(alpha, num_classes)
    sizes = equal_sizes(num_samples, num_clients)
    if sigma != 0:
        owner = by_shares(num_samples, lognormal_shares(rng, num_clients, sigma))
        sizes = np.bincount(top_up(owner, num_clients, min_samples, rng), minlength=num_clients)
    return by_mixes(labels, rng.dirichlet(np.full(num_classes, alpha), num_clients), sizes, rng)


def mixture(
    num_samples: int,
    labels: np.ndarray | None,
    rng: np.random.Generator,
    *,
    num_clients: int,
    num_components: int,
    alpha: float,
    component_alpha: float,
    min_samples: int = 1,
) -> np.ndarray:
    """Clients of equal size, each with a convex combination of a few label mixes that all have in common.

    Assumption 1 of Marfoq et al., "Federated Multi-Task Learning under a Mixture of Distributions", NeurIPS 2021, arXiv
    2108.10252, with label mixes as its distributions. The mixes are drawn from Dirichlet(component_alpha), each
    client's weights of them from Dirichlet(alpha). `by_mixes` says what happens where classes run out.

    Args:
        num_samples: number of training samples.
        labels: their classes, int64 `[num_samples]`.
        rng: generator of all random numbers.
        num_clients: number of clients.
        num_components: number of label mixes.
        alpha: concentration of the weights; towards 0 each client has one of the mixes, towards infinity all are alike.
        component_alpha: concentration of the label mixes; towards 0 each has one class.
        min_samples: smallest number of samples of a client.

    Raises:
        ValueError: there are no components, a concentration is not positive, there are no labels, or there are too few
            samples.
    """
    check_sizes(num_samples, num_clients, min_samples)
    labels = require_labels(labels, "mixture")
    if num_components < 1:
        raise ValueError(f"partition.num_components={num_components}: must be at least 1")
    num_classes = len(np.unique(labels))
    check_alpha(alpha, num_components)
    check_alpha(component_alpha, num_classes, "component_alpha")
    components = rng.dirichlet(np.full(num_classes, component_alpha), num_components)
    mixes = rng.dirichlet(np.full(num_components, alpha), num_clients) @ components
    return by_mixes(labels, mixes, equal_sizes(num_samples, num_clients), rng)
