"""Runs the generators of a client batch: the problems that they yield are trained, at once where an engine can."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from flrl.seeding import seed_for, seeded_for_client
from flrl.strategies.base import Local, Strategy
from flrl.strategies.checking import check_problem, check_update
from flrl.trainers import LocalProblem, Trained, Trainer
from flrl.trainers.private import steps_of_round
from flrl.types import ClientUpdate, ServerState


def train_clients(strategy: Strategy, problems: Sequence[LocalProblem], trainer: Trainer) -> list[ClientUpdate]:
    """Run `Strategy.local` for each client of a client batch, and train the problems that they yield.

    Code of a user's own draws the same random numbers wherever it runs: the global generators are seeded by (seed,
    round, client) whenever a generator goes on.

    Args:
        strategy: gives the generators, and the client hooks.
        problems: one for each client.
        trainer: the engine.

    Returns:
        The clients' updates, in the order of the problems.

    Raises:
        TypeError: `local` is no generator, or yields or returns something else than it should.
        ValueError: it asks for what cannot be trained, or changes in place what the server sent.
    """
    own = not type(strategy).local.__module__.startswith("flrl.")
    steps = [trainer.num_epochs(problem) * trainer.num_batches(problem) for problem in problems]
    parts = [_Part(strategy, replace(p, num_steps=taken), own) for p, taken in zip(problems, steps, strict=True)]
    for part in parts:
        part.go_on(None)
    while asked := [part for part in parts if part.asked is not None]:
        for part in asked if trainer.private is not None else ():
            part.charge(trainer)
        by_problem = {id(part.asked): part for part in asked}
        for group in trainer.groups([part.asked for part in asked if part.asked is not None]):
            for problem, trained in zip(group, trainer.fit_batch(group, strategy), strict=True):
                by_problem[id(problem)].go_on(trained)
    if own:
        problems[0].model.touched = True  # a user's own strategy may have changed the module
    return [part.update for part in parts if part.update is not None]


def train_server(strategy: Strategy, state: ServerState, problem: LocalProblem, trainer: Trainer) -> ServerState:
    """Run `Strategy.server`, and train the problems that it yields; returns the state that it returns.

    Raises:
        TypeError: it is no generator, or yields or returns something else than it should.
        ValueError: it asks for what cannot be trained.
    """
    generator, trained = strategy.server(state, problem), None
    if not hasattr(generator, "send"):
        raise TypeError(f"strategy: {type(strategy).__name__}.server must be a generator, which yields problems")
    while True:
        try:
            asked = generator.send(trained)  # type: ignore[arg-type]
        except StopIteration as end:
            if not isinstance(end.value, ServerState):
                raise TypeError(f"strategy: {type(strategy).__name__}.server must return a ServerState") from None
            return end.value
        check_problem(strategy, asked, "server")
        (trained,) = trainer.fit_batch([asked], strategy)


@dataclass(slots=True, init=False)
class _Part:
    """One client's generator, with the problem that it has asked to be trained, or the update that it has returned."""

    asked: LocalProblem | None
    update: ClientUpdate | None
    generator: Local
    strategy: Strategy
    problem: LocalProblem
    own: bool
    times: int
    trainings: int
    steps: int

    def __init__(self, strategy: Strategy, problem: LocalProblem, own: bool) -> None:
        self.strategy, self.problem, self.own, self.times = strategy, problem, own, 0
        self.trainings = self.steps = 0
        self.asked = self.update = None
        with self._watched():
            self.generator = strategy.local(problem)
        if own and not hasattr(self.generator, "send"):
            raise TypeError(
                f"strategy: {type(strategy).__name__}.local must be a generator, which yields problems; it returns "
                f"{type(self.generator).__name__}"
            )

    def go_on(self, trained: Trained | None) -> None:
        """Send the generator what was trained, and note what it asks for next, or its update."""
        self.asked = None
        try:
            with self._watched():
                asked: Any = self.generator.send(trained)  # type: ignore[arg-type]
        except StopIteration as end:
            self.update = end.value
            if self.own:
                check_update(self.strategy, end.value)
            return
        if self.own:
            check_problem(self.strategy, asked)
            dtype = self.problem.start.dtype
            if asked.start.dtype != dtype:  # sums with `Trained.difference` are float64
                asked = replace(asked, start=asked.start.to(dtype))
        self.asked = asked

    def charge(self, trainer: Trainer) -> None:
        """Number the training that is asked for, so that no two of a client's in a round have the same noise.

        Raises:
            ValueError: it is not on all samples of the client, or makes more steps of a round than are charged.
        """
        assert self.asked is not None
        name = f"trainer.private: {type(self.strategy).__name__}"
        asked, own = self.asked.indices, self.problem.indices
        if asked is not own and not np.array_equal(np.sort(asked), np.sort(own)):
            raise ValueError(f"{name} trains on other samples than each of a client's once, which is not counted")
        self.asked = replace(self.asked, training=self.trainings)
        self.trainings += 1
        self.steps += trainer.num_epochs(self.asked) * trainer.num_batches(self.asked)
        charged = steps_of_round(trainer, self.strategy, len(self.problem.indices))
        if self.steps > charged:
            raise ValueError(f"{name} takes {self.steps} steps of a round, and {charged} are counted by its `passes`")

    def _watched(self) -> Any:
        return _seeded_and_unchanged(self) if self.own else nullcontext()


@contextmanager
def _seeded_and_unchanged(part: _Part) -> Iterator[None]:
    """Seed the global generators for the client; afterwards refuse changes in place of what the server sent."""
    problem, task = part.problem, part.problem.task
    sent = {"problem.start": problem.start, "broadcast.vector": problem.broadcast.vector}
    sent |= {f"broadcast.variables[{name!r}]": tensor for name, tensor in problem.broadcast.variables.items()}
    before = {name: _version(tensor) for name, tensor in sent.items()} | {"problem.indices": _crc(problem)}
    seed = seed_for(problem.seed, task.round, task.client_id, f"local/{part.times}")
    part.times += 1
    with seeded_for_client(seed, problem.start.device):
        yield
    after = {name: _version(tensor) for name, tensor in sent.items()} | {"problem.indices": _crc(problem)}
    for name in after:
        if after[name] != before[name]:
            raise ValueError(
                f"strategy: {type(part.strategy).__name__}.local changes {name} in place, which others see too: make a "
                "new one, as in `replace(problem, start=problem.start + ...)`"
            )


def _crc(problem: LocalProblem) -> int:
    return zlib.crc32(problem.indices.tobytes())


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor, or what it is a view of, has been changed in place."""
    return 0 if tensor.is_inference() else int(tensor._version)
