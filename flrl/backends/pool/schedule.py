"""Schedules: which worker gets which job (a client batch, or a part of an evaluation). No result depends on them."""

import heapq
from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def longest_first(sizes: Sequence[int], num_workers: int) -> list[list[int]]:
    """Assign jobs by longest processing time: the largest first, each to the worker with the least load.

    Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM Journal on Applied Mathematics 17(2), 1969: the last
    worker ends at most a third later than in the best assignment.

    Args:
        sizes: the jobs' sizes, samples for instance.
        num_workers: number of workers.

    Returns:
        Each worker's jobs, as ascending indices into `sizes`.

    Example:
        >>> longest_first([5, 1, 4, 3], 2)
        [[0, 1], [2, 3]]
    """
    assigned: list[list[int]] = [[] for _ in range(num_workers)]
    loads = [(0, worker) for worker in range(num_workers)]
    for job in np.argsort(-np.asarray(sizes, np.int64), kind="stable").tolist():
        load, worker = loads[0]
        assigned[worker].append(job)
        heapq.heapreplace(loads, (load + sizes[job], worker))
    return [sorted(jobs) for jobs in assigned]


def at_random(sizes: Sequence[int], num_workers: int, rng: np.random.Generator) -> list[list[int]]:
    """Assign each job to a worker drawn uniformly, in random order: shows that no result depends on the schedule."""
    owner = rng.integers(num_workers, size=len(sizes))
    return [rng.permutation(np.flatnonzero(owner == worker)).tolist() for worker in range(num_workers)]


def contiguous(num_jobs: int, num_workers: int) -> list[range]:
    """Assign equally large jobs, to each worker a range of consecutive ones.

    Example:
        >>> contiguous(5, 2)
        [range(0, 2), range(2, 5)]
    """
    ends = [num_jobs * worker // num_workers for worker in range(num_workers + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]
