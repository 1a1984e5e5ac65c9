"""The round loop, and the names of what a federated algorithm may change in it.

A strategy holds settings only. What changes from round to round is in `ServerState`, which goes in and comes out.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from flrl.callbacks.base import Callbacks
from flrl.errors import TooFewUpdatesError
from flrl.layout import ParameterLayout, digest
from flrl.sampling import Sampler
from flrl.snapshot import Snapshot
from flrl.strategies.record import evaluation_record, round_record
from flrl.trainers import LocalProblem, Trainer
from flrl.transforms import Transform
from flrl.types import Aggregate, Broadcast, ClientReport, ClientTask, ClientUpdate, RoundRecord, ServerState


class Backend(Protocol):
    """Where clients train. Nothing else knows which backend runs."""

    @property
    def sizes(self) -> np.ndarray:
        """Training samples of every client."""

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Aggregate:
        """Train the cohort; `on_report` is called as clients finish, in any order."""

    def evaluate(self, vector: Tensor, *, round: int, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round; may be empty."""


class Strategy(ABC):
    """An algorithm for federated learning.

    Args:
        rounds: rounds of a whole run.
        sampler: chooses each round's cohort.
        min_clients: fewest usable updates a round can be aggregated from.
        transforms: applied to every update before it is summed.
    """

    def __init__(
        self, *, rounds: int, sampler: Sampler, min_clients: int = 1, transforms: Sequence[Transform] = ()
    ) -> None:
        if rounds < 1:
            raise ValueError(f"strategy.rounds={rounds}: must be at least 1")
        if min_clients < 1:
            raise ValueError(f"strategy.min_clients={min_clients}: must be at least 1")
        self.rounds = rounds
        self.sampler = sampler
        self.min_clients = min_clients
        self.transforms = tuple(transforms)

    def check(self, module: pl.LightningModule, trainer: Trainer) -> None:
        """Raise ValueError, by name, for what the algorithm cannot honour in a module or trainer; before any round."""
        if type(self).train is not Strategy.train and type(trainer).fit_together is not Trainer.fit_together:
            raise ValueError(
                f"strategy: {type(self).__name__} trains each client in a way of its own, which "
                f"{type(trainer).__name__} cannot do for many at once: use trainer=traced"
            )

    # The server's half.

    def initialize(self, vector: Tensor, layout: ParameterLayout) -> ServerState:
        """The state before the first round, from the initial model."""
        return ServerState(round=0, vector=vector)

    def broadcast(self, state: ServerState, round: int, total_weight: float) -> Broadcast:
        """What every client of the round is sent."""
        return Broadcast(round=round, vector=state.vector, total_weight=total_weight)

    @abstractmethod
    def aggregate(self, state: ServerState, aggregate: Aggregate, layout: ParameterLayout) -> ServerState:
        """The next state from the round's weighted means; `round` and `memory` are kept by `fit`."""

    def weight(self, num_samples: int) -> float:
        """A client's weight in the mean: n_c, as McMahan et al. weigh."""
        return float(num_samples)

    # The client's half: runs wherever the client is.

    def vector_sizes(self, layout: ParameterLayout) -> dict[str, int]:
        """The vectors that every update carries, by name, and their elements."""
        return {"update": layout.size}

    def train(self, problem: LocalProblem, trainer: Trainer) -> ClientUpdate:
        """One client's part of a round."""
        return self.train_together([problem], trainer)[0]

    def train_together(self, problems: Sequence[LocalProblem], trainer: Trainer) -> list[ClientUpdate]:
        """Several clients' parts of a round; an engine may train them side by side."""
        if type(self).train is not Strategy.train:
            return [self.train(problem, trainer) for problem in problems]
        updates: dict[int, ClientUpdate] = {}
        for group in trainer.groups(problems):
            parts = [self.local(problem, trainer) for problem in group]
            fitted = trainer.fit_together([next(part) for part in parts], self)
            returned = [_returned(part, update) for part, update in zip(parts, fitted, strict=True)]
            updates |= {problem.task.client_id: update for problem, update in zip(group, returned, strict=True)}
        if type(self).local is not Strategy.local or type(self).finish is not Strategy.finish:
            problems[0].model.touched = True  # both may do something to the module
        return [updates[problem.task.client_id] for problem in problems]

    def local(self, problem: LocalProblem, trainer: Trainer) -> Generator[LocalProblem, ClientUpdate, ClientUpdate]:
        """One client's part of a round, as a generator: yields what is to be trained, is sent the trained update."""
        update = yield problem
        return self.finish(update, problem)

    @property
    def adjusts_loss(self) -> bool:
        """Whether the class has an `adjust_loss` of its own."""
        return type(self).adjust_loss is not Strategy.adjust_loss

    @property
    def adjusts_gradient(self) -> bool:
        """Whether the class has an `adjust_gradient` of its own."""
        return type(self).adjust_gradient is not Strategy.adjust_gradient

    def adjust_loss(self, loss: Tensor, problem: LocalProblem) -> Tensor:
        """The loss to minimise on a batch, given that of the module."""
        return loss

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, problem: LocalProblem) -> None:  # noqa: B027
        """Change a batch's gradient in place; both tensors have shape `[layout.num_trainable]`. Elementwise only."""

    def finish(self, update: ClientUpdate, problem: LocalProblem) -> ClientUpdate:
        """Add to a trained client's update what the server needs besides, and what the client remembers."""
        return update

    # The round loop.

    def plan(self, state: ServerState, sizes: np.ndarray, seed: int) -> tuple[Broadcast, list[ClientTask]]:
        """What the clients of the next round are sent, and their tasks.

        Args:
            state: of the server before the round.
            sizes: training samples of every client.
            seed: the run's seed.
        """
        round = state.round + 1
        cohort = self.sampler(len(sizes), seed=seed, round=round).tolist()
        tasks = [
            ClientTask(round, c, int(sizes[c]), self.weight(int(sizes[c])), state.memory.get(c, {})) for c in cohort
        ]
        return self.broadcast(state, round, sum(task.weight for task in tasks)), tasks

    def fit(
        self,
        state: ServerState,
        *,
        backend: Backend,
        layout: ParameterLayout,
        seed: int,
        callbacks: Callbacks,
        history: Sequence[RoundRecord] = (),
    ) -> tuple[ServerState, list[RoundRecord]]:
        """Run the rounds that are left, and return the last state and a record of every round.

        Args:
            state: from `initialize`, or from a checkpoint.
            backend: where clients train.
            layout: of the model.
            seed: the run's seed.
            callbacks: observers of every round; one of them may stop the run.
            history: the records of the rounds before `state`.

        Raises:
            TooFewUpdatesError: a round had fewer usable updates than `min_clients`.
            ValueError: the strategy has changed itself.
        """
        history = list(history)
        try:
            callbacks.on_fit_start(state, history)
            if state.round == 0 and not history:
                metrics = backend.evaluate(state.vector, round=0, rounds=self.rounds)
                if metrics:
                    history.append(evaluation_record(metrics, digest(state.vector)))
                    callbacks.on_round_end(state, history)
            weight_of_all = self.weight_of_all(backend.sizes)
            before = Snapshot(self, "strategy")
            while state.round < self.rounds and not callbacks.should_stop(history):
                # Reports, and the client memory that hangs on them, must not pile up with the rounds.
                history[-1:] = [replace(record, reports=()) for record in history[-1:]]
                state, record = self._round(state, backend, layout, seed, weight_of_all, callbacks)
                refuse_changes(self, before, f"in round {state.round}")
                history.append(record)
                callbacks.on_round_end(state, history)
        except BaseException as error:
            callbacks.on_exception(state, history, error)
            raise
        callbacks.on_fit_end(state, history)
        return state, history

    def _round(
        self,
        state: ServerState,
        backend: Backend,
        layout: ParameterLayout,
        seed: int,
        weight_of_all: float,
        callbacks: Callbacks,
    ) -> tuple[ServerState, RoundRecord]:
        started = time.perf_counter()
        round = state.round + 1
        broadcast, tasks = self.plan(state, backend.sizes, seed)
        callbacks.on_round_start(round, [task.client_id for task in tasks])
        result = backend.train(broadcast, tasks, callbacks.on_client_end)
        self._check(result, round)
        result = replace(result, share=result.total_weight / weight_of_all)
        for transform in reversed(self.transforms):
            result = replace(result, means=transform.decode(result.means))
        memory = {**state.memory, **{report.client_id: report.memory for report in result.reports if report.memory}}
        state = replace(self.aggregate(state, result, layout), round=round, memory=memory)
        trained = time.perf_counter()
        evaluated = backend.evaluate(state.vector, round=round, rounds=self.rounds)
        seconds = {"time/round_s": time.perf_counter() - started, "time/train_s": trained - started}
        sent = layout.nbytes + sum(tensor.nbytes for tensor in broadcast.variables.values())
        metrics = evaluated | seconds | {"comm/down_bytes": float(sent * len(tasks))}
        return state, round_record(round, metrics, digest(state.vector), result)

    def weight_of_all(self, sizes: np.ndarray) -> float:
        """The sum of all clients' weights, from the training samples of each: `weight` is asked once a number."""
        numbers, counts = np.unique(sizes, return_counts=True)
        return math.fsum(self.weight(int(n)) * int(count) for n, count in zip(numbers, counts, strict=True))

    def _check(self, result: Aggregate, round: int) -> None:
        accepted = [report for report in result.reports if report.rejected is None]
        if len(accepted) < self.min_clients:
            reasons = [f"client {r.client_id}: {r.rejected}" for r in result.reports if r.rejected is not None]
            rejected = "; ".join(reasons[:5]) + (f"; and {len(reasons) - 5} more" if len(reasons) > 5 else "")
            raise TooFewUpdatesError(
                f"round {round}: {len(accepted)} usable updates, strategy.min_clients={self.min_clients}; {rejected}"
            )
        for transform in self.transforms:
            if not any(f"transforms/{transform.name}/clients" in report.metrics for report in accepted):
                raise RuntimeError(f"transform {transform.name} was asked for but never ran")


def refuse_changes(strategy: Strategy, before: Snapshot, when: str) -> None:
    """Raise ValueError, by name, if a strategy is not what it was: a resume and other workers would not know of it."""
    changed = before.changed()
    if changed:
        raise ValueError(
            f"strategy: {type(strategy).__name__} changes {', '.join(changed[:3])} {when}: what lasts from client to "
            "client or from round to round belongs into client memory (ClientUpdate.memory) or ServerState.variables"
        )


def _returned(part: Generator[LocalProblem, ClientUpdate, ClientUpdate], update: ClientUpdate) -> ClientUpdate:
    try:
        part.send(update)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise RuntimeError("Strategy.local must yield once")
