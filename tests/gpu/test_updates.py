"""Rules and transforms make of updates on the device what they make of the same ones on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from flrl.aggregation import Aggregator, Mean, Median, TrimmedMean, stats_of
from flrl.layout import ParameterLayout
from flrl.transforms import ClipNorm, GaussianNoise, TopK, Transform
from flrl.transforms.apply import on_client, on_server
from flrl.types import Broadcast, ClientUpdate
from tests.toys import Linear, merged

pytestmark = pytest.mark.gpu

EXACT = 0.0
LAST_BITS = 1e-14
"""A float64 sum in another order, or a product and a sum that are rounded once."""
RULES: dict[str, tuple[Aggregator, float]] = {
    "mean": (Mean(), EXACT),
    "median": (Median(), EXACT),
    "trimmed mean": (TrimmedMean(share=0.2), LAST_BITS),
}
TRANSFORMS: dict[str, tuple[Callable[[], Transform], float]] = {
    "clip_norm": (partial(ClipNorm, max_norm=0.5, covers="all"), LAST_BITS),
    "gaussian_noise": (partial(GaussianNoise, std=0.1, covers="all"), LAST_BITS),
    "top_k": (partial(TopK, share=0.3), EXACT),
}
LAYOUT = ParameterLayout(Linear(features=50, classes=40))
SIZES = {"update": LAYOUT.size, "control": LAYOUT.num_trainable}


def updates(device: str) -> list[ClientUpdate]:
    """Differences of float32 models, of many magnitudes; two clients have sent the same."""
    drawn = []
    for client in (0, 1, 2, 3, 4, 5, 5):
        generator = torch.Generator().manual_seed(client)
        vectors = {
            name: torch.randn(size, generator=generator).double() * 10.0 ** -torch.arange(size).remainder(9)
            for name, size in SIZES.items()
        }
        here = {name: vector.to(device) for name, vector in vectors.items()}
        drawn.append(ClientUpdate(len(drawn), 3.0 + client, here, {}, num_steps=1, payload={"update": 1}))
    return drawn


def close(found: Tensor, expected: Tensor, limit: float) -> bool:
    return torch.equal(found, expected) if limit == EXACT else torch.allclose(found, expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str, workers: int, device: str) -> None:
    aggregator, limit = RULES[rule]

    def made(where: str) -> tuple[dict[str, Tensor], float]:
        reducers = [aggregator.reducer(SIZES, total_weight=64.0, device=where) for _ in range(workers)]
        for index, update in enumerate(updates(where)):
            stats = stats_of(update)
            assert reducers[0].rejection(update, stats) is None
            reducers[index % workers].add(update, stats)
        return merged(reducers)

    (found, weight), (expected, same_weight) = made(device), made("cpu")
    assert weight == same_weight
    assert all(close(found[name].cpu(), expected[name], limit) for name in SIZES)


def test_what_is_not_finite_is_seen(device: str) -> None:
    update = updates(device)[0]
    update.vectors["control"][3] = float("nan")
    reducer = Mean().reducer(SIZES, total_weight=64.0, device=device)
    assert reducer.rejection(update, stats_of(update)) == "control is not finite"


def test_stats_are_those_of_a_cpu(device: str) -> None:
    assert [stats_of(update) for update in updates(device)] == [stats_of(update) for update in updates("cpu")]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str, device: str) -> None:
    make, limit = TRANSFORMS[name]
    transforms = {name: make()}

    def made(where: str) -> tuple[list[ClientUpdate], Any]:
        sent, memory = [], {}
        for round in (1, 2):  # what they have clients remember comes back
            broadcast = Broadcast(round, torch.zeros(LAYOUT.size, device=where), 64.0, cohort=(0, 1, 2, 3, 4, 5, 6))
            for update in updates(where):
                known = memory.get(update.client_id, {})
                sent.append(on_client(transforms, update, known, broadcast, LAYOUT, 0))
                memory[update.client_id] = sent[-1].memory
        server = {key: vector.cpu() for key, vector in sent[0].vectors.items()}
        return sent, on_server(transforms, server, {}, broadcast, LAYOUT, 0)

    (found, after), (expected, same_after) = made(device), made("cpu")
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.payload, ours.metrics) == (theirs.payload, theirs.metrics)
        assert ours.memory.keys() == theirs.memory.keys()
        assert all(close(ours.vectors[key].cpu(), theirs.vectors[key], limit) for key in SIZES)
        assert all(close(ours.memory[key].cpu(), theirs.memory[key], limit) for key in theirs.memory)
    assert all(close(after[0][key], same_after[0][key], limit) for key in SIZES)
    assert after[2] == same_after[2]
