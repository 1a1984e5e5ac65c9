"""Every random choice of a run is a pure function of (run seed, round, client id, purpose).

Nothing depends on what ran before, in which process or in how many, so no generator's state ever needs to be saved.
"""

import hashlib

import numpy as np

SERVER = -1
"""The client id of choices that belong to no client: the cohort, the partition, the initial model."""


def seed_for(run_seed: int, round: int, client_id: int, purpose: str) -> int:
    """Derive a seed in `[0, 2**63)` from what the random numbers are for.

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
