"""Runs the clients' parts of a round: what their generators yield is trained, together where an engine can."""

from collections.abc import Sequence

from flrl.strategies.base import Local, Strategy
from flrl.trainers import LocalProblem, Trained, Trainer
from flrl.types import ClientUpdate


def train_clients(strategy: Strategy, problems: Sequence[LocalProblem], trainer: Trainer) -> list[ClientUpdate]:
    """Several clients' parts of a round, as `Strategy.local` says; an engine may train them side by side.

    Returns:
        Their updates, in the order of the problems.
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
        problems[0].model.touched = True  # code of a user's own may have done something to the module
    return [updates[index] for index in range(len(problems))]


def _go_on(
    part: Local,
    trained: Trained | None,
    index: int,
    asked: dict[int, LocalProblem],
    updates: dict[int, ClientUpdate],
) -> None:
    """Send a client's part what was trained, and note what it asks for next, or what it returns."""
    try:
        asked[index] = part.send(trained)  # type: ignore[arg-type]
    except StopIteration as end:
        updates[index] = end.value
