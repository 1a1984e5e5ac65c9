"""Every random choice of a run is a pure function of (run seed, round, client id, purpose).

No random number depends on the order of clients or on processes, so no generator's state ever needs to be saved.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SERVER = -1
"""The client id of choices that belong to no client: the cohort, the partition, the initial model."""
EVERYBODY = -2
"""The client id of all clients that take part, as one that has the training samples of all of them."""


def seed_for(run_seed: int, round: int, client_id: int, purpose: str) -> int:
    """Derive a seed in `[0, 2**63)` from the purpose of the random numbers.

    Args:
        run_seed: the run's `seed`.
        round: the round, counted from 1; 0 for choices made before training.
        client_id: index of the client, or `SERVER`.
        purpose: what is drawn ("cohort", "shuffle", ...); different purposes are independent.

    Example:
        >>> seed_for(0, 1, 2, "shuffle") == seed_for(0, 1, 2, "shuffle")
        True
        >>> seed_for(0, 1, 2, "shuffle") == seed_for(0, 1, 3, "shuffle")
        False
    """
    text = f"{run_seed}/{round}/{client_id}/{purpose}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator_for(run_seed: int, round: int, client_id: int, purpose: str) -> np.random.Generator:
    """A NumPy generator seeded by `seed_for`."""
    return np.random.Generator(np.random.PCG64(seed_for(run_seed, round, client_id, purpose)))


@dataclass(frozen=True, slots=True)
class Seeds:
    """The seeds of a run; all are equal unless they are set separately.

    Attributes:
        run: seed of batch orders, dropout, transforms and evaluation; the default of the others.
        partition: seed of the partition, and of the choice of held-out samples.
        model: seed of the initial model.
        sampling: seed of the cohorts.
    """

    run: int
    partition: int
    model: int
    sampling: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Seeds":
        """The seeds in a resolved configuration; that of an earlier version may have `seed` alone.

        Raises:
            ValueError: a seed is no whole number, negative, or too large.
        """
        run = config["seed"]
        named = {
            "seed": run,
            "partition.seed": (config.get("partition") or {}).get("seed", run),
            "model_seed": config.get("model_seed", run),
            "sampling_seed": config.get("sampling_seed", run),
        }
        for name, seed in named.items():
            if not isinstance(seed, int) or isinstance(seed, bool):
                raise ValueError(f"{name}={seed}: must be a whole number")
            if not 0 <= seed < 2**63:
                raise ValueError(f"{name}={seed}: must be at least 0 and below 2**63")
        return cls(*named.values())


# The global generators, which modules, transforms and datasets draw from.


def seed_generators(seed: int) -> None:
    """Seed torch's, NumPy's and Python's global generators."""
    # Not `torch.manual_seed`: without CUDA in use it notes the call's traceback for later, a millisecond each time.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextlib.contextmanager
def isolated_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators inside the block, and restore their states at its end."""
    with _put_back(device):
        seed_generators(seed)
        yield


@contextlib.contextmanager
def clients_in_turn(device: torch.device) -> Iterator[None]:
    """Restore the global generators at the end of the block instead of after each client, which saves time."""
    global _in_turn
    with _put_back(device):
        before, _in_turn = _in_turn, True
        try:
            yield
        finally:
            _in_turn = before


@contextlib.contextmanager
def seeded_for_client(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for one client inside the block."""
    if not _in_turn:
        with isolated_randomness(seed, device):
            yield
    else:
        seed_generators(seed)
        yield


@contextlib.contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Have the global generator of a generator's device draw what that one would: for what takes no generator."""
    device = generator.device
    everybodys = torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]
    before = everybodys.get_state()
    everybodys.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(everybodys.get_state())
        everybodys.set_state(before)


_in_turn = False


@contextlib.contextmanager
def _put_back(device: torch.device) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
