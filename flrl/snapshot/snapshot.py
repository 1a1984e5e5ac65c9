"""Walks through all that an object holds, notes the state of mutable objects, and restores it."""

import enum
import functools
import io
import pathlib
import random
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

from flrl.own_code import is_own
from flrl.snapshot.cells import Cell, Entries, Hooks, Items, Members, Named, Numbers, stateful
from flrl.snapshot.names import Names

PLAIN = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type(...), torch.dtype, torch.device, torch.Size,
    enum.Enum, pathlib.PurePath, np.generic, np.dtype, types.ModuleType, types.BuiltinFunctionType, types.CodeType,
    types.FrameType, types.MappingProxyType, weakref.ref, torch.jit.ScriptModule,
)  # fmt: skip
"""Types of objects that cannot change, or hold no state of a model."""
_PASSED_BY = (
    "logging", "wandb", "threading", "_thread", "concurrent", "multiprocessing", "asyncio", "socket", "subprocess",
    "tqdm", "rich", "tensorboard", "tensorboardX", "matplotlib", "weakref", "mlflow", "torch._dynamo",
    "torch._inductor", "torch._C", "torch.fx", "torch.jit", "pytorch_lightning.loggers", "lightning.pytorch.loggers",
    "pytorch_lightning.trainer", "lightning.pytorch.trainer", "flrl.trainers",
)  # fmt: skip
"""Packages whose objects are not entered: their state belongs to the process, not to a model."""
REGISTERS = ("_parameters", "_buffers", "_modules")
_NO_STATE = ("_trainer", "_fabric")
_NOT_REPORTED = (*_NO_STATE, "log", "log_dict", "_flat_weights", "_flat_weight_refs")
"""Attributes that engines replace meanwhile, or that torch derives from parameters; they are restored all the same."""


class Snapshot:
    """The state of an object and everything it holds at the moment when this was made.

    Entered are attributes, lists, dicts, sets, tuples, deques, tensors, arrays, generators of random numbers, bound
    methods and arguments, submodules, instances of any class, and attributes of a user's own classes. Not entered are
    globals, closures, loggers, threads and the like.

    Args:
        thing: the object.
        name: the object's name in reported places.
        spared: tensors whose numbers are restored elsewhere; their hooks and attributes are noted.
        left: classes whose instances are ignored.

    Attributes:
        stuck: places of objects that cannot be restored, iterators above all, each with a description.

    Example:
        >>> counts = {"steps": 0, "seen": []}
        >>> before = Snapshot(counts, "counts")
        >>> counts["steps"] += 1
        >>> counts["seen"].append(7)
        >>> before.changed()
        ["counts['steps']", "counts['seen']"]
        >>> before.restore()
        >>> counts
        {'steps': 0, 'seen': []}
    """

    def __init__(self, thing: Any, name: str, *, spared: Iterable[Tensor] = (), left: tuple[type, ...] = ()) -> None:
        self._spared, self._left = {id(tensor) for tensor in spared}, left
        self._seen: dict[int, Any] = {}  # keeps all entered objects alive, so that no other object gets their ids
        self._cells: list[Cell] = []
        self._empty: list[Any] = []
        self._empty_cells: list[Cell] = []
        self.stuck: list[str] = []
        pending = [Found(name, thing)]
        while pending:
            found = pending.pop()
            if not isinstance(found.thing, PLAIN) and id(found.thing) not in self._seen:
                self._seen[id(found.thing)] = found.thing
                pending.extend(reversed(list(self._enter(found))))

    @property
    def objects(self) -> Iterable[Any]:
        """All objects that were entered or passed by."""
        return self._seen.values()

    def holds(self, thing: Any) -> bool:
        """Whether an object is among them."""
        return id(thing) in self._seen

    def changed(self) -> list[str]:
        """The places that have changed, as Python expressions."""
        names = (name for cell in self._differing() for name in cell.names())
        return [name for name in names if name.rpartition(".")[2] not in _NOT_REPORTED]

    def restore(self) -> None:
        """Restore all that has changed.

        Raises:
            ValueError: a tensor that is too large to be copied has changed.
        """
        for cell in self._differing():
            cell.put_back()

    def _differing(self) -> list[Cell]:
        differing = [cell for cell in self._cells if cell.differs()]
        if any(self._empty):  # most dicts of a module hold no hooks; this check is fast
            differing += [cell for cell in self._empty_cells if cell.differs()]
        return differing

    def _enter(self, found: "Found") -> Iterator["Found"]:
        """Note the state of an object itself; yields the objects that it holds."""
        thing = found.thing
        if isinstance(thing, self._left):
            return
        if isinstance(thing, Tensor):
            yield from self._enter_tensor(found)
        elif isinstance(thing, type):
            yield from self._enter_class(found)
        elif isinstance(thing, dict | list | set | deque | tuple | frozenset):
            yield from self._enter_container(found)
        elif isinstance(thing, types.MethodType | functools.partial):
            bound = thing.__self__ if isinstance(thing, types.MethodType) else (thing.func, thing.args, thing.keywords)
            yield found.part(found.place, bound)
        elif isinstance(thing, torch.Generator):
            self._note_state(found)
        elif not isinstance(thing, types.FunctionType) and not is_passed_by(type(thing).__module__):
            reason = _why_stuck(thing) if found.own else ""
            if reason:
                self.stuck.append(f"{found.place} ({reason})")
                return
            self._note_state(found)
            yield from self._enter_object(found)

    def _enter_tensor(self, found: "Found") -> Iterator["Found"]:
        tensor = found.thing
        readable = tensor.layout == torch.strided and tensor.device.type != "meta" and not tensor.is_quantized
        if id(tensor) not in self._spared and readable:
            self._cells.append(Numbers(found.place, tensor))
        if tensor.is_leaf:
            hooks = Hooks(found.place, tensor)
            self._cells.append(hooks)
            yield from (found.part(f"hooks of {found.place}", part) for part in (hooks.backward, hooks.accumulated))
        yield from self._enter_attributes(found)

    def _enter_class(self, found: "Found") -> Iterator["Found"]:
        if is_own(found.thing.__module__):
            state = {name: value for name, value in vars(found.thing).items() if is_state(name, value)}
            self._cells.append(Names(found.place, vars(found.thing), is_state, of=found.thing))
            yield from (found.part(f"{found.place}.{name}", value) for name, value in state.items())

    def _enter_container(self, found: "Found") -> Iterator["Found"]:
        thing, place = found.thing, found.place
        if isinstance(thing, dict):
            self._note(Entries(place, thing), thing)
            yield from (found.part(f"{place}[{key!r}]", value) for key, value in thing.items())
        else:
            if not isinstance(thing, tuple | frozenset):
                self._note(Members(place, thing) if isinstance(thing, set) else Items(place, thing), thing)
            yield from (found.part(f"{place}[{index}]", item) for index, item in enumerate(thing))
        if type(thing).__module__ not in ("builtins", "collections"):
            yield from self._enter_object(found)

    def _enter_object(self, found: "Found") -> Iterator["Found"]:
        yield from self._enter_attributes(found)
        kind = type(found.thing)
        inside = found.inside(isinstance(found.thing, nn.Module) or is_own(kind.__module__))
        slots = [name for base in kind.__mro__ for name in slots_of(base) if hasattr(found.thing, name)]
        if slots:
            self._cells.append(Named(found.place, found.thing, slots))
            yield from (inside.part(f"{found.place}.{name}", getattr(found.thing, name)) for name in slots)
        yield from (found.part(base.__qualname__, base) for base in kind.__mro__ if is_own(base.__module__))

    def _enter_attributes(self, found: "Found") -> Iterator["Found"]:
        attributes = getattr(found.thing, "__dict__", None)
        if type(attributes) is not dict:
            return
        self._note(Entries(found.place, attributes, attributes=True), attributes)
        inside = found.inside(isinstance(found.thing, nn.Module) or is_own(type(found.thing).__module__))
        for name, value in attributes.items():
            if name in REGISTERS and isinstance(found.thing, nn.Module):
                self._note(Entries(found.place, value, attributes=True), value)
                yield from (inside.part(f"{found.place}.{key}", part) for key, part in value.items())
            elif name not in _NO_STATE:
                yield inside.part(f"{found.place}.{name}", value)

    def _note_state(self, found: "Found") -> None:
        cell = stateful(found.place, found.thing) if is_of_its_own(found.thing) else None
        if cell is not None:
            self._cells.append(cell)

    def _note(self, cell: Cell, container: Any) -> None:
        if container:
            self._cells.append(cell)
        else:
            self._empty.append(container)
            self._empty_cells.append(cell)


