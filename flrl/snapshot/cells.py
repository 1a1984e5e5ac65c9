"""Cells: each notes the state of one mutable object, sees whether it has changed, and restores it in place.

A cell is shallow: that of a list notes which objects are in it, and each of those that can change has its own cell.
"""

import array
import pickle
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_MISSING = object()
_SMALL_BYTES = 2**16
LARGE_BYTES = 2**26
_IN_NUMPY = (torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Cell(Protocol):
    """The noted state of one mutable object."""

    place: str
    """Where the object is, as a Python expression."""

    def differs(self) -> bool:
        """Whether the object has changed."""

    def names(self) -> list[str]:
        """The places in the object that have changed, as Python expressions."""

    def put_back(self) -> None:
        """Restore the noted state."""


class Entries:
    """The items of a dict, or the attributes of an object, in their order."""

    def __init__(self, place: str, mapping: dict[Any, Any], *, attributes: bool = False) -> None:
        self.place, self.mapping, self.attributes = place, mapping, attributes
        self.keys, self.values = list(mapping), tuple(mapping.values())

    def differs(self) -> bool:
        """Whether there are other keys, other values, or another order."""
        found = self.mapping
        return list(found) != self.keys or not all(map(is_, found.values(), self.values))

    def names(self) -> list[str]:
        """The keys that were added, removed or given other values."""
        before = dict(zip(self.keys, self.values, strict=True))
        keys = [*before, *(key for key in self.mapping if key not in before)]
        changed = [k for k in keys if before.get(k, _MISSING) is not dict.get(self.mapping, k, _MISSING)]
        form = "{}.{}" if self.attributes else "{}[{!r}]"
        return [form.format(self.place, key) for key in changed] or [self.place]

    def put_back(self) -> None:
        """Restore the items in their order, without calling methods that a subclass of dict overrides."""
        kind: Any = OrderedDict if isinstance(self.mapping, OrderedDict) else dict
        kind.clear(self.mapping)
        for key, value in zip(self.keys, self.values, strict=True):
            kind.__setitem__(self.mapping, key, value)


class Items:
    """The items of a list or deque."""

    def __init__(self, place: str, sequence: list[Any] | deque[Any]) -> None:
        self.place, self.sequence, self.items = place, sequence, tuple(sequence)
        self.size = len(self.items)

    def differs(self) -> bool:
        """Whether there are other objects, or another order."""
        return not (len(self.sequence) == self.size and all(map(is_, self.sequence, self.items)))

    def names(self) -> list[str]:
        """The place of the whole list."""
        return [self.place]

    def put_back(self) -> None:
        """Restore the same objects in their order."""
        self.sequence.clear()
        self.sequence.extend(self.items)


class Members:
    """The members of a set."""

    def __init__(self, place: str, members: set[Any]) -> None:
        self.place, self.members, self.before = place, members, set(members)

    def differs(self) -> bool:
        """Whether there are other members."""
        return self.members != self.before

    def names(self) -> list[str]:
        """The place of the whole set."""
        return [self.place]

    def put_back(self) -> None:
        """Restore the same members."""
        self.members.clear()
        self.members.update(self.before)


class Named:
    """Attributes of an object that are in no plain dict: slots, and attributes of a class."""

    def __init__(self, place: str, thing: Any, names: Iterable[str]) -> None:
        self.place, self.thing = place, thing
        self.before = [(name, self._now(name)) for name in names]

    def _now(self, name: str) -> Any:
        if isinstance(self.thing, type):
            return vars(self.thing).get(name, _MISSING)
        return getattr(self.thing, name, _MISSING)

    def differs(self) -> bool:
        """Whether one of the names has another value."""
        return any(self._now(name) is not value for name, value in self.before)

    def names(self) -> list[str]:
        """The attributes with other values."""
        return [f"{self.place}.{name}" for name, value in self.before if self._now(name) is not value]

    def put_back(self) -> None:
        """Restore the values, even where the object's own `__setattr__` forbids it, as in frozen dataclasses."""
        assign, remove = (type.__setattr__, type.__delattr__) if isinstance(self.thing, type) else _ASSIGN
        for name, value in self.before:
            now = self._now(name)
            if now is not value:
                assign(self.thing, name, value) if value is not _MISSING else remove(self.thing, name)


_ASSIGN: Any = (object.__setattr__, object.__delattr__)


class Hooks:
    """The registers of hooks on a tensor."""

    def __init__(self, place: str, tensor: Tensor) -> None:
        self.place, self.tensor = place, tensor
        self.backward, self.accumulated = tensor._backward_hooks, _after_accumulation(tensor)

    def differs(self) -> bool:
        """Whether there are other registers; the hooks in them have their own cells."""
        tensor: Any = self.tensor
        return tensor._backward_hooks is not self.backward or _after_accumulation(tensor) is not self.accumulated

    def names(self) -> list[str]:
        """The hooks of the tensor."""
        return [f"hooks of {self.place}"]

    def put_back(self) -> None:
        """Restore the same registers, or none."""
        self.tensor._backward_hooks = self.backward
        self.tensor._post_accumulate_grad_hooks = self.accumulated


def _after_accumulation(tensor: Any) -> Any:
    return getattr(tensor, "_post_accumulate_grad_hooks", None)


class Numbers:
    """A tensor that is not part of the model's vector: its bits, its gradient, and `requires_grad`.

    A tensor of more than `LARGE_BYTES` (a dataset, for instance) is not copied: a change is seen by its version alone.
    """

    def __init__(self, place: str, tensor: Tensor) -> None:
        self.place, self.tensor = place, tensor
        self.large = tensor.nbytes > LARGE_BYTES
        self.before = tensor.detach() if self.large else tensor.detach().clone()
        self.version = 0 if tensor.is_inference() else tensor._version
        self.grad: Tensor | None = tensor.grad if tensor.is_leaf else None
        self.requires_grad: bool | None = tensor.requires_grad if tensor.is_leaf else None
        self.where, self.count = tensor.data_ptr(), tensor.numel()
        self.memory: np.ndarray | None = None
        if tensor.device.type == "cpu" and tensor.nbytes <= _SMALL_BYTES and tensor.dtype in _IN_NUMPY:
            self.memory = tensor.detach().numpy()  # the same memory, several times faster to compare
            self.bytes = self.memory.tobytes()

    def differs(self) -> bool:
        """Whether a bit, the gradient or `requires_grad` has changed; writing through `.data` changes no version."""
        tensor = self.tensor
        if self.requires_grad is not None and (
            tensor.requires_grad is not self.requires_grad or tensor.grad is not self.grad
        ):
            return True
        if self.large:
            version = 0 if tensor.is_inference() else tensor._version
            return tensor.data_ptr() != self.where or tensor.numel() != self.count or version != self.version
        if self.memory is None or tensor.data_ptr() != self.where or tensor.numel() != self.count:
            return not same_bits(tensor.detach(), self.before)
        return self.memory.tobytes() != self.bytes

    def names(self) -> list[str]:
        """The place of the tensor."""
        return [self.place]

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the tensor, in its own memory where that is possible, so that views of it change too.

        Raises:
            ValueError: the tensor is larger than `LARGE_BYTES`, and has not been copied.
        """
        tensor = self.tensor
        if self.large:
            raise ValueError(
                f"{self.place} was changed, and its {tensor.nbytes / 2**20:.0f} MiB are too many to be kept twice and "
                "put back between clients: make it a buffer"
            )
        if self.requires_grad is not None and tensor.is_leaf:
            tensor.grad = self.grad
            tensor.requires_grad_(self.requires_grad)
        if same_bits(tensor.detach(), self.before):
            return
        if tensor.shape != self.before.shape or tensor.dtype != self.before.dtype or 0 in tensor.stride():
            tensor.data = self.before.clone()
            return
        with torch.inference_mode(tensor.is_inference()):
            tensor.detach().copy_(self.before)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two detached tensors have the same shape, dtype and bits; unlike `==`, NaN is NaN and -0.0 is not 0.0."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.dtype.is_floating_point:
        whole = _WHOLE_NUMBERS[a.element_size()]
        a, b = a.view(whole), b.view(whole)
    return torch.equal(a, b)


class Stateful:
    """An object whose whole state can be read and set: a generator of random numbers, an array, bytes."""

    def __init__(self, place: str, get: Callable[[], Any], set_: Callable[[Any], None]) -> None:
        self.place, self.get, self.set = place, get, set_
        self.before = get()

    def differs(self) -> bool:
        """Whether the state has changed."""
        return bool(self.get() != self.before)

    def names(self) -> list[str]:
        """The place of the object."""
        return [self.place]

    def put_back(self) -> None:
        """Restore the state."""
        self.set(self.before)


def stateful(place: str, thing: Any) -> Stateful | None:
    """The cell of a generator of random numbers, of an array or of bytes; None for anything else."""
    if isinstance(thing, torch.Generator):
        return Stateful(place, lambda: bytes(thing.get_state().numpy()), lambda s: _set_generator(thing, s))
    if isinstance(thing, np.random.Generator):
        bits = thing.bit_generator
        return Stateful(place, lambda: pickle.dumps(bits.state), lambda s: setattr(bits, "state", pickle.loads(s)))
    if isinstance(thing, np.random.BitGenerator):
        return Stateful(place, lambda: pickle.dumps(thing.state), lambda s: setattr(thing, "state", pickle.loads(s)))
    if isinstance(thing, np.random.RandomState):
        return Stateful(place, lambda: pickle.dumps(thing.get_state()), lambda s: thing.set_state(pickle.loads(s)))
    if isinstance(thing, random.Random):
        return Stateful(place, thing.getstate, thing.setstate)
    if isinstance(thing, np.ndarray) and thing.dtype.hasobject:
        kept = thing.copy()  # the bytes of such an array are its objects' addresses
        return Stateful(place, thing.tobytes, lambda s: thing.__setitem__(..., kept))
    if isinstance(thing, np.ndarray):
        return Stateful(place, thing.tobytes, lambda s: _fill(thing, s))
    if isinstance(thing, bytearray):
        return Stateful(place, lambda: bytes(thing), lambda s: thing.__setitem__(slice(None), s))
    if isinstance(thing, array.array):
        return Stateful(place, thing.tolist, lambda s: thing.__setitem__(slice(None), array.array(thing.typecode, s)))
    return None


def _set_generator(generator: torch.Generator, state: bytes) -> None:
    generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _fill(found: np.ndarray, data: bytes) -> None:
    found[...] = np.frombuffer(data, found.dtype).reshape(found.shape)
