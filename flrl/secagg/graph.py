"""Who masks with whom: all with all, or each with a few neighbours on a ring in random order (SecAgg+)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_ALL_UP_TO = 50


@dataclass(frozen=True, slots=True)
class Graph:
    """The neighbours of every client, and how many shares give a secret.

    Attributes:
        neighbours: with whom each client has masks in common, ascending, by client.
        holders: who gets a share of its secrets, ascending: its neighbours, and itself where all are neighbours.
        threshold: how many shares are needed.
    """

    neighbours: Mapping[int, tuple[int, ...]]
    holders: Mapping[int, tuple[int, ...]]
    threshold: int

    @property
    def clients(self) -> tuple[int, ...]:
        """All clients, ascending."""
        return tuple(self.neighbours)

    @property
    def degree(self) -> int:
        """The number of each client's neighbours."""
        return max(map(len, self.neighbours.values()))

    @classmethod
    def of(cls, clients: Sequence[int], degree: int | None, share: float, rng: np.random.Generator) -> "Graph":
        """All with all, or a Harary graph: on a ring in random order, the nearest `degree / 2` on either side.

        Args:
            clients: distinct ids.
            degree: even; None or at least their number minus 1: all.
            share: more than this share of the holders of a secret are needed.
            rng: draws the order.
        """
        ids = tuple(sorted(clients))
        if degree is None or degree >= len(ids) - 1:
            return cls(
                neighbours={own: tuple(other for other in ids if other != own) for own in ids},
                holders=dict.fromkeys(ids, ids),
                threshold=needed(len(ids), share),
            )
        ring = [ids[place] for place in rng.permutation(len(ids))]
        steps = [step for step in range(-(degree // 2), degree // 2 + 1) if step]
        found = {own: tuple(sorted(ring[(i + s) % len(ring)] for s in steps)) for i, own in enumerate(ring)}
        near = {own: found[own] for own in ids}
        return cls(neighbours=near, holders=near, threshold=needed(degree, share))


def needed(holders: int, share: float) -> int:
    """How many of a secret's holders are needed: more than a share of them, and never one alone."""
    return max(2, math.floor(share * holders) + 1)


def automatic_degree(clients: int) -> int | None:
    """None, for all, up to 50 clients; else 3 log2(n), rounded up to an even number."""
    if clients <= _ALL_UP_TO:
        return None
    return 2 * math.ceil(3 * math.log2(clients) / 2)
