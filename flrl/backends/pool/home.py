"""Client memory that stays with the worker that owns the client; the controller knows only its files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from flrl.clients import FOLDER, ClientIndex, ClientMemory, ClientStore, VersionedMemory
from flrl.types import ClientReport, ClientTask, Tensors


class Home:
    """On a worker: the memory of its own clients, after each of the last two rounds.

    Two, because a round may fail elsewhere after it has ended here. Changes are written at the end of every round.

    Args:
        store: keeps the memory in RAM and files.
    """

    def __init__(self, store: ClientStore) -> None:
        self._store = store
        self._after: dict[int, ClientMemory] = {0: store.memory()}
        self._writes = False

    def open(self, folder: Path, writer: str) -> None:
        """Write files into a run's folder from now on; `writer` prefixes their names."""
        self._store.open(folder, writer=writer, take_in=False)
        self._writes = True

    def restore(self, round: int, index: ClientIndex, folder: Path) -> None:
        """Read the clients' memory after a round from the files in a run's folder."""
        self._after = {round: self._store.restored(index, folder)}

    def after(self, round: int) -> ClientMemory:
        """The clients' memory after a round."""
        return self._after[max(known for known in self._after if known <= round)]

    def tasks(self, tasks: Sequence[ClientTask], round: int) -> dict[int, Tensors]:
        """The memory that a round's tasks begin with, by client id; clients without memory do not appear."""
        memory = self.after(round - 1)
        return {task.client_id: memory[task.client_id] for task in tasks if task.client_id in memory}

    def update(self, reports: Iterable[ClientReport], round: int, *, first: bool = True) -> ClientIndex | None:
        """Take over a round's changes of client memory; returns the index of all of it, if files are written.

        Where clients of a round start from different models, it is called once for each of these; only of the `first`
        the changes are those of the round before. A round that failed elsewhere may be taken again.
        """
        before = self.after(round - 1)
        changes = {report.client_id: report.memory for report in reports if report.memory is not None}
        self._after = {round - 1: before, round: (before if first else self._after[round]).updated(changes)}
        return self._after[round].save() if self._writes else None


class MemoryElsewhere(VersionedMemory):
    """On the controller: the indices of client memory that stays with workers.

    As a mapping it is empty: only the worker that owns a client sees its memory.

    Args:
        folder: the run's folder, which all workers write into; None where nothing is written.
        latest: the index of each worker's memory after the last round, by worker; the backend keeps it up to date.
    """

    def __init__(self, folder: Path | None, latest: Mapping[int, ClientIndex]) -> None:
        self._folder, self._latest, self._parts = folder, latest, dict(latest)

    def __getitem__(self, client_id: int) -> Mapping[str, Tensor]:
        """Always raises KeyError: the memory is not here."""
        raise KeyError(client_id)

    def __iter__(self) -> Iterator[int]:
        """No client ids."""
        return iter(())

    def __len__(self) -> int:
        """Always 0."""
        return 0

    def updated(self, changes: Mapping[int, Mapping[str, Tensor]]) -> "MemoryElsewhere":
        """The version after the last round; this one keeps the indices from before it.

        Raises:
            ValueError: there are changes, which should have stayed with a worker.
        """
        if changes:
            raise ValueError(f"the memory of client {min(changes)} should have stayed with its worker")
        return MemoryElsewhere(self._folder, self._latest)

    def save(self) -> ClientIndex:
        """The index of all workers' memory, whose files they have written already.

        Raises:
            ValueError: there is no folder to write into.
        """
        if self._folder is None:
            raise ValueError("client memory that stays with workers cannot be saved without the run's folder")
        return ClientIndex.joined(list(self._parts.values()))

    def prune(self, kept: Iterable[ClientIndex]) -> None:
        """Delete files that neither a kept index nor this version refers to; call it while workers are idle."""
        if self._folder is None:
            return
        names = {segment.name for index in (*kept, *self._parts.values()) for segment in index.segments}
        for path in (self._folder / FOLDER).glob("*segment-*.safetensors"):
            if path.name not in names:
                path.unlink(missing_ok=True)
