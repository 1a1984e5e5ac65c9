import contextlib
import hashlib
import random
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flrl.seeding import (
    SERVER,
    clients_in_turn,
    drawing_from,
    generator_for,
    isolated_randomness,
    seed_for,
    seed_generators,
    seeded_for_client,
)


def test_seed_is_the_start_of_a_hash() -> None:
    expected = int.from_bytes(hashlib.sha256(b"3/2/-1/cohort").digest()[:8], "little") >> 1
    assert seed_for(3, 2, SERVER, "cohort") == expected


def test_seeds_stay_what_they_are() -> None:
    assert seed_for(0, 1, 2, "shuffle") == 7187119258788751317
    assert generator_for(0, 1, 2, "shuffle").integers(1000, size=3).tolist() == [378, 306, 518]


key = st.tuples(st.integers(0, 2**63), st.integers(0, 10**6), st.integers(-1, 10**6), st.sampled_from("abc"))


@given(key, key)
def test_different_keys_have_different_seeds(a: tuple, b: tuple) -> None:
    assert 0 <= seed_for(*a) < 2**63
    assert (seed_for(*a) == seed_for(*b)) == (a == b)


CPU = torch.device("cpu")


def draw() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.random()), random.random()


@pytest.mark.parametrize(
    "seeded",
    [lambda: isolated_randomness(7, CPU), lambda: seeded_for_client(7, CPU), lambda: clients_in_turn(CPU)],
    ids=["isolated", "for a client", "clients in turn"],
)
def test_all_generators_are_put_back(seeded: Callable[[], AbstractContextManager[None]]) -> None:
    seed_generators(1)
    expected = draw()
    seed_generators(1)
    with seeded():
        seed_generators(3)
        draw()
    assert draw() == expected
    seed_generators(1)
    with contextlib.suppress(KeyError), seeded():
        draw()
        raise KeyError
    assert draw() == expected


def test_all_generators_follow_the_seed() -> None:
    def draws(seed: int) -> tuple[float, float, float]:
        with isolated_randomness(seed, CPU):
            return draw()

    assert draws(7) == draws(7)
    assert all(a != b for a, b in zip(draws(7), draws(8), strict=True))
    assert draws(2**62) != draws(2**62 + 1)


def test_clients_in_turn_are_seeded_each() -> None:
    with isolated_randomness(7, CPU):
        expected = draw()
    with clients_in_turn(CPU):
        for _ in range(2):
            with seeded_for_client(7, CPU):
                assert draw() == expected
    seed_generators(1)
    following = draw()
    seed_generators(1)
    with seeded_for_client(7, CPU):  # afterwards each client restores the states itself
        assert draw() == expected
    assert draw() == following


def test_the_global_generator_draws_for_another_one() -> None:
    own, same = (torch.Generator().manual_seed(7) for _ in range(2))
    seed_generators(1)
    following = draw()
    seed_generators(1)
    for _ in range(2):  # the other one goes on from where it was
        with drawing_from(own):
            assert torch.equal(torch.rand(3), torch.rand(3, generator=same))
    assert draw() == following
