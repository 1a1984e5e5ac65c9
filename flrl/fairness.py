"""How evenly a quantity is spread over clients: the Gini coefficient and Jain's index."""

import numpy as np

from flrl.data import statistics


def gini(values: np.ndarray) -> float | None:
    """The Gini coefficient: half of the mean absolute difference between two values, over their mean.

    0 where all are equal, (n - 1) / n where one of n has everything. Gini, "Variabilità e mutabilità", 1912.

    Args:
        values: float64 `[n]`.

    Returns:
        None where it is not defined: for no values, for a negative one or one that is not finite, for zeros alone.

    Example:
        >>> gini(np.array([1.0, 1.0])), gini(np.array([0.0, 1.0]))
        (0.0, 0.5)
    """
    if not _defined(values):
        return None
    return statistics.gini(values / values.max())


def jain(values: np.ndarray) -> float | None:
    """Jain's index: (sum x)^2 / (n sum x^2), the share of clients that would have as much each if n - k had nothing.

    1 where all are equal, 1 / n where one has everything. Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and
    Discrimination for Resource Allocation in Shared Computer Systems", DEC-TR-301, 1984, arXiv cs/9809099.

    Args:
        values: float64 `[n]`.

    Returns:
        None where `gini` is.

    Example:
        >>> jain(np.array([1.0, 1.0])), jain(np.array([0.0, 1.0]))
        (1.0, 0.5)
    """
    if not _defined(values):
        return None
    shares = values / values.max()
    return float(shares.sum() ** 2 / (len(values) * (shares**2).sum()))


def _defined(values: np.ndarray) -> bool:
    return len(values) > 0 and bool(np.isfinite(values).all() and values.min() >= 0 and values.max() > 0)
