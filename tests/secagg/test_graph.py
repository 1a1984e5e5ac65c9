"""Who masks with whom, and what may go wrong."""

import numpy as np
import pytest
from scipy import stats

from flrl.secagg import Graph
from flrl.secagg.graph import automatic_degree, needed
from flrl.secagg.risk import risk


def test_all_with_all() -> None:
    graph = Graph.of([7, 1, 4], None, 0.5, np.random.default_rng(0))
    assert graph.neighbours == {1: (4, 7), 4: (1, 7), 7: (1, 4)}
    assert set(graph.holders.values()) == {(1, 4, 7)}
    assert (graph.threshold, graph.degree, graph.clients) == (2, 2, (1, 4, 7))
    assert Graph.of([7, 1, 4], 2, 0.5, np.random.default_rng(0)) == graph


def test_a_ring_in_random_order() -> None:
    graph = Graph.of(range(0, 40, 2), 6, 0.5, np.random.default_rng(0))
    assert {len(near) for near in graph.neighbours.values()} == {6}
    assert all(own in graph.neighbours[other] for own, near in graph.neighbours.items() for other in near)
    assert all(own not in near for own, near in graph.neighbours.items())
    assert graph.holders == graph.neighbours
    assert graph.threshold == 4
    assert graph != Graph.of(range(0, 40, 2), 6, 0.5, np.random.default_rng(1))
    reached = {0}
    for _ in range(20):
        reached |= {other for own in reached for other in graph.neighbours[own]}
    assert len(reached) == 20


def test_how_many_shares_are_needed() -> None:
    assert [needed(n, 0.5) for n in (2, 3, 4, 5, 22)] == [2, 2, 3, 3, 12]
    assert [needed(n, 0.9) for n in (2, 10, 22)] == [2, 10, 20]


def test_how_many_neighbours() -> None:
    assert [automatic_degree(n) for n in (2, 50)] == [None, None]
    assert [automatic_degree(n) for n in (51, 64, 100, 1000, 10_000, 10**6)] == [18, 18, 20, 30, 40, 60]


def test_risks_are_hypergeometric_tails() -> None:
    """By hand: of 9 others 5 are corrupt, and both of 2 neighbours must be: 10 * (5/9 * 4/8)."""
    found = risk(10, 2, 2, corrupt=0.5, lost=0.2)
    assert found.exposed == pytest.approx(min(1.0, 10 * 5 / 9 * 4 / 8))
    few = risk(100, 20, 11, corrupt=0.1, lost=0.1)
    assert few.exposed == pytest.approx(100 * sum(stats.hypergeom.pmf(k, 99, 10, 20) for k in range(11, 21)), abs=1e-18)
    assert few.aborted == pytest.approx(100 * sum(stats.hypergeom.pmf(k, 99, 89, 20) for k in range(11)), rel=1e-9)
    row = np.prod([(20 - i) / (100 - i) for i in range(10)])
    assert few.parted == pytest.approx(100 * row)
    assert risk(100, 20, 11, corrupt=0.0, lost=0.0).aborted == 0.0


def test_risks_are_not_below_what_happens() -> None:
    """Of 500 graphs of 30 clients with 3 corrupt and 3 lost ones, at 4 neighbours and 3 shares."""
    rng, hits = np.random.default_rng(3), np.zeros(2)
    for _ in range(500):
        graph = Graph.of(range(30), 4, 0.5, rng)
        near = np.array([graph.neighbours[own] for own in range(30)])
        hits += [((near < 3).sum(1) >= 3).any(), ((near >= 6) | (near < 3)).sum(1).min() < 3]
    bound = risk(30, 4, 3, corrupt=0.1, lost=0.1)
    assert hits[0] / 500 <= bound.exposed + 3 * (bound.exposed / 500) ** 0.5
    assert 0.3 * bound.aborted < hits[1] / 500 <= bound.aborted * 1.2
