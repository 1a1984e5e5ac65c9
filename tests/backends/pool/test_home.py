"""Client memory that stays with its client's worker: the last two rounds, on disk, and what the controller knows."""

from pathlib import Path

import pytest
import torch

from flrl.backends.pool.home import Home, MemoryElsewhere
from flrl.clients import ClientIndex, ClientStore
from flrl.types import ClientReport, ClientTask, Tensors


def report(client_id: int, memory: Tensors | None) -> ClientReport:
    return ClientReport(client_id, 10, 1, {}, 0, memory=memory)


def value(number: float) -> Tensors:
    return {"control": torch.tensor([number])}


def seen(home: Home, round: int) -> dict[int, float]:
    return {client_id: float(own["control"]) for client_id, own in home.after(round).items()}


def test_the_last_two_rounds_are_known() -> None:
    """A round that fails elsewhere is taken again from what clients remembered before it."""
    home = Home(ClientStore())
    assert home.update([report(1, value(1.0)), report(2, value(2.0))], 1) is None  # nothing is written
    home.update([report(1, value(1.5)), report(2, None), report(3, value(3.0))], 2)
    assert (seen(home, 1), seen(home, 2)) == ({1: 1.0, 2: 2.0}, {1: 1.5, 2: 2.0, 3: 3.0})
    home.update([report(1, {})], 2)  # again: client 1 forgets, and nobody else took part
    assert (seen(home, 1), seen(home, 2)) == ({1: 1.0, 2: 2.0}, {2: 2.0})
    home.update([report(3, value(4.0))], 2, first=False)  # of the same round, who started from another model
    assert (seen(home, 1), seen(home, 2)) == ({1: 1.0, 2: 2.0}, {2: 2.0, 3: 4.0})
    task = {number: ClientTask(3, number, 10, 10.0) for number in (1, 2)}
    assert {c: float(m["control"]) for c, m in home.tasks(list(task.values()), 3).items()} == {2: 2.0}
    assert {c: float(m["control"]) for c, m in home.tasks([task[1]], 2).items()} == {1: 1.0}


def test_workers_write_into_one_folder_and_begin_again_from_it(tmp_path: Path) -> None:
    homes = [Home(ClientStore(budget_bytes=0)) for _ in range(2)]
    indexes = {}
    for number, home in enumerate(homes):
        home.open(tmp_path, f"worker{number}-")
        indexes[number] = home.update([report(number, value(number + 0.25))], 1)
    assert all(isinstance(index, ClientIndex) for index in indexes.values())
    elsewhere = MemoryElsewhere(tmp_path, indexes)  # type: ignore[arg-type]
    assert (len(elsewhere), list(elsewhere), elsewhere.get(0)) == (0, [], None)
    joined = elsewhere.save()
    again = Home(ClientStore())
    again.restore(1, joined, tmp_path)
    assert seen(again, 1) == {0: 0.25, 1: 1.25}
    # What was written before the last round goes once neither a checkpoint nor the newest version needs it.
    files = set((tmp_path / "clients").iterdir())
    indexes[0] = homes[0].update([report(0, value(7.0))], 2)
    later = elsewhere.updated({})
    later.prune([joined])
    assert files < set((tmp_path / "clients").iterdir())
    later.prune([])
    assert len(files - set((tmp_path / "clients").iterdir())) == 1


def test_memory_that_should_have_stayed_is_refused() -> None:
    elsewhere = MemoryElsewhere(None, {})
    with pytest.raises(ValueError, match="the memory of client 3 should have stayed with its worker"):
        elsewhere.updated({4: {}, 3: {}})
    with pytest.raises(ValueError, match="cannot be saved without the run's folder"):
        elsewhere.save()
