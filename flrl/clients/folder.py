"""The folder of a run's segments."""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from flrl.clients.segment import Kind, Place, Segment, sync, write_segment


class SegmentFolder:
    """Writes, takes in and deletes the segments of one writer.

    The folder is made when the first file is written. Incomplete files that a killed process has left are deleted.

    Args:
        path: the folder.
        writer: prefix of the names of this writer's files; letters, digits, `_` and `-`.

    Attributes:
        path: the folder.

    Raises:
        ValueError: `writer` has other characters.
    """

    def __init__(self, path: Path, *, writer: str = "") -> None:
        if not re.fullmatch(r"[\w-]*", writer):
            raise ValueError(f"writer={writer!r}: must consist of letters, digits, _ and -")
        self.path = path
        self._writer = writer
        self._own = re.compile(re.escape(writer) + r"segment-(\d+)\.safetensors")
        self._foreign: set[str] = set()
        for name in self._names():
            if name.startswith(".") and name.endswith(".partial") and self._own.fullmatch(name[1:-8]):
                (path / name).unlink(missing_ok=True)
        numbers = [int(match[1]) for name in self._names() if (match := self._own.fullmatch(name))]
        self._number = max(numbers, default=0)

    def _names(self) -> list[str]:
        return os.listdir(self.path) if self.path.is_dir() else []

    def _free(self) -> Path:
        """The path of a new segment."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._number += 1
        path = self.path / f"{self._writer}segment-{self._number:06d}.safetensors"
        return self._free() if path.exists() else path

    def write(self, clients: Sequence[tuple[int, Kind]], tensors: Iterable[Mapping[str, Tensor]]) -> list[Place]:
        """Write a new segment; arguments and result as for `write_segment`."""
        return write_segment(self._free(), clients, tensors)

    def take_in(self, segment: Segment) -> None:
        """Put a segment of another folder into this one, by a hard link if the file system has them, else by a copy."""
        if segment.path.parent.resolve() == self.path.resolve():
            self._foreign.add(segment.path.name)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / segment.path.name
        if path.exists() and not path.samefile(segment.path):
            path = self._free()
        if not path.exists():
            self._link_or_copy(segment.path, path)
        segment.path = path
        self._foreign.add(path.name)

    def _link_or_copy(self, source: Path, path: Path) -> None:
        try:
            os.link(source, path)
        except FileExistsError:
            pass  # another writer has just linked it
        except OSError:
            partial = self.path / f".{self._writer}{path.name}.partial"
            shutil.copyfile(source, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            os.rename(partial, path)
        sync(self.path)

    def prune(self, kept: Collection[str]) -> None:
        """Delete this writer's segments, and those taken in, except those with the given names."""
        for name in self._names():
            if name not in kept and (name in self._foreign or self._own.fullmatch(name)):
                (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Delete the folder if it is empty."""
        if self.path.is_dir() and not self._names():
            self.path.rmdir()
