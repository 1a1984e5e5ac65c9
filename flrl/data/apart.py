"""What is set apart when a dataset is divided: samples of the server and of everybody, clients that never take part."""

from collections.abc import Mapping

import numpy as np

from flrl.data.sources import SampleCanaries, Source
from flrl.seeding import SERVER, generator_for


def taken(
    name: str, number: int, indices: np.ndarray, counts: np.ndarray, num_clients: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Take samples from clients, never the first one of a client; returns what clients keep, its counts, the taken.

    Args:
        name: for whom; the random numbers are drawn for it.
        number: how many.
        indices: the clients' samples, which lie side by side; int64 `[samples]`.
        counts: samples of each client, int64 `[clients]`.
        num_clients: how many of them, the first ones, samples are taken from.
        seed: of the draw.
    """
    firsts = np.cumsum(counts[:num_clients]) - counts[:num_clients]
    most = int(counts[:num_clients].sum()) - num_clients
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
        key = f"{name}_samples={number}"
        raise ValueError(f"{key}: must be a whole number from 0 to {most}; every client keeps a sample")
    if not number:
        return indices, counts, np.empty(0, np.int64)
    others = np.delete(np.arange(most + num_clients), firsts)
    places = np.sort(generator_for(seed, 0, SERVER, name).choice(others, number, replace=False))
    owners = np.repeat(np.arange(len(counts)), counts)[places]
    return np.delete(indices, places), counts - np.bincount(owners, minlength=len(counts)), indices[places]


def drawn(source: Source, number: int, seed: int) -> Source | None:
    """So many of a dataset's public samples, in their order; None for none."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= len(source):
        raise ValueError(f"public_samples={number}: must be a whole number from 0 to {len(source)}, the dataset's")
    rng = generator_for(seed, 0, SERVER, "public")
    return source.subset(np.sort(rng.choice(len(source), number, replace=False))) if number else None


def held_out(number: int | float, num_clients: int, holdout: float, rng: np.random.Generator) -> np.ndarray:
    """Ids in the partition of the clients that never take part, ascending."""
    valid = isinstance(number, int | float) and not isinstance(number, bool) and number >= 0
    if not valid or not (number == int(number) if number >= 1 else True):
        raise ValueError(f"held_out_clients={number}: must be a whole number of clients, or a fraction below 1")
    count = max(1, int(np.rint(number * num_clients))) if 0 < number < 1 else int(number)
    if count >= num_clients:
        raise ValueError(f"held_out_clients={number}: of {num_clients} clients, at least one has to take part")
    if count and not holdout:
        raise ValueError(f"held_out_clients={number}: they are evaluated on held-out samples: set holdout, such as 0.2")
    return np.sort(rng.choice(num_clients, count, replace=False))


def without_canaries(
    canaries: SampleCanaries, indices: np.ndarray, counts: np.ndarray, apart: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Leave out the canaries whose coin says so; returns what clients keep, and its counts.

    Args:
        canaries: which samples they are, and which are in.
        indices: the clients' samples, which lie side by side; int64 `[samples]`.
        counts: samples of each client, int64 `[clients]`.
        apart: other samples that are taken from clients, by the setting that does so: none may be positive.
    """
    for name, value in apart.items():
        if value:
            raise ValueError(f"{name}={value}: with canaries it must be 0, as a coin must change one sample alone")
    out = np.isin(indices, canaries.indices[~canaries.included])
    left = counts - np.bincount(np.repeat(np.arange(len(counts)), counts)[out], minlength=len(counts))
    if not left.all():
        client = int(np.argmin(left))
        raise ValueError(f"dataset.num: client {client} has nothing but canaries, which are out; make fewer of them")
    return indices[~out], left
