"""Minimum diameter averaging: the mean of the n - f rows whose greatest distance from each other is smallest.

Rousseeuw, "Multivariate Estimation with High Breakdown Point", 1985; for learning El Mhamdi, Guerraoui, Rouault,
"Distributed Momentum for Byzantine-resilient Learning", ICLR 2021, arXiv 2003.00010. Clients count equally.
"""

import torch
from torch import Tensor

from flrl.aggregation.bearing import BearingRule
from flrl.aggregation.columns import mean_of_kept
from flrl.aggregation.distances import squared_distances
from flrl.aggregation.rows import Before, Rows, Ruled

_MOST = 20
"""Malicious clients at most: the search takes up to 2^f steps."""


class MDA(BearingRule):
    """Leaves out f rows so that the diameter of the others is least; finds them exactly.

    Args:
        num_malicious: f, how many clients may be malicious; at most 20, as the search takes up to 2^f steps.
    """

    bound = (2, 1, "El Mhamdi et al., 2021")
    any_order = True

    def __init__(self, *, num_malicious: int, before: Before | None = None) -> None:
        super().__init__(num_malicious=num_malicious, before=before)
        if num_malicious > _MOST:
            raise ValueError(f"strategy.aggregator.num_malicious={num_malicious}: MDA takes at most {_MOST}")

    def rule(self, rows: Rows) -> Ruled:
        """The mean of the rows that stay.

        Raises:
            ValueError: no row would stay.
        """
        if len(rows) <= self.num_malicious:
            raise ValueError(f"MDA of {len(rows)} rows cannot bear {self.num_malicious} malicious ones")
        distances = squared_distances(rows.values, rows.places)
        order = distances.sum(dim=1).argsort(stable=True)  # of several ways the one that leaves out what is far
        kept = torch.ones(len(rows), dtype=torch.bool, device=distances.device)
        kept[order[smallest_without(distances[order][:, order], self.num_malicious)]] = False
        return Ruled(mean_of_kept(rows.values, kept, rows.places), kept)


def smallest_without(distances: Tensor, most: int) -> list[int]:
    """The places of `most` rows without which the greatest of the distances `[n, n]` between the others is least.

    Two rows that are farther apart than the diameter cannot both stay, so the rows to leave out cover all such pairs:
    the least diameter for which so few rows cover them is found by bisection.
    """
    count = len(distances)
    steps = sorted({0.0, *distances.flatten().tolist()})
    low, high = 0, len(steps) - 1
    best: list[int] = []
    while low <= high:
        middle = (low + high) // 2
        far = (distances > steps[middle]).nonzero().tolist()
        cover = _cover([(a, b) for a, b in far if a < b], most)
        if cover is None:
            low = middle + 1
        else:
            best, high = cover, middle - 1
    rest = [place for place in range(count - 1, -1, -1) if place not in best]
    return [*best, *rest[: most - len(best)]]


def _cover(pairs: list[tuple[int, int]], most: int) -> list[int] | None:
    """At most so many places of which each pair has one; the later one of a pair is tried first."""
    if not pairs:
        return []
    if most == 0:
        return None
    counts: dict[int, int] = {}
    for pair in pairs:
        for place in pair:
            counts[place] = counts.get(place, 0) + 1
    for place, number in counts.items():
        if number > most:  # else all its partners would have to go
            found = _cover([pair for pair in pairs if place not in pair], most - 1)
            return None if found is None else [place, *found]
    first, second = max(pairs, key=lambda pair: counts[pair[0]] + counts[pair[1]])
    for place in (second, first):
        found = _cover([pair for pair in pairs if place not in pair], most - 1)
        if found is not None:
            return [place, *found]
    return None
