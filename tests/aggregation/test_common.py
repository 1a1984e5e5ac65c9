"""What every rule does. A new one joins by being listed."""

import itertools
from functools import partial

import pytest
import torch

from flrl.aggregation import Aggregator, Mean
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from tests.aggregation.test_rules import KINDS
from tests.aggregation.updates import add, reduced, rejected, update
from tests.toys import fit, make_worker, merged

RULES: dict[str, Aggregator] = {"mean": Mean(), **{name: kind.rule for name, kind in KINDS.items()}}
CHANGING = ("sign majority", "foolsgold", "fltrust", "norm bound", "centred clipping", "clip, median")
"""Rules of which equal updates do not become that update; their own tests say what they become."""
OF_ONE = (
    "mean",
    "row mean",
    "median",
    "trimmed mean, share",
    "geometric median",
    "buckets, median",
)
"""Rules that make of one update that update, and that need no more than one."""
every = pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
SIZES = {"update": 7, "control": 2}


def updates(count: int) -> list:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(count, 9, generator=generator, dtype=torch.float64)
    return [
        update(3 * index, index + 1.5, update=vector[:7].tolist(), control=vector[7:].tolist())
        for index, vector in enumerate(vectors)
    ]


@every
def test_neither_order_nor_grouping_changes_a_bit(rule: Aggregator) -> None:
    """Orders of six updates, on one worker, on two and on three."""
    results = set()
    for order in itertools.islice(itertools.permutations(updates(6)), 0, 720, 37):
        for cuts in ((6, 6), (0, 6), (1, 2), (3, 6)):
            parts = [order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]]
            vectors, weight = merged([reduced(rule, part, SIZES) for part in parts])
            assert weight == 24.0
            results.add(tuple(vectors[name].numpy().tobytes() for name in SIZES))
    assert len(results) == 1


@pytest.mark.parametrize("rule", [r for n, r in RULES.items() if n not in CHANGING])
def test_equal_updates_become_that_update(rule: Aggregator) -> None:
    """Of numbers that float64 adds exactly."""
    values = [1.0, -2.5, 0.0, 3.0, 0.125, 7.0, -1.0]
    same = [update(client, 1.0, update=values, control=[2.0, 4.0]) for client in range(8)]
    vectors, weight = reduced(rule, same, SIZES).result()
    assert (vectors["update"].tolist(), vectors["control"].tolist(), weight) == (values, [2.0, 4.0], 8.0)


@every
def test_nothing_added_is_no_vector(rule: Aggregator) -> None:
    assert reduced(rule, [], SIZES).result() == ({}, 0.0)
    assert merged([reduced(rule, [], SIZES), reduced(rule, [], SIZES)]) == ({}, 0.0)


@every
def test_what_is_not_finite_is_rejected_and_other_vectors_are_refused(rule: Aggregator) -> None:
    reducer = rule.reducer({"update": 1}, total_weight=4.0)
    assert rejected(reducer, update(0, 1.0, update=[1.0])) is None
    assert rejected(reducer, update(0, 1.0, update=[float("nan")])) == "update is not finite"
    assert rejected(reducer, update(0, 1.0, update=[float("-inf")])) == "update is not finite"
    assert rejected(reducer, update(0, 0.0, update=[1.0])) == "weight 0.0 is not positive and finite"
    with pytest.raises(ValueError, match=r"client 3 sent vectors \{'update': 2\}, expected \{'update': 1\}"):
        add(reducer, update(3, 1.0, update=[1.0, 2.0]))


@pytest.mark.parametrize("rule", [RULES[name] for name in OF_ONE])
def test_one_client_is_that_client(rule: Aggregator) -> None:
    """A whole round: the model becomes the client's own, to the bit."""
    sgd = partial(torch.optim.SGD, lr=1.0)
    vectors = [
        fit(make_worker(FedAvg(rounds=2, sampler=AllClients(), server_optimizer=sgd, aggregator=used), sizes=(30,)))[0]
        for used in (rule, Mean())
    ]
    assert torch.equal(vectors[0].vector, vectors[1].vector)
