"""A module as one flat vector: all trainable parameters, then all persistent floating-point buffers.

Integer buffers (BatchNorm's `num_batches_tracked`), non-persistent buffers and frozen parameters are not part of the
vector: they are neither sent nor averaged. Neither are *personal* parameters and buffers, which are named by patterns:
they follow after the vector in the *local* vector, which stays with its client.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import reduce
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedParameter

from flrl.kernels import VectorStats, vector_stats

Kind = Literal["trainable", "buffer"]
BATCHNORM = "<BatchNorm>"
"""Among the patterns of personal parameters: the parameters and statistics of all BatchNorm layers of the module."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One named tensor's place in the vector: `vector[start:start + size].view(shape)`.

    Attributes:
        name: the tensor's name in the module.
        kind: "trainable" or "buffer".
        start: index of its first element in the vector.
        shape: its shape.
        dtype: its own dtype, as "float32".
    """

    name: str
    kind: Kind
    start: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def slice(self) -> slice:
        """The entry's elements in the vector."""
        return slice(self.start, self.start + self.size)


def tensors_of(module: nn.Module, personal: Sequence[str] = ()) -> list[tuple[str, Kind, Tensor]]:
    """Name, kind and tensor of each entry of the local vector, in its order: those of the vector, then personal ones.

    Raises:
        ValueError: a pattern matches nothing, or a parameter is not initialised.
    """
    found = list(_sendable(module))
    own = _own(module, [name for name, _, _ in found], personal)
    return [item for item in found if item[0] not in own] + [item for item in found if item[0] in own]


def batchnorm_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The BatchNorm layers of a module, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, _BatchNorm)}


def _own(module: nn.Module, names: Sequence[str], personal: Sequence[str]) -> set[str]:
    """The names that any of the patterns of personal parameters matches."""
    own: set[str] = set()
    for pattern in personal:
        if pattern == BATCHNORM:
            layers = batchnorm_layers(module)
            matched = {name for name in names if name.rpartition(".")[0] in layers}
            if not matched:
                raise ValueError(f"strategy.batchnorm=personal: {type(module).__name__} has no BatchNorm layer")
        else:
            matched = {name for name in names if fnmatchcase(name, pattern)}
        if not matched:
            some = ", ".join(names[:8])
            given = [pattern for pattern in personal if pattern != BATCHNORM]
            raise ValueError(f"strategy.personal={given}: {pattern!r} names nothing of the model ({some}, ...)")
        own |= matched
    return own


def _sendable(module: nn.Module) -> Iterator[tuple[str, Kind, Tensor]]:
    """Trainable parameters, then buffers; a tensor with several names comes once."""
    persistent = module.state_dict(keep_vars=True).keys()
    for name, parameter in module.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ValueError(f"parameter {name!r} is not initialized: run one batch through a lazy module first")
        if parameter.requires_grad:
            yield name, "trainable", parameter
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and name in persistent:
            yield name, "buffer", buffer


class ParameterLayout:
    """Each name's slice, shape and kind in the flat vector of a module.

    The vector's dtype is the widest among its entries; an entry of another dtype is converted on the way in and out.

    Args:
        module: the module.
        personal: patterns (`*`, `?`, `[...]`) of the names of parameters and buffers that stay with their client.

    Attributes:
        entries: entries of the vector, in its order.
        personal: personal entries, which follow in the local vector.
        dtype: dtype of the vector.
        size: number of elements of the vector.
        local_size: number of elements of the local vector.
        num_trainable: number of elements of the vector's trainable part, which comes first.
        num_parameters: number of parameters in that part.
        nbytes: size in bytes of all entries of the vector in their own dtypes: the cost of sending the model once.

    Raises:
        ValueError: a dtype is not supported, a pattern matches nothing, or a parameter is not initialised.
    """

    def __init__(self, module: nn.Module, personal: Sequence[str] = ()) -> None:
        entries: list[Entry] = []
        start = 0
        dtypes: list[torch.dtype] = []
        for name, kind, tensor in tensors_of(module, personal):
            if tensor.is_complex():
                raise ValueError(f"{kind} {name!r} has dtype {tensor.dtype}; real floating-point dtypes are supported")
            dtype = str(tensor.dtype).removeprefix("torch.")
            entries.append(Entry(name, kind, start, tuple(tensor.shape), dtype))
            start += tensor.numel()
            dtypes.append(tensor.dtype)
        own = _own(module, [entry.name for entry in entries], personal)
        self.entries = tuple(entry for entry in entries if entry.name not in own)
        self.personal = tuple(entry for entry in entries if entry.name in own)
        self.local_size = start
        self.size = sum(entry.size for entry in self.entries)
        self.num_trainable = sum(entry.size for entry in self.entries if entry.kind == "trainable")
        self.num_parameters = sum(entry.kind == "trainable" for entry in self.entries)
        self.nbytes = sum(entry.size * getattr(torch, entry.dtype).itemsize for entry in self.entries)
        self.dtype = reduce(torch.promote_types, dtypes) if dtypes else torch.get_default_dtype()

    @property
    def trained(self) -> tuple[Entry, ...]:
        """Entries of the trainable parameters in the order of the local vector, personal ones last."""
        return tuple(entry for entry in (*self.entries, *self.personal) if entry.kind == "trainable")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all names, kinds, shapes and dtypes; models with equal fingerprints can exchange vectors."""
        return hashlib.sha256(json.dumps([asdict(entry) for entry in self.entries]).encode()).hexdigest()

    def flatten(self, module: nn.Module) -> Tensor:
        """Copy a module's tensors into a new vector, shape `[size]`."""
        found = {name: tensor for name, _, tensor in _sendable(module)}
        return self._flat([found[entry.name] for entry in self.entries])

    def flatten_local(self, module: nn.Module) -> Tensor:
        """Copy a module's tensors into a new local vector, shape `[local_size]`."""
        found = {name: tensor for name, _, tensor in _sendable(module)}
        return self._flat([found[entry.name] for entry in (*self.entries, *self.personal)])

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        parts = [tensor.detach().reshape(-1).to(self.dtype) for tensor in tensors]
        return torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """The tensors of a vector or local vector by name: views, or copies where an entry has another dtype.

        Raises:
            ValueError: the vector has another shape.
        """
        entries = self.entries
        if vector.shape == (self.local_size,):
            entries = (*entries, *self.personal)
        else:
            self.check(vector)
        return {e.name: vector[e.slice].view(e.shape).to(getattr(torch, e.dtype)) for e in entries}

    def check(self, vector: Tensor) -> None:
        """Raise ValueError unless the vector has this layout's shape."""
        if vector.shape != (self.size,):
            raise ValueError(f"vector has shape {tuple(vector.shape)}, the model needs ({self.size},)")


def digest(vector: Tensor) -> str:
    """SHA-256 of a vector's bytes, as 64 hexadecimal digits."""
    data = vector.detach().cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()


def checksum(vectors: Iterable[Tensor]) -> str:
    """A fast checksum of vectors, to locate differences: the sum of their float64 bits modulo 2^64, in hexadecimal."""
    return checksum_of(vector_stats(vector) for vector in vectors)


def checksum_of(stats: Iterable[VectorStats]) -> str:
    """`checksum` of vectors, from their stats."""
    return f"{sum(each.bits for each in stats) % 2**64:016x}"