@dataclass(frozen=True, slots=True)
class Found:
    """An object that the walk has reached.

    Attributes:
        place: where it is, as a Python expression.
        thing: the object.
        own: whether only containers, modules and a user's own objects lead to it: then it is `stuck` if it cannot be
            restored.
    """

    place: str
    thing: Any
    own: bool = True

    def part(self, place: str, thing: Any) -> "Found":
        """An object that this one holds."""
        return Found(place, thing, self.own)

    def inside(self, own: bool) -> "Found":
        """The same object; its parts are a user's own only if `own`."""
        return Found(self.place, self.thing, self.own and own)


@functools.cache
def is_passed_by(module: str) -> bool:
    """Whether objects of a package's classes are not entered."""
    return any(f"{module}.".startswith(f"{package}.") for package in _PASSED_BY)


def _why_stuck(thing: Any) -> str:
    """A description of an object whose state can neither be read nor set; empty for any other."""
    kind = type(thing)
    if isinstance(thing, _BaseDataLoaderIter) or (hasattr(kind, "__next__") and not is_own(kind.__module__)):
        if isinstance(thing, io.IOBase):
            return "a file that is read" if not thing.closed and thing.readable() else ""
        return f"an iterator, {kind.__name__}"
    return "random numbers of the operating system" if isinstance(thing, random.SystemRandom) else ""


def is_of_its_own(thing: Any) -> bool:
    """Whether an object is writable, and none of the global generators, which are seeded for each client."""
    shared = [torch.default_generator, *torch.cuda.default_generators, np.random.mtrand._rand, random._inst]
    return not any(thing is generator for generator in shared) and not (
        isinstance(thing, np.ndarray) and not thing.flags.writeable
    )


def is_state(name: str, value: Any) -> bool:
    """Whether a class's attribute is a value rather than a part of its definition."""
    if name.startswith("__") or name in ("_abc_impl",):
        return False
    return not callable(value) and not hasattr(type(value), "__get__")


def slots_of(kind: type) -> tuple[str, ...]:
    """The names of the slots that a class itself defines."""
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def refuse_changes(strategy: object, before: Snapshot, when: str) -> None:
    """Raise ValueError that names what has changed in a strategy: a resume and other workers would not have it.

    Args:
        strategy: the strategy.
        before: a snapshot of it.
        when: when it may have changed, for the message.
    """
    changed = before.changed()
    if changed:
        raise ValueError(
            f"strategy: {type(strategy).__name__} changes {', '.join(changed[:3])} {when}: what lasts from client to "
            "client or from round to round belongs into client memory (ClientUpdate.memory) or ServerState.variables"
        )
