"""Memory that several processes on one machine share, and datasets that lie in it once for all of them."""

import io
import logging
import mmap
import os
import pickle
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)
T = TypeVar("T")
_ALIGNMENT = 64


class Segment:
    """A growing piece of memory that its owner writes and other processes open by `path`.

    On Linux it has no name in any file system, so whatever ends the processes, nothing is left behind. Elsewhere it is
    a temporary file, deleted by `close`.
    """

    def __init__(self) -> None:
        if sys.platform == "linux":
            self._file = os.memfd_create("flrl", os.MFD_CLOEXEC)
            self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        else:
            self._file, self.path = tempfile.mkstemp(prefix="flrl-")
        self._map: mmap.mmap | None = None

    def buffer(self, nbytes: int) -> Tensor:
        """The memory as uint8 `[at least nbytes]`; a longer one than before is mapped anew."""
        if self._map is None or len(self._map) < nbytes:
            os.ftruncate(self._file, max(nbytes, 1))
            self._map = mmap.mmap(self._file, max(nbytes, 1))
        return torch.frombuffer(self._map, dtype=torch.uint8)

    def close(self) -> None:
        """Close it; maps that other processes have stay valid."""
        os.close(self._file)
        if sys.platform != "linux":
            os.unlink(self.path)


class Reader:
    """Opens the segments of other processes, each once, and keeps their maps."""

    def __init__(self) -> None:
        self._maps: dict[str, mmap.mmap] = {}

    def buffer(self, path: str, nbytes: int) -> Tensor:
        """The contents of the segment at `path`, as uint8 `[at least nbytes]`."""
        if path not in self._maps or len(self._maps[path]) < nbytes:
            with open(path, "r+b") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0)
        return torch.frombuffer(self._maps[path], dtype=torch.uint8)


class SharedObject:
    """An object whose tensors and arrays lie in a segment: every process that loads it reads the same memory.

    What a process writes into them, the others do not see (copy on write).

    Args:
        thing: any object that can be pickled.

    Raises:
        ValueError: it cannot be pickled.
    """

    def __init__(self, thing: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        try:
            _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(thing)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(f"{type(thing).__name__} cannot be sent to another process: {error}") from error
        parts = [memoryview(stream.getvalue()), *(buffer.raw() for buffer in buffers)]
        starts = np.cumsum([0, *(-(-len(part) // _ALIGNMENT) * _ALIGNMENT for part in parts)]).tolist()
        self.segment = Segment()
        memory = self.segment.buffer(starts[-1]).numpy()
        for start, part in zip(starts, parts, strict=False):
            memory[start : start + len(part)] = np.frombuffer(part, np.uint8)
        self.handle = Handle(self.segment.path, [(s, len(p)) for s, p in zip(starts, parts, strict=False)])


class Handle:
    """Where a `SharedObject` lies; can be sent to any process on the machine.

    Args:
        path: its segment's.
        parts: first byte and length of the pickle stream, then of each buffer.
    """

    def __init__(self, path: str, parts: Sequence[tuple[int, int]]) -> None:
        self.path = path
        self.parts = tuple(parts)

    def load(self) -> Any:
        """The object, its tensors and arrays as views of the segment.

        Raises:
            OSError: its segment cannot be opened from here.
        """
        with open(self.path, "rb") as file:
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        stream, *buffers = (memory[start : start + length] for start, length in self.parts)
        return pickle.loads(stream, buffers=buffers)


def into_shared_memory(thing: T) -> tuple[T, SharedObject | None]:
    """A copy of an object in shared memory; the object itself and None, with a warning, if it cannot be pickled."""
    try:
        shared = SharedObject(thing)
    except ValueError as error:
        log.warning("%s; every process makes its own", error)
        return thing, None
    return shared.handle.load(), shared


class _Pickler(pickle.Pickler):
    """Keeps tensors out of the pickle stream, as protocol 5 does with NumPy's arrays."""

    def reducer_override(self, thing: Any) -> Any:
        if type(thing) is np.memmap:
            thing = np.asarray(thing)
            return thing.__reduce_ex__(5)
        if type(thing) is Tensor and thing.device.type == "cpu" and thing.layout == torch.strided:
            if thing.requires_grad or thing.dtype == torch.bfloat16 or not thing.numel():
                return NotImplemented
            return torch.from_numpy, (thing.detach().contiguous().numpy(),)
        return NotImplemented
