"""Client canaries: directions, coins, and what is sent."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from flrl.adversaries import ClientCanaries
from flrl.adversaries.client_canaries import direction, is_in
from flrl.adversaries.updates import plain_context
from flrl.aggregation import Mean
from flrl.setup import Setup
from flrl.strategies import Scaffold
from tests.adversaries.parts import federation
from tests.toys import fit


def test_directions_are_nearly_orthogonal_and_of_norm_one() -> None:
    rows = np.stack([direction(3, client, 4000) for client in range(30)])
    products = rows @ rows.T
    assert np.allclose(np.diag(products), 1.0, atol=1e-12)
    off = products[~np.eye(30, dtype=bool)]
    assert off.std() == pytest.approx(1 / np.sqrt(4000), rel=0.1)
    assert (direction(3, 1, 4000) == rows[1]).all()
    assert (direction(4, 1, 4000) != rows[1]).all()


def test_coins_are_fair_and_independent_of_directions() -> None:
    coins = np.array([is_in(seed, client) for seed in range(20) for client in range(100)])
    assert coins.mean() == pytest.approx(0.5, abs=0.03)
    agree = np.array([is_in(0, client) == is_in(1, client) for client in range(1000)])
    assert agree.mean() == pytest.approx(0.5, abs=0.05)


def test_a_client_sends_its_direction_or_zeros_in_every_round() -> None:
    adversary, rows = ClientCanaries(norm=2.5, clients=1), torch.ones(1, 50, dtype=torch.float64)
    seen = set()
    for client in range(12):
        context = replace(plain_context(rows, 1, 7), client_id=client)
        sent = [adversary.changed(rows[0], replace(context, round=round)) for round in (1, 5)]
        assert torch.equal(*sent)
        seen.add(is_in(7, client))
        expected = 2.5 * direction(7, client, 50) if is_in(7, client) else np.zeros(50)
        assert np.array_equal(sent[0].numpy(), expected)
    assert seen == {True, False}


def test_the_model_moves_by_the_directions_that_are_in() -> None:
    """All clients are canaries of equal weight: the models differ by the mean of what they send, times rounds."""
    worker = federation(ClientCanaries(norm=0.5, clients=5), aggregator=Mean(), sizes=(6, 6, 6, 6, 6), rounds=3)
    size, before = worker.model.layout.num_trainable, worker.model.vector.detach().clone()
    state, _ = fit(worker)
    coins = [is_in(0, client) for client in range(5)]
    assert 0 < sum(coins) < 5
    mean = sum(0.5 * direction(0, client, size) * coin for client, coin in enumerate(coins)) / 5
    moved = (state.vector - before).double().numpy()
    assert np.allclose(moved, 3 * mean, atol=1e-6)
    scores = [float(direction(0, client, size) @ moved) for client in range(5)]
    assert min(s for s, coin in zip(scores, coins, strict=True) if coin) > 0.15


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"adversary.norm=0: must be above 0 and finite"):
        ClientCanaries(norm=0)
    worker = federation()
    strategy = Scaffold(
        rounds=1, sampler=worker.strategy.sampler, server_optimizer=partial(torch.optim.SGD, lr=1.0), aggregator=Mean()
    )
    setup = Setup.of(worker.model.module, strategy, worker.trainer, worker.data.sizes)
    with pytest.raises(ValueError, match="clients of Scaffold also send"):
        ClientCanaries(clients=1).check(setup)
