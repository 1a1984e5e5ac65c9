"""Runs the generators of a client batch: the problems that they yield are trained, at once where an engine can."""

from collections.abc import Sequence

from flrl.strategies.base import Local, Strategy
from flrl.trainers import LocalProblem, Trained, Trainer
from flrl.types import ClientUpdate


def train_clients(strategy: Strategy, problems: Sequence[LocalProblem], trainer: Trainer) -> list[ClientUpdate]:
    """Run `Strategy.local` for each client of a client batch, and train the problems that they yield.

    Args:
        strategy: gives the generators, and the client hooks.
        problems: one for each client.
        trainer: the engine.

    Returns:
        The clients' updates, in the order of the problems.
    """
    parts = [strategy.local(problem) for problem in problems]
    asked: dict[int, LocalProblem] = {}
    updates: dict[int, ClientUpdate] = {}
    for index, part in enumerate(parts):
        _go_on(part, None, index, asked, updates)
    while asked:
        places = {id(problem): index for index, problem in asked.items()}
        groups, asked = trainer.groups(list(asked.values())), {}
        for group in groups:
            for problem, trained in zip(group, trainer.fit_batch(group, strategy), strict=True):
                index = places[id(problem)]
                _go_on(parts[index], trained, index, asked, updates)
    if not type(strategy).local.__module__.startswith("flrl."):
        problems[0].model.touched = True  # a user's own strategy may have changed the module
    return [updates[index] for index in range(len(problems))]


def _go_on(
    part: Local,
    trained: Trained | None,
    index: int,
    asked: dict[int, LocalProblem],
    updates: dict[int, ClientUpdate],
) -> None:
    """Send a trained result to a client's generator; note the next problem that it yields, or the update it returns."""
    try:
        asked[index] = part.send(trained)  # type: ignore[arg-type]
    except StopIteration as end:
        updates[index] = end.value
