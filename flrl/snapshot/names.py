"""Cells of what is too special for `cells`: namespaces of which only a part is state, and large arrays."""

import types
import warnings
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data.dataloader import _BaseDataLoaderIter

from flrl.snapshot.cells import LARGE_BYTES

_MISSING = object()
_COLUMNS = 1021


class Names:
    """The names in a namespace that are state: globals, or attributes of a class, a function or an object.

    Args:
        place: where the namespace is, as a Python expression.
        mapping: the namespace.
        is_state: whether a name with a value is state; other names may come, change and go.
        of: the class whose namespace it is, if it is to be put back.
    """

    def __init__(
        self, place: str, mapping: Mapping[str, Any], is_state: Callable[[str, Any], bool], *, of: type | None = None
    ) -> None:
        self.place, self.mapping, self.is_state, self.of = place, mapping, is_state, of
        self.before = dict(mapping)

    def _changed(self) -> list[str]:
        before, now = self.before, self.mapping
        if len(now) == len(before) and all(map(is_, now.values(), before.values())):
            return []
        names = {name: (before.get(name, _MISSING), now.get(name, _MISSING)) for name in (*before, *now)}
        return [name for name, both in names.items() if both[0] is not both[1] and self._all_state(name, *both)]

    def _all_state(self, name: str, *values: Any) -> bool:
        return all(value is _MISSING or self.is_state(name, value) for value in values)

    def differs(self) -> bool:
        """Whether state was added, removed or given other values."""
        return bool(self._changed())

    def names(self) -> list[str]:
        """The names of such state."""
        return [f"{self.place}.{name}" for name in self._changed()]

    def put_back(self) -> None:
        """Restore the attributes of the class."""
        assert self.of is not None
        for name in self._changed():
            if name in self.before:
                type.__setattr__(self.of, name, self.before[name])
            else:
                type.__delattr__(self.of, name)


class Fingerprint:
    """A large tensor or array, of which no copy is kept: sums of its bits, by columns, show changes and other orders.

    On a GPU, and above `LARGE_BYTES`, a tensor's version has to do, and of an array nothing is noted.
    """

    def __init__(self, place: str, thing: Tensor | np.ndarray) -> None:
        self.place, self.thing = place, thing
        self.before = self._now()

    def _now(self) -> Any:
        thing = self.thing
        if isinstance(thing, np.ndarray):
            return _sums(thing) if thing.nbytes <= LARGE_BYTES else None
        version = 0 if thing.is_inference() else thing._version
        if thing.device.type != "cpu" or thing.nbytes > LARGE_BYTES:
            return version, thing.data_ptr(), thing.shape
        return _sums(thing.detach().contiguous().reshape(-1).view(torch.uint8).numpy())

    def differs(self) -> bool:
        """Whether the numbers have changed."""
        return bool(self._now() != self.before)

    def names(self) -> list[str]:
        """The place of the array."""
        return [self.place]

    def put_back(self) -> None:
        """Fail: there is no copy."""
        raise NotImplementedError(self.place)


def _sums(array: np.ndarray) -> bytes:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = len(data) // (8 * _COLUMNS) * (8 * _COLUMNS)
    rows = data[:whole].view(np.uint64).reshape(-1, _COLUMNS)
    sums: np.ndarray = np.add.reduce(rows, axis=0, dtype=np.uint64)
    return bytes(sums.tobytes() + data[whole:].tobytes())


class Progress:
    """How far an iterator or a generator is, as far as Python shows it."""

    def __init__(self, place: str, thing: Any) -> None:
        self.place, self.thing = place, thing
        self.before = _progress(thing)

    def differs(self) -> bool:
        """Whether it has gone on."""
        return _progress(self.thing) != self.before

    def names(self) -> list[str]:
        """The place of the iterator."""
        return [self.place]

    def put_back(self) -> None:
        """Fail: it cannot be put back."""
        raise NotImplementedError(self.place)


def _progress(thing: Any, depth: int = 5) -> tuple[int, ...]:
    if isinstance(thing, int):
        return (thing,)
    if isinstance(thing, types.GeneratorType):
        frame = thing.gi_frame
        return () if frame is None else (frame.f_lasti, *map(id, frame.f_locals.values()))
    if depth and isinstance(thing, tuple):
        return tuple(number for part in thing for number in _progress(part, depth - 1))
    if not depth or not hasattr(type(thing), "__next__"):
        return ()
    if isinstance(thing, _BaseDataLoaderIter):
        return (thing._num_yielded,)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Python 3.12 on, iterators of itertools warn
        try:
            parts = thing.__reduce__()
        except TypeError:  # it does not show
            return ()
    return _progress(parts, depth - 1)
