"""The cohort of a round: what a sampler is given, and what is kept of what clients reported."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from flrl.setup import Setup
from flrl.types import Aggregate, Broadcast, ClientReport, ClientTask, Tensors

LOSSES = "sampler/losses"
"""The name among a state's variables of the last losses reported, float64 `[num_clients]`; infinite where none was."""
NORMS = "sampler/norms"
"""That of the last norms of updates, likewise."""
LOSS_BYTES = 8
"""What a client's loss costs to send."""
_REPORTED = {"losses": (LOSSES, "train/loss"), "norms": (NORMS, "update/norm")}
"""What a sampler may need of clients: its name among a state's variables, and among a client's metrics."""


class Sampler(Protocol):
    """Chooses a round's cohort.

    It may have an attribute `needs` and a keyword `available` too, see `draw`, and a method `weights`, see `reweighed`.
    """

    def check(self, setup: Setup) -> None:
        """Raise ValueError if the setup has too few clients for such a cohort."""

    def largest(self, num_clients: int) -> int:
        """The largest possible number of clients in one round."""

    def __call__(self, num_clients: int, *, seed: int, round: int) -> np.ndarray:
        """The cohort's client ids, ascending, int64 `[cohort]`."""


def needs(sampler: Any) -> tuple[str, ...]:
    """What a sampler is called with besides `seed` and `round`, from its attribute `needs`.

    Raises:
        ValueError: it needs something else than `sizes`, `losses` and `norms`.
    """
    names = tuple(getattr(sampler, "needs", ()))
    for name in names:
        if name != "sizes" and name not in _REPORTED:
            raise ValueError(
                f"strategy.sampler: {type(sampler).__name__}.needs={names}: must be of {('sizes', *_REPORTED)}"
            )
    return names


def draw(
    sampler: Sampler,
    variables: Tensors,
    sizes: np.ndarray,
    *,
    seed: int,
    round: int,
    available: np.ndarray | None = None,
) -> np.ndarray:
    """The cohort of a round.

    A sampler whose `needs` has `sizes`, `losses` or `norms` is called with those as well: the samples of every client,
    and what each last reported, float64 `[num_clients]`, infinite where it has not; None before the first report. Where
    some clients are not available, it is called with `available`; the cohort is drawn among the available ones alone,
    and is all of them where they are fewer than the sampler asks for.

    Args:
        sampler: the run's.
        variables: of the server's state before the round.
        sizes: training samples of every client, int64 `[num_clients]`.
        seed: of the cohorts.
        round: counted from 1.
        available: whether each client is available, bool `[num_clients]`; None: all are.

    Raises:
        ValueError: some clients are not available and the sampler has no such keyword, or it chooses one of them.
    """
    given = _given(sampler, variables, sizes)
    if available is None or available.all():  # so that samplers without the keyword serve here
        return sampler(len(sizes), seed=seed, round=round, **given)
    name = type(sampler).__name__
    if not takes_available(sampler):
        raise ValueError(f"strategy.sampler: {name}.__call__ has no keyword `available`, and not all clients are")
    drawn = sampler(len(sizes), seed=seed, round=round, available=available, **given)  # type: ignore[call-arg]
    away = [int(client) for client in drawn if not available[client]]
    if away:
        raise ValueError(f"strategy.sampler: {name} gives {away[:10]}, which are not available in round {round}")
    return drawn


def reweighed(
    sampler: Sampler,
    broadcast: Broadcast,
    tasks: list[ClientTask],
    variables: Tensors,
    sizes: np.ndarray,
    *,
    seed: int,
    available: np.ndarray | None = None,
) -> tuple[Broadcast, list[ClientTask]]:
    """The broadcast and the tasks of a cohort with the weights that a sampler with a method `weights` gives it.

    The method is called as the sampler is, with the cohort's ids and their own weights before, float64 `[cohort]`.

    Args:
        sampler: the run's.
        broadcast: to the cohort.
        tasks: the cohort's, with the strategy's weights.
        variables: of the server's state before the round.
        sizes: training samples of every client, int64 `[num_clients]`.
        seed: of the cohorts.
        available: as for `draw`.
    """
    if not weighs(sampler) or not tasks:
        return broadcast, tasks
    given: dict[str, Any] = _given(sampler, variables, sizes)
    if available is not None and not available.all():
        given["available"] = available
    cohort, own = np.array([task.client_id for task in tasks]), np.array([task.weight for task in tasks])
    weights = sampler.weights(cohort, own, len(sizes), seed=seed, round=broadcast.round, **given)  # type: ignore[attr-defined]
    tasks = [replace(task, weight=float(weight)) for task, weight in zip(tasks, weights, strict=True)]
    return replace(broadcast, total_weight=math.fsum(task.weight for task in tasks)), tasks


