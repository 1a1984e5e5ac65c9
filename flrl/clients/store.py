"""The store of a run's client memory: in RAM up to a budget, in the run's folder beyond it."""

from collections.abc import Iterable
from pathlib import Path

from flrl.clients.cache import Cache, Entry
from flrl.clients.folder import SegmentFolder
from flrl.clients.index import ClientIndex
from flrl.clients.memory import FOLDER, ClientMemory
from flrl.clients.segment import Place, Segment, shared


class ClientStore:
    """Keeps client memory: the most recently used part in RAM, the rest in files.

    Until `open` is called, all changes stay in RAM; memory that a resumed run reads from files can be dropped from it.

    Args:
        budget_bytes: largest size in bytes of tensors in RAM; a round's changes may exceed it shortly. 0 keeps all on
            disk.

    Raises:
        ValueError: the budget is negative.
    """

    def __init__(self, *, budget_bytes: int = 2**30) -> None:
        if budget_bytes < 0:
            raise ValueError(f"client_store.budget_bytes={budget_bytes}: must be at least 0")
        self.budget_bytes = budget_bytes
        self._cache = Cache(budget_bytes)

    def open(self, folder: Path, *, writer: str = "", take_in: bool = True) -> None:
        """Write files into `<folder>/clients/` from now on; incomplete ones that a killed process left are deleted.

        Args:
            folder: a run's folder.
            writer: prefix of the files' names, so that several processes can share a folder.
            take_in: put the files of a restored memory there too, by hard links where the file system has them, so that
                their old folder is not needed any more.

        Raises:
            ValueError: the writer's name has other characters than letters, digits, `_` and `-`.
        """
        self._cache.open(SegmentFolder(folder / FOLDER, writer=writer), take_in=take_in)

    @property
    def bytes_in_ram(self) -> int:
        """Size in bytes of the tensors in RAM, of all versions that are referred to."""
        return self._cache.nbytes

    def memory(self) -> ClientMemory:
        """An empty client memory."""
        return ClientMemory.version(self._cache, {})

    def restored(self, index: ClientIndex, folder: Path) -> ClientMemory:
        """The memory that an index describes; a client's tensors are read at the first access.

        Args:
            index: from `ClientMemory.save`.
            folder: the run's folder, whose `clients/` has the files; if another one has been opened, they are linked or
                copied there.

        Raises:
            DamagedError: a file is missing or has another length.
        """
        segments = {file: Segment(folder / FOLDER / file.name, file.nbytes, file.data_bytes) for file in index.segments}
        for segment in segments.values():
            segment.check()
        for segment in segments.values():
            self._cache.add(segment)
        entries = {}
        for client_id, file, start, kind, checksum in index.rows():
            place = Place(segments[file], start, checksum)
            entries[client_id] = Entry(client_id, shared(kind), place=place)
        return ClientMemory.version(self._cache, entries)

    def prune(self, kept: Iterable[ClientIndex]) -> None:
        """Delete files that neither a kept index nor the newest version of the memory refers to."""
        self._cache.prune(kept)

    def close(self, kept: Iterable[ClientIndex] = ()) -> None:
        """Delete files that no kept index refers to; the memory itself cannot be used any more."""
        self._cache.prune(kept, newest=False)
        if self._cache.folder is not None:
            self._cache.folder.close()
