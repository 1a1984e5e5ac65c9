"""Models that an attacker trains as the run's clients do, with the run's own engines, on samples that it has."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.attacks.base import Observation, Progress
from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.sampling import AllClients
from flrl.seeding import clients_in_turn
from flrl.setup import Setup
from flrl.strategies import FedAvg, FedSGD, Strategy
from flrl.strategies.running import train_clients
from flrl.trainers import EagerTrainer, LocalProblem, TracedTrainer, Trainer, VectorizedTrainer
from flrl.transforms.apply import on_client
from flrl.types import Broadcast, ClientTask

_SMALL = 2**16
"""Bytes of a model below which many of them are trained at once, since calls take longer than arithmetic."""
_SETTINGS = (
    "local_epochs", "local_steps", "batch_size", "shuffle", "lr_decay", "gradient_clip_val", "gradient_clip_algorithm",
    "precision",
)  # fmt: skip


class Shadows:
    """Trains models as the observed client did: the run's engine settings, module, optimizer, algorithm and transforms.

    What the client remembers, and what the server sends beside the model, is not known: it is as in the first round.
    Small models are trained many at once. Batch orders and dropout follow from (seed, round, index of the set).

    Args:
        observation: gives the module, the settings, the round and the seed.

    Raises:
        ValueError: the module has a personal part, which nobody but its client knows.
    """

    def __init__(self, observation: Observation) -> None:
        if observation.layout.personal:
            raise ValueError("clients keep parts of the model to themselves, so their training cannot be repeated")
        self.observation = observation
        self.strategy = observation.strategy or _plain(FedSGD if observation.local.only_gradient else FedAvg)
        self.model = BoundModel(observation.module)
        self.trainer = engine(observation, self.strategy)

    def train(
        self,
        samples: TensorSource,
        sets: Sequence[np.ndarray],
        progress: Progress,
        *,
        start: Tensor | None = None,
        epochs: int | None = None,
        round: int | None = None,
    ) -> Tensor:
        """Train a model on each of some sets of samples.

        Args:
            samples: as `gathered` makes them.
            sets: indices of samples, one array for each model.
            progress: called after each client batch, with the share of the models that are trained.
            start: the vector to start from, `[layout.size]`; what the client was sent by default.
            epochs: plain training for so many epochs, instead of the client's part of the algorithm.
            round: the round to be repeated; the observed one by default.

        Returns:
            The models' vectors, `[len(sets), layout.size]`: start plus what the client would have sent.
        """
        observation, model, trainer = self.observation, self.model, self.trainer
        start = observation.sent if start is None else start
        round = observation.round if round is None else round
        broadcast = Broadcast(round, start, float(sum(map(len, sets))), cohort=range(len(sets)))
        problems = []
        for index, chosen in enumerate(sets):
            task = ClientTask(round, index, len(chosen), float(len(chosen)))
            problems.append(LocalProblem.of(model, samples, chosen, task, broadcast, observation.seed))
        size, done = trainer.clients_at_once(model, len(sets)), 0
        trained = torch.empty(len(sets), observation.layout.size, dtype=start.dtype)
        with clients_in_turn(model.local.device):
            for first in range(0, len(sets), size):
                for change in self._changes(problems[first : first + size], epochs):
                    trained[done] = (start.double() + change).to(start.dtype)
                    done += 1
                progress(done / len(sets), f"{done} of {len(sets)} shadow models")
        model.load(observation.sent)
        return trained

    def _changes(self, batch: Sequence[LocalProblem], epochs: int | None) -> list[Tensor]:
        """What each client would send, float64 `[layout.size]`; what plain training makes, if `epochs` are given."""
        trainer = self.trainer
        if epochs is None:
            transforms, layout, seed = self.strategy.transforms, self.observation.layout, self.observation.seed
            updates = train_clients(self.strategy, batch, trainer)
            sent = (
                on_client(transforms, update, {}, problem.broadcast, layout, seed)
                for update, problem in zip(updates, batch, strict=True)
            )
            return [update.vectors["update"] for update in sent]
        asked = [replace(problem, epochs=epochs) for problem in batch]
        parts = trainer.groups(asked)  # one: the sets are equally large
        return [trained.difference for part in parts for trained in trainer.fit_batch(part, _plain(FedAvg))]


def dealt(count: int, size: int, num: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random subsets of `range(count)` in pairs without a common element, that use each element about equally often.

    They are cut from permutations, which begin with what was left over of the one before; two halves of each where
    `size` is half of all.

    Args:
        count: number of elements.
        size: the most elements of a subset; half of all if that is less.
        num: number of subsets, even.
        rng: draws them.
    """
    size = max(1, min(size, count // 2))
    pairs = count // (2 * size)
    sets: list[np.ndarray] = []
    left = np.empty(0, np.int64)
    while len(sets) < num:
        order = np.concatenate([left, rng.permutation(np.setdiff1d(np.arange(count), left))])
        sets += [order[first * size : (first + 1) * size] for first in range(2 * pairs)]
        left = order[2 * pairs * size :]
    return sets[:num]


def engine(observation: Observation, strategy: Strategy) -> Trainer:
    """The engine for shadow models: vectorized for small models that it can train, else traced or the run's own."""
    given = observation.trainer
    if given is None:
        local = observation.local
        settings: dict[str, Any] = {
            "local_epochs": local.epochs or 1, "local_steps": local.steps, "batch_size": local.batch_size,
            "shuffle": local.shuffle,
        }  # fmt: skip
    elif isinstance(given, EagerTrainer):  # and those derived from it; others may honour what it does not
        settings = {name: getattr(given, name) for name in _SETTINGS}
    else:
        return given
    if observation.layout.nbytes <= _SMALL:
        trainer = VectorizedTrainer(**settings)
        with contextlib.suppress(ValueError):  # it does not train this module
            trainer.check(Setup.of(observation.module, strategy, trainer, [1]))
            return trainer
    return TracedTrainer(**settings)


def _plain(kind: type[FedAvg]) -> Strategy:
    return kind(rounds=1, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