def estimated(sampler: Sampler, aggregate: Aggregate, weight_of_all: float, num_trainable: int) -> Aggregate:
    """The aggregate with its `share`; for samplers with `estimates_sum` the weighted sum over the weight of all.

    The mean is over the weights of the cohort. Weights w / p, for a client that takes part with probability p, are
    those of all clients on average, and the sum over the weight of all clients is unbiased (Horvitz and Thompson, JASA
    47, 1952); so it is the trainable part's. Buffers, such as BatchNorm's statistics, are averaged.

    Args:
        sampler: the run's.
        aggregate: of the round, means of vectors.
        weight_of_all: the sum of all clients' own weights.
        num_trainable: length of the trainable part of `update`.
    """
    share = aggregate.total_weight / weight_of_all
    if not weighs(sampler):
        return replace(aggregate, share=share)
    if not getattr(sampler, "estimates_sum", False):
        return replace(aggregate, share=1.0)
    update = aggregate.vectors["update"].clone()
    update[:num_trainable] *= share
    return replace(aggregate, vectors={**aggregate.vectors, "update": update}, share=1.0)


def expected(sampler: Sampler, num_clients: int) -> float:
    """The expected number of clients of a round: of Poisson sampling their number times the probability."""
    probability = getattr(sampler, "probability", None)
    return float(sampler.largest(num_clients)) if probability is None else probability * num_clients


def weighs(sampler: Any) -> bool:
    """Whether a sampler gives clients weights of its own: it has a method `weights`."""
    return hasattr(sampler, "weights")


def takes_available(sampler: Sampler) -> bool:
    """Whether a sampler draws among the clients that are available: its call has the keyword `available`."""
    return "available" in inspect.signature(sampler).parameters


def at_least_one(num: int) -> int:
    """The setting `num` of a sampler; ValueError unless it is at least 1."""
    if num < 1:
        raise ValueError(f"strategy.sampler.num={num}: must be at least 1")
    return num


def at_most_all(num: int, num_clients: int) -> int:
    """The size of cohorts of `num` clients; ValueError if there are fewer clients."""
    if num > num_clients:
        raise ValueError(f"strategy.sampler.num={num}: there are only {num_clients} clients")
    return num


def everybody_of(num_clients: int, available: np.ndarray | None) -> np.ndarray:
    """The ids of the available clients, ascending; of all if `available` is None."""
    return np.arange(num_clients) if available is None else np.flatnonzero(available)


def noted(sampler: Sampler, variables: Tensors, reports: Sequence[ClientReport], num_clients: int) -> dict[str, Any]:
    """The sampler's variables after a round; none unless it needs losses or norms.

    A client that was left out, or whose loss or norm is not finite, keeps its last one.

    Args:
        sampler: the run's.
        variables: of the server's state before the round.
        reports: of the cohort.
        num_clients: number of all clients.
    """
    kept: dict[str, Any] = {}
    for name, (key, metric) in _REPORTED.items():
        if name in needs(sampler):
            unknown = torch.full((num_clients,), math.inf, dtype=torch.float64)
            kept[key] = variables.get(key, unknown).clone()
            for report in reports:
                value = report.metrics.get(metric, math.nan)
                if report.rejected is None and math.isfinite(value):
                    kept[key][report.client_id] = value
    return kept


def _given(sampler: Sampler, variables: Tensors, sizes: np.ndarray) -> dict[str, Any]:
    """What a sampler needs besides `seed` and `round`, by name."""
    given: dict[str, Any] = {}
    for name in needs(sampler):
        if name == "sizes":
            given[name] = sizes
        else:
            key, _ = _REPORTED[name]
            given[name] = variables[key].numpy() if key in variables else None
    return given
