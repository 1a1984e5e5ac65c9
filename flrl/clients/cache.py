"""The cache of client memory: keeps entries in RAM up to a budget, and writes the others to segments on disk."""

import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from flrl.clients.folder import SegmentFolder
from flrl.clients.index import ClientIndex, SegmentFile
from flrl.clients.segment import Kind, Place, Segment, kind_of, nbytes_of, ordered, read

_SEGMENT_BYTES = 2**27
"""Largest size in bytes of one segment's tensors, unless a single client has more."""


class Entry:
    """The memory of one client after one round: in RAM, in a segment, or in both.

    Attributes:
        client_id: the client.
        kind: names, dtypes and shapes of its tensors.
        tensors: the tensors; None if they are only on disk.
        place: where in a segment they are; None if they are only in RAM.
    """

    __slots__ = ("__weakref__", "client_id", "kind", "place", "tensors")

    def __init__(self, client_id: int, kind: Kind, *, place: Place | None = None) -> None:
        self.client_id = client_id
        self.kind = kind
        self.place = place
        self.tensors: Mapping[str, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes."""
        return nbytes_of(self.kind)


class Version(Protocol):
    """A version of a client memory as the cache sees it: entries by client id."""

    entries: dict[int, Entry]


class Cache:
    """Holds the entries of all versions of a client memory that are still referred to.

    Args:
        budget: largest size in bytes of tensors in RAM; None for no limit.

    Attributes:
        nbytes: size in bytes of the tensors in RAM.
        folder: the folder of the segments; None while nothing may be written.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.nbytes = 0
        self.folder: SegmentFolder | None = None
        # Entries in RAM, the least recently used first, with their bytes; removed once no version has them any more.
        self._held: OrderedDict[weakref.ref[Entry], int] = OrderedDict()
        self._segments: weakref.WeakSet[Segment] = weakref.WeakSet()
        self._unsaved: set[Path] = set()  # segments that no index names yet
        self._written = 0  # bytes of changes that left RAM since the last save
        self._newest: weakref.ref[Version] | None = None
        this = weakref.ref(self)
        self._when_lost = lambda ref: None if (cache := this()) is None else cache._drop(ref)

    def entry(self, client_id: int, tensors: Mapping[str, Tensor]) -> Entry:
        """A new entry, in RAM.

        Raises:
            ValueError: a tensor has a dtype that segments cannot hold.
        """
        tensors = ordered(tensors, client_id)
        entry = Entry(client_id, kind_of(tensors))
        self._hold(entry, tensors)
        return entry

    def tensors(self, entry: Entry) -> Mapping[str, Tensor]:
        """An entry's tensors, read from disk if they are not in RAM.

        Raises:
            DamagedError: the file is missing or damaged.
        """
        if entry.tensors is not None:
            self._held.move_to_end(weakref.ref(entry))
            return entry.tensors
        tensors = self._read(entry)
        self._hold(entry, tensors)
        self.shrink()
        return tensors

    def made(self, version: Version) -> None:
        """Note the newest version."""
        self._newest = weakref.ref(version)

    def open(self, folder: SegmentFolder, *, take_in: bool = True) -> None:
        """Write segments into a folder from now on; with `take_in`, link or copy those of other folders into it."""
        self.folder = folder
        if take_in:
            for segment in sorted(self._segments, key=lambda segment: segment.path):
                folder.take_in(segment)

    def add(self, segment: Segment) -> None:
        """Add a segment that an index names, and link or copy it into the folder, if there is one."""
        self._segments.add(segment)
        if self.folder is not None:
            self.folder.take_in(segment)

    def shrink(self) -> None:
        """Move the least recently used entries from RAM to disk until the rest is within the budget."""
        if self.budget is None or self.nbytes <= self.budget:
            return
        for entry in self._oldest_first():
            if self.nbytes <= self.budget:
                break
            if entry.place is None and self.folder is not None:
                self._make_room(max(self.nbytes - self.budget, self.budget // 8))
            if entry.place is not None:
                self._drop(weakref.ref(entry))
                entry.tensors = None

    def save(self, version: Version) -> ClientIndex:
        """Write the version's entries that are in no segment yet; returns the index of all.

        Raises:
            ValueError: there is no folder.
        """
        if self.folder is None:
            raise ValueError("client memory cannot be saved before its store has been opened with a folder")
        self.made(version)
        changed = [entry for _, entry in sorted(version.entries.items()) if entry.place is None]
        self._write(changed)
        self._written += sum(entry.nbytes for entry in changed)
        self._write(self._scattered(version.entries.values(), self._written))
        self._written = 0
        index = ClientIndex.of(_rows(version.entries.values()))
        self._unsaved -= {entry.place.segment.path for entry in version.entries.values() if entry.place is not None}
        return index

    def prune(self, kept: Iterable[ClientIndex], *, newest: bool = True) -> None:
        """Delete the segments that neither a kept index nor, with `newest`, the newest version refers to."""
        version = self._newest() if newest and self._newest is not None else None
        names = {segment.name for index in kept for segment in index.segments}
        entries = () if version is None else version.entries.values()
        names |= {entry.place.segment.path.name for entry in entries if entry.place is not None}
        if self.folder is not None:
            self.folder.prune(names)
            self._unsaved = {path for path in self._unsaved if path.name in names}

    def _hold(self, entry: Entry, tensors: Mapping[str, Tensor]) -> None:
        entry.tensors = tensors
        self._held[weakref.ref(entry, self._when_lost)] = entry.nbytes
        self.nbytes += entry.nbytes

    def _drop(self, ref: "weakref.ref[Entry]") -> None:
        self.nbytes -= self._held.pop(ref, 0)

    def _oldest_first(self) -> Iterator[Entry]:
        for ref in list(self._held):
            entry = ref()
            if entry is not None:
                yield entry

    def _read(self, entry: Entry) -> Mapping[str, Tensor]:
        assert entry.place is not None
        return read(entry.place, entry.kind, entry.client_id)

    def _make_room(self, least: int) -> None:
        """Write the least recently used entries that are in no segment, at least `least` bytes of them, or all."""
        chosen, total = [], 0
        for entry in self._oldest_first():
            if total >= least:
                break
            if entry.place is None:
                chosen.append(entry)
                total += entry.nbytes
        self._write(chosen)
        self._written += total
        version = None if self._newest is None else self._newest()
        if version is not None:
            self._write(self._scattered(version.entries.values(), total))
        alive = {segment.path for segment in self._segments}
        for path in self._unsaved - alive:
            path.unlink(missing_ok=True)
        self._unsaved &= alive

    def _scattered(self, entries: Iterable[Entry], limit: int) -> list[Entry]:
        """Entries in segments with less than 50 % live bytes, up to `limit` bytes; the emptiest segments first."""
        placed = [(entry, entry.place.segment) for entry in entries if entry.place is not None]
        alive: Counter[Segment] = Counter()
        for entry, segment in placed:
            alive[segment] += entry.nbytes
        sparse = [(entry, segment) for entry, segment in placed if 2 * alive[segment] < segment.data_bytes]
        sparse.sort(key=lambda pair: (alive[pair[1]] / pair[1].data_bytes, pair[1].path.name, pair[0].client_id))
        chosen, total = [], 0
        for entry, _ in sparse:
            if total >= limit:
                break
            chosen.append(entry)
            total += entry.nbytes
        return chosen

    def _write(self, entries: Sequence[Entry]) -> None:
        """Write entries into new segments."""
        assert self.folder is not None
        for part in _parts(entries):
            clients = [(entry.client_id, entry.kind) for entry in part]
            held = (self._read(entry) if entry.tensors is None else entry.tensors for entry in part)
            places = self.folder.write(clients, held)
            for entry, place in zip(part, places, strict=True):
                entry.place = place
            self._segments.add(places[0].segment)
            self._unsaved.add(places[0].segment.path)


def _parts(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Divide entries into those of each new segment; entries of one client, of two versions, go into two segments."""
    part: dict[int, Entry] = {}
    total = 0
    for entry in entries:
        if part and (total + entry.nbytes > _SEGMENT_BYTES or entry.client_id in part):
            yield list(part.values())
            part, total = {}, 0
        part[entry.client_id] = entry
        total += entry.nbytes
    if part:
        yield list(part.values())


def _rows(entries: Iterable[Entry]) -> Iterator[tuple[int, SegmentFile, int, Kind, int]]:
    files: dict[Segment, SegmentFile] = {}
    for entry in entries:
        assert entry.place is not None
        segment = entry.place.segment
        if segment not in files:
            files[segment] = SegmentFile(segment.path.name, segment.nbytes, segment.data_bytes)
        yield entry.client_id, files[segment], entry.place.start, entry.kind, entry.place.checksum
