"""Files of client memory: a segment holds the tensors of many clients, is written once, and read client by client.

A segment is a safetensors file with the names `<client id>/<name>`. A client's tensors are adjacent in it, so that one
read gets all of them; it is a plain read, because pages of a mapped file count as the process's own memory.
"""

import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from flrl.clients.pages import LARGE, has_own, room
from flrl.errors import DamagedError

Kind = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, safetensors dtype and shape of each of a client's tensors, in the order of their bytes."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(slots=True, weakref_slot=True, eq=False)
class Segment:
    """A segment that has been written.

    Attributes:
        path: its file.
        nbytes: the file's length in bytes.
        data_bytes: size of its tensors in bytes.
    """

    path: Path
    nbytes: int
    data_bytes: int

    def check(self) -> None:
        """Raise DamagedError unless the file exists and has its length."""
        found = self.path.stat().st_size if self.path.exists() else None
        if found != self.nbytes:
            what = "is missing" if found is None else f"has {found} bytes, it should have {self.nbytes}"
            raise DamagedError(f"{self.path} {what}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a client's tensors are.

    Attributes:
        segment: the segment.
        start: position of the first byte in its file.
        checksum: CRC-32 of the tensors' bytes.
    """

    segment: Segment
    start: int
    checksum: int


def ordered(tensors: Mapping[str, Tensor], client_id: int) -> dict[str, Tensor]:
    """A client's tensors in the form in which they are kept: on the CPU, each with its own memory, widest dtypes first.

    Raises:
        ValueError: a tensor has a dtype that segments cannot hold.
    """
    found = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if tensor.dtype not in _NAMES:
            allowed = ", ".join(str(dtype) for dtype in _NAMES)
            raise ValueError(f"client {client_id}: {name!r} has dtype {tensor.dtype}; allowed are {allowed}")
        if tensor.requires_grad or tensor.device.type != "cpu" or not tensor.is_contiguous():
            tensor = tensor.detach().cpu().contiguous()
        if has_own(tensor):
            found[name] = tensor
        elif tensor.nbytes >= LARGE:
            kept = room(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
            found[name] = kept.copy_(tensor.detach())
        else:
            part_of_more = tensor.untyped_storage().nbytes() != tensor.nbytes
            found[name] = tensor.clone() if part_of_more else tensor
    return found


def kind_of(tensors: Mapping[str, Tensor]) -> Kind:
    """The kind of a client's tensors, from `ordered`."""
    return shared(tuple((name, _NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()))


@cache
def shared(kind: Kind) -> Kind:
    """The first of all equal kinds, so that a million clients share one object."""
    return kind


@cache
def nbytes_of(kind: Kind) -> int:
    """Size in bytes of all tensors of a kind."""
    return sum(prod(shape) * _DTYPES[dtype].itemsize for _, dtype, shape in kind)


def write_segment(
    path: Path, clients: Sequence[tuple[int, Kind]], tensors: Iterable[Mapping[str, Tensor]]
) -> list[Place]:
    """Write a segment, completely or not at all.

    Args:
        path: the new file.
        clients: id and kind of each client.
        tensors: tensors of each client, in the order of `clients`; iterated once, so that not all need be in RAM.

    Returns:
        The place of each client's tensors.
    """
    header = _header(clients)
    data_bytes = sum(nbytes_of(kind) for _, kind in clients)
    segment = Segment(path, len(header) + data_bytes, data_bytes)
    partial = partial_of(path)
    places, start = [], len(header)
    try:
        with partial.open("wb") as file:
            file.write(header)
            for (_, kind), own in zip(clients, tensors, strict=True):
                places.append(Place(segment, start, _write(file, own)))
                start += nbytes_of(kind)
            file.flush()
            os.fsync(file.fileno())
        os.rename(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk needs the space
        raise
    sync(path.parent)
    return places


def read(place: Place, kind: Kind, client_id: int) -> dict[str, Tensor]:
    """Read a client's tensors.

    Raises:
        DamagedError: the file is missing, too short or damaged.
    """
    path, size = place.segment.path, nbytes_of(kind)
    whole = room(size)
    data = whole.numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            found = os.preadv(file.fileno(), [data], place.start)
    except FileNotFoundError as error:
        raise DamagedError(f"{path} is missing: it holds the memory of client {client_id}") from error
    if found != size or zlib.crc32(data) != place.checksum:
        raise DamagedError(f"{path} is damaged: the memory of client {client_id} is not what was written")
    tensors, start = {}, 0
    for name, dtype, shape in kind:
        stop = start + prod(shape) * _DTYPES[dtype].itemsize
        tensors[name] = whole[start:stop].view(_DTYPES[dtype]).view(shape)
        start = stop
    return tensors


def partial_of(path: Path) -> Path:
    """The path of a file until it is complete."""
    return path.with_name(f".{path.name}.partial")


def sync(path: Path) -> None:
    """Sync a file, or a folder, so that the names of its files survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _header(clients: Sequence[tuple[int, Kind]]) -> bytes:
    entries, start = {}, 0
    for client_id, kind in clients:
        for name, dtype, shape in kind:
            stop = start + prod(shape) * _DTYPES[dtype].itemsize
            entries[f"{client_id}/{name}"] = {"dtype": dtype, "shape": shape, "data_offsets": (start, stop)}
            start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write(file: BinaryIO, tensors: Mapping[str, Tensor]) -> int:
    """Write a client's tensors; returns their checksum."""
    checksum = 0
    for tensor in tensors.values():
        data = tensor.detach().reshape(-1).view(torch.uint8).numpy().data
        file.write(data)
        checksum = zlib.crc32(data, checksum)
    return checksum
