"""State outside of an object that the code of its classes uses: globals that it names, variables that it closes over.

It is not restored, since other code may have changed it; but changes can be detected.
"""

import dis
import types
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from flrl.own_code import is_own
from flrl.snapshot.cells import Named
from flrl.snapshot.snapshot import Snapshot

_HOLDERS = (list, dict, set, deque, np.ndarray, torch.Tensor, torch.Generator, np.random.Generator)


class Shared:
    """Globals and closed-over variables that the code of a module's classes assigns, and mutable globals that it names.

    Args:
        module: the module; the user's own classes among those of all its submodules are read.
    """

    def __init__(self, module: nn.Module) -> None:
        self._assigned: list[Named | _Slot] = []
        holders: dict[str, Any] = {}
        for function in _functions(module):
            self._assigned += [_Slot(function.__globals__, name) for name in _stored(function.__code__, "GLOBAL")]
            cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
            self._assigned += [
                Named(f"{name} (of an enclosing function)", cells[name], ["cell_contents"])
                for name in _stored(function.__code__, "DEREF")
                if name in cells and name != "__class__"
            ]
            for name in function.__code__.co_names:
                if isinstance(function.__globals__.get(name), _HOLDERS):
                    holders[name] = function.__globals__[name]
        self._holders = Snapshot(tuple(holders.values()), "globals") if holders else None
        self._names = list(holders)

    def changed(self) -> list[str]:
        """The names of those that have changed."""
        names = [name for slot in self._assigned if slot.differs() for name in slot.names()]
        if self._holders is not None:
            for place in self._holders.changed():
                index = place.removeprefix("globals[").partition("]")[0]
                names.append(self._names[int(index)] if index.isdigit() else place)
        return [name.removesuffix(".cell_contents") for name in names]


class _Slot:
    """One name among the globals of a Python module."""

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        self.namespace, self.name, self.before = namespace, name, namespace.get(name)

    def differs(self) -> bool:
        return self.namespace.get(self.name) is not self.before

    def names(self) -> list[str]:
        return [self.name]


def _functions(module: nn.Module) -> Iterable[types.FunctionType]:
    """The methods of a module's own classes, and the functions of their Python modules that they call by name."""
    kinds = {base for part in module.modules() for base in type(part).__mro__ if is_own(base.__module__)}
    pending = [value for kind in kinds for value in vars(kind).values()]
    found: dict[int, types.FunctionType] = {}
    while pending:
        value = pending.pop()
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        if isinstance(value, types.FunctionType) and id(value) not in found and is_own(value.__module__):
            found[id(value)] = value
            pending += [value.__globals__.get(name) for name in value.__code__.co_names]
    return found.values()


def _stored(code: types.CodeType, where: str) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == f"STORE_{where}":
            yield instruction.argval
