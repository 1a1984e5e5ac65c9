"""Modules whose code changes what all clients of a process share, or keeps there what never changes."""

import functools
import itertools
import logging
import random
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.zoo import elsewhere
from tests.zoo.stateful import Stateful

log = logging.getLogger(__name__)


class Helper:
    n = 0


STATE = SimpleNamespace(helper=Helper())
NUMBERS = itertools.count(1)


class OtherClass(Stateful):
    """A number of another class."""

    def factor(self, batch: Any) -> float:
        Helper.n += 1
        return 1 / Helper.n


class GlobalObject(Stateful):
    """An attribute of an object in an object."""

    def factor(self, batch: Any) -> float:
        STATE.helper.n = STATE.helper.n + 1
        return 1 / STATE.helper.n


class OtherNumber(Stateful):
    """A number of another Python module."""

    def factor(self, batch: Any) -> float:
        elsewhere.n += 1
        return 1 / elsewhere.n


class OtherList(Stateful):
    """A list of another Python module."""

    def factor(self, batch: Any) -> float:
        elsewhere.seen.append(1)
        return 1 / len(elsewhere.seen)


class OtherFunction(Stateful):
    """A function of another Python module that has a global."""

    def factor(self, batch: Any) -> float:
        return 1 / elsewhere.bump()


class ImportedLate(Stateful):
    """A number of a Python module that a client is the first to import."""

    def factor(self, batch: Any) -> float:
        from tests.zoo import late

        late.n += 1
        return 1 / late.n


def helper() -> None: ...


class FunctionAttribute(Stateful):
    """An attribute of a function."""

    def factor(self, batch: Any) -> float:
        helper.n = getattr(helper, "n", 0) + 1  # type: ignore[attr-defined]
        return 1 / helper.n  # type: ignore[attr-defined]


def increase(seen: list[int] = []) -> int:  # noqa: B006
    seen.append(1)
    return len(seen)


class DefaultArgument(Stateful):
    """A list that is a default argument."""

    def factor(self, batch: Any) -> float:
        return 1 / increase()


@functools.cache
def kept() -> list[int]:
    return [0]


class KeptResult(Stateful):
    """A list that functools.cache keeps."""

    def factor(self, batch: Any) -> float:
        kept()[0] += 1
        return 1 / kept()[0]


def enclosing() -> Callable[[], int]:
    seen: list[int] = []

    def count() -> int:
        seen.append(1)
        return len(seen)

    return count


COUNT = enclosing()


class EnclosedList(Stateful):
    """A list that a function closes over."""

    def factor(self, batch: Any) -> float:
        return 1 / COUNT()


class GlobalIterator(Stateful):
    """A global iterator."""

    def factor(self, batch: Any) -> float:
        return 1 / next(NUMBERS)


class NewOfTheClass(Stateful):
    """A number that the class gets while a client trains."""

    def factor(self, batch: Any) -> float:
        kind: Any = type(self)
        kind.steps = getattr(kind, "steps", 0) + 1
        return 1 / kind.steps


class Grid:
    @functools.cached_property
    def levels(self) -> Tensor:
        return torch.linspace(0.5, 1, 3)


GRID = Grid()


@functools.lru_cache(maxsize=8)
def level(size: int) -> Tensor:
    return torch.linspace(0.5, 1, size)


class Harmless(Stateful):
    """What is kept and is always the same, log lines, warnings, global random numbers."""

    def factor(self, batch: Any) -> Tensor:
        log.debug("a batch of %d", len(batch[0]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.warn("noted in the globals of this file", stacklevel=1)
        return GRID.levels.mean() * level(len(batch[0])).mean() * (1 + 0.1 * random.random())
