"""What the user's own Python modules hold outside of any model, which clients share and nobody can put back."""

import argparse
import functools
import gc
import random
import sys
import types
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from flrl.own_code import is_own
from flrl.snapshot.cells import Cell, Entries, Items, Members, Named, Numbers, stateful
from flrl.snapshot.names import Fingerprint, Names, Progress
from flrl.snapshot.snapshot import PLAIN, REGISTERS, Snapshot, is_of_its_own, is_passed_by, is_state, slots_of

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace, UserDict, UserList)
_WRAPPED: Any = functools._lru_cache_wrapper
_MOST_OBJECTS = 200_000
_SMALL_BYTES = 2**16


class Outside:
    """The state of the Python modules that a user's own code lives in, and of those of their own that they import.

    Noted are globals, attributes of classes and functions, default arguments, variables of enclosing functions, results
    that `functools.cache` keeps, and all that these hold: containers, tensors, arrays, generators of random numbers,
    and instances of a user's own classes. Imports inside of functions count. Not noted are further results of
    `functools.cache`, `cached_property`, datasets, loggers, threads and what objects of libraries keep to themselves.

    Args:
        parts: the user's own classes and functions to begin with, as `own_parts` finds them.
        restored: snapshots whose objects are put back before each client, and may change.
    """

    def __init__(self, parts: Iterable[Any], restored: Iterable[Snapshot] = ()) -> None:
        self._parts, self._restored = list(parts), list(restored)
        self._late: list[str] = []
        self._note()
        self._any = bool(self._cells or self._empty_cells)
        self._loaded, self._modules = set(sys.modules) if self._any else set(), len(sys.modules)

    def changed(self) -> list[str]:
        """The places that have changed, as Python expressions."""
        return [name for cell in self._differing() for name in cell.names()]

    def refresh(self) -> bool:
        """Note the present state, because other code than clients' may have changed it, or clients enlarged it.

        Returns:
            Whether there are more own modules, or more kept results: then their first state is not known.
        """
        if not self._any:
            return False
        grown = any(cached.cache_info().misses != misses for cached, misses in self._caches)
        if len(sys.modules) != self._modules:
            self._modules, known = len(sys.modules), len(self._late)
            self._late += [n for n in sys.modules if n not in self._loaded and n not in self._late and is_own(n)]
            grown = grown or len(self._late) > known
        if grown or self._differing():
            self._note()
        return grown

    def refuse(self, when: str) -> None:
        """Raise ValueError that names what has changed.

        Args:
            when: when it may have changed, for the message.
        """
        if changed := self.changed():
            raise ValueError(
                f"model: own code changes {', '.join(changed[:3])} {when}, which all clients of a process share "
                "and nobody can put back: make it an attribute of the module, or keep what is always the same by "
                "functools.cache"
            )

    def _differing(self) -> list[Cell]:
        differing = [cell for cell in self._cells if cell.differs()]
        if any(self._empty):
            differing += [cell for cell in self._empty_cells if cell.differs()]
        return differing

    def _note(self) -> None:
        self._cells: list[Cell] = []
        self._empty: list[Any] = []
        self._empty_cells: list[Cell] = []
        self._caches: list[tuple[Any, int]] = []
        self._seen: dict[int, Any] = {}
        found = [part for part in self._parts if isinstance(part, type | types.FunctionType | _WRAPPED)]
        pending: list[tuple[str, Any]] = [(_name(part), part) for part in found]
        pending += [(name, sys.modules[name]) for name in self._late if name in sys.modules]
        while pending and len(self._seen) < _MOST_OBJECTS:
            place, thing = pending.pop()
            if id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                pending += [part for part in self._enter(place, thing) if type(part[1]) not in _ATOMS]

    def _enter(self, place: str, thing: Any) -> Iterator[tuple[str, Any]]:
        """Note the state of one object; yields the places and objects that lead on from it."""
        if isinstance(thing, types.ModuleType):
            if _is_own_module(thing.__name__):
                yield from self._names(thing.__name__, vars(thing), _is_global)
        elif isinstance(thing, types.FunctionType):
            yield from self._enter_function(thing)
        elif isinstance(thing, _WRAPPED):
            yield from self._enter_cache(thing)
        elif isinstance(thing, type):
            yield from self._enter_class(thing)
        elif isinstance(thing, staticmethod | classmethod | types.MethodType):
            yield place, thing.__func__
            yield place, getattr(thing, "__self__", None)
        elif isinstance(thing, property):
            yield from ((place, part) for part in (thing.fget, thing.fset))
        elif isinstance(thing, functools.cached_property):
            yield place, thing.func
        elif isinstance(thing, functools.partial):
            yield from ((place, part) for part in (thing.func, *thing.args, *thing.keywords.values()))
        elif not isinstance(thing, PLAIN) and not self._is_restored(thing):
            yield from self._enter_value(place, thing)

    def _is_restored(self, thing: Any) -> bool:
        return any(snapshot.holds(thing) for snapshot in self._restored)

    def _names(self, place: str, mapping: Any, counts: Callable[[str, Any], bool]) -> Iterator[tuple[str, Any]]:
        """Note which objects have which names in a namespace."""
        cell = Names(place, mapping, counts)
        if mapping:
            self._cells.append(cell)
        else:
            self._empty.append(mapping)
            self._empty_cells.append(cell)
        yield from ((f"{place}.{name}", value) for name, value in list(mapping.items()) if name[:2] != "__")

    def _enter_function(self, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
        place, space = _name(function), function.__globals__.get("__name__", "")
        cells = list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if not is_own(space):  # a library's decorator around an own function: what it keeps is its own affair
            inside = [(place, content) for _, cell in cells for content in gc.get_referents(cell)]
            yield from ((p, c) for p, c in inside if isinstance(c, types.FunctionType | type | _WRAPPED))
            return
        yield space, sys.modules.get(space)
        yield from self._names(place, function.__dict__, _is_global)
        yield place, function.__dict__.get("__wrapped__")
        if function.__defaults__ or function.__kwdefaults__:
            self._cells.append(Named(place, function, ["__defaults__", "__kwdefaults__"]))
            arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
            defaults = dict(zip(arguments[::-1], (function.__defaults__ or ())[::-1], strict=False))
            defaults |= function.__kwdefaults__ or {}
            yield from ((f"{place}'s {name}", value) for name, value in defaults.items())
        for name, cell in cells:
            enclosed = f"{name} (enclosed by {place})"
            self._cells.append(Items(enclosed, _Contents(cell)))  # type: ignore[arg-type]
            yield from ((enclosed, content) for content in gc.get_referents(cell))
        yield from ((name, sys.modules[name]) for name in _imported(function.__code__, space))

    def _enter_cache(self, cached: Any) -> Iterator[tuple[str, Any]]:
        if is_own(cached.__module__):
            self._caches.append((cached, cached.cache_info().misses))
            yield _name(cached), cached.__wrapped__
            yield from ((f"a kept result of {_name(cached)}", result) for result in _results(cached))

    def _enter_class(self, kind: type) -> Iterator[tuple[str, Any]]:
        if not is_own(kind.__module__):
            return
        yield kind.__module__, sys.modules.get(kind.__module__)
        yield from ((_name(base), base) for base in kind.__bases__)
        state_too = not issubclass(kind, Enum) and not self._is_restored(kind)
        for name, value in self._names(_name(kind), vars(kind), is_state) if state_too else vars(kind).items():
            if state_too or not is_state(name, value):
                yield name, value
        special = [value for name, value in vars(kind).items() if name[:2] == "__"]
        yield from ((_name(kind), value) for value in special if isinstance(value, types.FunctionType))

    def _enter_value(self, place: str, thing: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(thing, dict | list | set | deque | tuple | frozenset):
            yield from self._enter_container(place, thing)
        elif isinstance(thing, Tensor):
            if thing.layout == torch.strided and thing.device.type != "meta" and not thing.is_quantized:
                small = thing.nbytes <= _SMALL_BYTES
                self._cells.append(Numbers(place, thing) if small else Fingerprint(place, thing))
        elif isinstance(thing, np.ndarray) and thing.nbytes > _SMALL_BYTES and not thing.dtype.hasobject:
            self._cells.append(Fingerprint(place, thing))
        elif isinstance(thing, random.SystemRandom):
            return
        elif is_of_its_own(thing) and (cell := stateful(place, thing)) is not None:
            self._cells.append(cell)
        elif hasattr(type(thing), "__next__") and not is_own(type(thing).__module__):
            self._cells.append(Progress(place, thing))
        else:
            yield from self._enter_object(place, thing)

    def _enter_container(self, place: str, thing: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(thing, dict):
            cell: Cell = Entries(place, thing)
            yield from ((f"{place}[{key!r}]", value) for key, value in thing.items() if type(value) not in _ATOMS)
        else:
            cell = Members(place, thing) if isinstance(thing, set) else Items(place, thing)
            yield from ((f"{place}[{index}]", item) for index, item in enumerate(thing) if type(item) not in _ATOMS)
        if not isinstance(thing, tuple | frozenset):
            (self._cells if thing else self._empty_cells).append(cell)
            self._empty += [] if thing else [thing]
        if is_own(type(thing).__module__):
            yield from self._enter_object(place, thing)

    def _enter_object(self, place: str, thing: Any) -> Iterator[tuple[str, Any]]:
        kind = type(thing)
        yield _name(kind), kind
        if not isinstance(thing, (nn.Module, *_NAMESPACES)) and not is_own(kind.__module__):
            return
        if isinstance(thing, Dataset) or any(_keeps_to_itself(base.__module__) for base in kind.__mro__):
            return
        attributes = getattr(thing, "__dict__", None)
        if type(attributes) is dict:
            held = self._names(place, attributes, lambda name, value: not _is_kept_property(kind, name))
            if isinstance(thing, nn.Module):
                parts = [(f"{place}.{key}", part) for name in REGISTERS for key, part in attributes[name].items()]
                yield from [part for part in parts if part[1] is not None]
                self._cells += [Entries(place, attributes[name], attributes=True) for name in REGISTERS]
                held = (part for part in held if part[0].rpartition(".")[2] not in REGISTERS)
            yield from held
        if slots := [name for base in kind.__mro__ for name in slots_of(base)]:
            self._cells.append(Named(place, thing, slots))
            yield from ((f"{place}.{name}", getattr(thing, name, None)) for name in slots)


class _Contents:
    """What a variable of an enclosing function holds, as a sequence of one item, or of none."""

    def __init__(self, cell: types.CellType) -> None:
        self.cell = cell

    def __iter__(self) -> Iterator[Any]:
        return iter(gc.get_referents(self.cell))

    def __len__(self) -> int:
        return len(gc.get_referents(self.cell))


def own_parts(objects: Iterable[Any]) -> list[Any]:
    """The own classes that objects are of, and the functions among them."""
    found = list(objects)
    kinds = dict.fromkeys([*map(type, found), *(thing for thing in found if isinstance(thing, type))])
    own = dict.fromkeys(base for kind in kinds for base in kind.__mro__ if is_own(base.__module__))
    return [*own, *(thing for thing in found if isinstance(thing, types.FunctionType | _WRAPPED))]


def _is_own_module(name: str) -> bool:
    return name in sys.modules and is_own(name)


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _is_global(name: str, value: Any) -> bool:
    return not name.startswith(("__", "_torch")) and not isinstance(value, types.ModuleType)


def _is_kept_property(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), functools.cached_property)


@functools.cache
def _keeps_to_itself(module: str) -> bool:
    return f"{module}.".startswith("flrl.") or is_passed_by(module)


def _imported(code: types.CodeType, space: str) -> Iterator[str]:
    """The own modules that a function's code may import, as far as they have been loaded."""
    package = space.rpartition(".")[0]
    for name in code.co_names:
        yield from (full for full in (name, f"{package}.{name}") if _is_own_module(full))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _imported(constant, space)


def _results(cached: Any) -> list[Any]:
    """The results that `functools.cache` or `lru_cache` keeps of a function, as Python shows them to its collector."""
    shown = gc.get_referents(cached)  # the keys and results where their number is limited, a dict, the function, types
    place = next(index for index, part in enumerate(shown) if part is cached.__wrapped__) - 1
    return [*shown[:place], *(shown[place].values() if cached.cache_info().maxsize is None else ())]
