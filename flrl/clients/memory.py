"""Client memory as an immutable mapping with versions: from client id to tensors by name."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from flrl.clients.cache import Cache, Entry
from flrl.clients.folder import SegmentFolder
from flrl.clients.index import ClientIndex
from flrl.seeding import EVERYBODY

FOLDER = "clients"
"""The folder of segments in a run's folder."""


class VersionedMemory(Mapping[int, Mapping[str, Tensor]], ABC):
    """The interface of client memory for the round loop and checkpoints: from client id to tensors by name.

    Iteration is in ascending order of client ids. A version never changes; its tensors must not be changed in place.
    """

    @abstractmethod
    def updated(self, changes: Mapping[int, Mapping[str, Tensor]]) -> "VersionedMemory":
        """A new version; this one stays readable.

        Args:
            changes: the new tensors of clients, by client id; a client with no tensors is removed.
        """

    @abstractmethod
    def save(self) -> ClientIndex:
        """Write to disk what is not there yet, and return the index of all of it."""

    @abstractmethod
    def prune(self, kept: Iterable[ClientIndex]) -> None:
        """Delete files that neither a kept index nor the newest version refers to."""


class ClientMemory(VersionedMemory):
    """Client memory in this process: in RAM alone, or as its `ClientStore` divides it between RAM and disk.

    `ClientMemory()` is empty and has no store: it stays in RAM. A tensor that is read back from disk is checked.

    >>> import torch
    >>> empty = ClientMemory()
    >>> memory = empty.updated({7: {"control": torch.zeros(2)}, 3: {"control": torch.ones(2)}})
    >>> list(memory), memory[3]["control"].tolist(), len(empty)
    ([3, 7], [1.0, 1.0], 0)
    >>> list(memory.updated({7: {}}))
    [3]
    """

    def __init__(self) -> None:
        self._cache = Cache(None)
        self.entries: dict[int, Entry] = {}

    @classmethod
    def version(cls, cache: Cache, entries: dict[int, Entry]) -> "ClientMemory":
        """The version with these entries, which becomes the cache's newest."""
        memory = cls.__new__(cls)
        memory._cache, memory.entries = cache, entries
        cache.made(memory)
        return memory

    def __getitem__(self, client_id: int) -> Mapping[str, Tensor]:
        """A client's tensors, by name.

        Raises:
            KeyError: the client has no memory.
            DamagedError: its file is missing, too short or damaged; the message names file and client.
        """
        return self._cache.tensors(self.entries[client_id])

    def __contains__(self, client_id: object) -> bool:
        """Whether a client has any memory."""
        return client_id in self.entries

    def __iter__(self) -> Iterator[int]:
        """The ids of clients with memory, ascending."""
        return iter(sorted(self.entries))

    def __len__(self) -> int:
        """Number of clients with memory."""
        return len(self.entries)

    def updated(self, changes: Mapping[int, Mapping[str, Tensor]]) -> "ClientMemory":
        """A new version; this one stays readable.

        Args:
            changes: the new tensors of clients, by client id; a client with no tensors is removed.

        Raises:
            ValueError: a client id is negative, or a tensor has a dtype that cannot be kept.
        """
        entries = dict(self.entries)
        for client_id, tensors in changes.items():
            if client_id < 0 and client_id != EVERYBODY:
                raise ValueError(f"client {client_id}: must be at least 0")
            if tensors:
                entries[int(client_id)] = self._cache.entry(int(client_id), tensors)
            else:
                entries.pop(client_id, None)
        memory = self.version(self._cache, entries)
        self._cache.shrink()
        return memory

    def open(self, folder: Path) -> None:
        """Write segments into a run's folder, unless the store has been opened with a folder already.

        Raises:
            ValueError: that was another folder.
        """
        path = folder / FOLDER
        if self._cache.folder is None:
            self._cache.open(SegmentFolder(path))
        elif self._cache.folder.path.resolve() != path.resolve():
            raise ValueError(f"client memory is kept in {self._cache.folder.path}: it cannot be saved in {path}")

    def save(self) -> ClientIndex:
        """Write entries that are in no segment yet, and move some out of segments with few live bytes.

        Raises:
            ValueError: the memory has no folder.
        """
        return self._cache.save(self)

    def prune(self, kept: Iterable[ClientIndex]) -> None:
        """Delete the segments that neither a kept index nor the newest version refers to."""
        self._cache.prune(kept)
