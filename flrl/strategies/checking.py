"""What a strategy of a user's own yields, returns and draws, checked where the message can name it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from flrl.aggregation import Aggregator, EveryUpdate, Mean
from flrl.sampling import weighs
from flrl.scheduling import Synchronous
from flrl.setup import Setup
from flrl.strategies.bounding import check_bounded
from flrl.trainers import LocalProblem
from flrl.transforms import Transform
from flrl.types import ClientUpdate

if TYPE_CHECKING:
    from flrl.strategies.base import Strategy


def check_problem(strategy: "Strategy", asked: Any, method: str = "local") -> None:
    """Raise TypeError or ValueError unless a value yielded by a strategy's generator can be trained."""
    name = f"strategy: {type(strategy).__name__}.{method}"
    if not isinstance(asked, LocalProblem):
        raise TypeError(f"{name} yields {type(asked).__name__}, must be a LocalProblem: replace(problem, ...)")
    for field in ("epochs", "steps"):
        value = getattr(asked, field)
        if value is not None and value < 1:
            raise ValueError(f"{name} yields a problem with {field}={value}: must be at least 1, or None")
    if asked.trainable is not None and not asked.trainable and not asked.only_gradient:
        raise ValueError(f"{name} yields a problem in which no parameter is trainable; None trains all")
    _check_tensors(f"{name} yields a problem whose values", asked.values)


def check_update(strategy: "Strategy", update: Any) -> None:
    """Raise TypeError unless a value returned by `Strategy.local` is an update made of tensors."""
    name = f"strategy: {type(strategy).__name__}.local"
    if not isinstance(update, ClientUpdate):
        raise TypeError(f"{name} returns {type(update).__name__}, must be a ClientUpdate: trained.update(problem)")
    _check_tensors(f"{name} returns vectors, which", update.vectors)
    _check_tensors(f"{name} returns memory, which", update.memory)


def check_mean(aggregator: Aggregator, what: str) -> None:
    """Raise ValueError unless updates are averaged, which `what` of a strategy is computed from."""
    if not isinstance(aggregator, Mean):
        found = type(aggregator).__name__
        raise ValueError(f"strategy.aggregator={found}: {what} need the mean, strategy/aggregator=mean")


def check_cohorts(strategy: "Strategy", setup: Setup) -> None:
    """Raise ValueError for too small cohorts, for weights of a sampler that do not fit, and as `check_bounded` does."""
    check_bounded(setup)
    most, name = setup.most_updates, type(setup.sampler).__name__
    if strategy.min_clients > most:
        raise ValueError(f"strategy.min_clients={strategy.min_clients}: only {most} clients take part in a round")
    if not weighs(setup.sampler):
        return
    check_mean(setup.aggregator, f"the weights that {name} gives clients")
    if strategy.accumulates:
        raise ValueError(f"strategy.sampler: {type(strategy).__name__} needs clients' own weights, {name} gives others")
    if not isinstance(strategy.schedule, Synchronous):
        found = type(strategy.schedule).__name__
        raise ValueError(f"strategy.schedule={found}: {name} weighs whole cohorts, strategy/schedule=synchronous")


def check_everybody(setup: Setup, name: str) -> None:
    """Raise ValueError unless all clients take part in every round, which an algorithm of this name needs."""
    number = setup.num_clients
    if any(len(setup.sampler(number, seed=0, round=round)) < number for round in range(1, 4)):
        raise ValueError(f"strategy.sampler: {name} needs all clients in every round, strategy/sampler=all")
    devices, schedule = setup.devices, setup.strategy.schedule
    if devices is not None and (devices.availability is not None or devices.dropout):
        raise ValueError(f"devices: {name} needs all clients in every round: availability=null, dropout=0")
    if not isinstance(schedule, Synchronous):
        found = type(schedule).__name__
        raise ValueError(f"strategy.schedule={found}: {name} needs all clients in every round, synchronous")


def belongs_to_rounds(strategy: "Strategy", base: type) -> bool:
    """Whether clients need what belongs to a whole round.

    They do if the class overrides `broadcast`, `plan` or `_planned`, has clients exchange something else than models,
    pools samples or trains on the server; one for which that does not follow may define `needs_rounds = False`.
    """
    own, names = type(strategy), ("broadcast", "plan", "_planned")
    overrides = any(getattr(own, name) is not getattr(base, name) for name in names)
    return overrides or strategy.trains_on_server or strategy.pools_samples or not strategy.sends_model


def check_cohort(sampler: Any, cohort: np.ndarray, num_clients: int) -> Sequence[int]:
    """The client ids of a cohort; ValueError unless they are distinct ids of clients."""
    ids = np.asarray(cohort)
    if len(ids) and (len(np.unique(ids)) < len(ids) or ids.min() < 0 or ids.max() >= num_clients):
        raise ValueError(
            f"strategy.sampler: {type(sampler).__name__} gives {ids.tolist()[:10]}: must be distinct clients, "
            f"from 0 to {num_clients - 1}"
        )
    found: Sequence[int] = ids.tolist()
    return found


def check_every_update(setup: Setup, name: str) -> None:
    """Raise ValueError unless a strategy that compares clients gets their updates, and nothing changes the mean alone.

    Args:
        setup: the parts of the run.
        name: of the algorithm.
    """
    if not isinstance(setup.aggregator, EveryUpdate):
        found = type(setup.aggregator).__name__
        raise ValueError(f"strategy.aggregator={found}: {name} needs strategy/aggregator=every_update")
    changing = [key for key, transform in setup.transforms.items() if type(transform).server is not Transform.server]
    if changing:
        raise ValueError(f"strategy.transforms={changing}: must be none on the server, {name} takes each update")
    down = [key for key, part in setup.transforms.items() if type(part).broadcast is not Transform.broadcast]
    if down:
        raise ValueError(f"strategy.transforms={down}: must be none of the model, {name} has one for each client")


def _check_tensors(what: str, tensors: Any) -> None:
    wrong = not isinstance(tensors, Mapping)
    bad = [] if wrong else [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong or bad:
        found = type(tensors).__name__ if wrong else f"{type(tensors[bad[0]]).__name__} as {bad[0]!r}"
        raise TypeError(f"{what} must be tensors by name; found {found}")
