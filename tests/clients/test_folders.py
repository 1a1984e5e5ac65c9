"""Several writers in one folder, and a run that goes on in another one."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from flrl.clients import ClientIndex, ClientMemory, ClientStore, folder
from tests.clients.test_store import files, opened, remember, values


@pytest.mark.parametrize("opened_first", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_a_run_that_goes_on_elsewhere_does_not_need_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool, opened_first: bool
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    index = opened(old).memory().updated(remember(1, 2)).save()
    if not links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(folder.os, "link", refuse)
    store = ClientStore(budget_bytes=0)
    if opened_first:
        store.open(new)
    memory = store.restored(index, old)
    store.open(new)
    name = "segment-000001.safetensors"
    assert (old / "clients" / name).samefile(new / "clients" / name) == links
    shutil.rmtree(old)
    memory = memory.updated(remember(3))
    found = memory.save()
    assert values(memory) == {1: 1.0, 2: 2.0, 3: 3.0}
    assert [s.name for s in found.segments] == [name, "segment-000002.safetensors"]
    memory.updated({1: {}, 2: {}}).save()
    store.prune([])
    assert files(new) == []  # the version of that save is not referred to any more


def test_a_file_of_the_same_name_is_not_taken_for_another(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    index = opened(old).memory().updated(remember(1)).save()
    opened(new).memory().updated(remember(7)).save()
    store = opened(new)
    memory = store.restored(index, old)
    assert [s.name for s in memory.save().segments] == ["segment-000002.safetensors"]
    assert values(memory) == {1: 1.0}


def test_nothing_is_written_beside_files_that_are_not_taken_in(tmp_path: Path) -> None:
    old, scratch = tmp_path / "old", tmp_path / "scratch"
    index = opened(old).memory().updated(remember(1, 2)).save()
    store = ClientStore(budget_bytes=0)
    memory = store.restored(index, old)
    store.open(scratch, take_in=False)
    memory = memory.updated(remember(2, 3, value=1))
    assert values(memory) == {1: 1.0, 2: 1002.0, 3: 1003.0}
    assert (files(old), files(scratch)) == (["segment-000001.safetensors"], ["segment-000001.safetensors"])


def test_writers_share_a_folder(tmp_path: Path) -> None:
    stores = [opened(tmp_path, writer=f"rank{rank}-") for rank in range(3)]
    memories = [store.memory().updated(remember(rank, 3 + rank)) for rank, store in enumerate(stores)]
    whole = ClientIndex.joined([memory.save() for memory in memories])
    assert files(tmp_path) == [f"rank{rank}-segment-000001.safetensors" for rank in range(3)]
    assert whole.client_ids.tolist() == [0, 1, 2, 3, 4, 5]
    (tmp_path / "clients" / ".rank1-segment-000002.safetensors.partial").write_bytes(b"half")
    resumed = opened(tmp_path, writer="rank1-")
    assert len(files(tmp_path)) == 3
    memory = resumed.restored(whole.only([1, 2, 7]), tmp_path)
    assert values(memory) == {1: 1.0, 2: 2.0}
    memory = memory.updated(remember(1, 2, value=1))
    index = memory.save()
    resumed.prune([index])
    assert files(tmp_path) == ["rank0-segment-000001.safetensors", "rank1-segment-000002.safetensors"]


def test_two_stores_never_write_one_file(tmp_path: Path) -> None:
    first, second = ClientMemory().updated(remember(1)), ClientMemory().updated(remember(2))
    first.open(tmp_path)
    second.open(tmp_path)
    assert [s.name for s in first.save().segments] == ["segment-000001.safetensors"]
    assert [s.name for s in second.save().segments] == ["segment-000002.safetensors"]
    assert (values(first), values(second)) == ({1: 1.0}, {2: 2.0})
    with pytest.raises(ValueError, match=r"client memory is kept in .*/clients: it cannot be saved in .*/b/clients"):
        first.open(tmp_path / "b")


def test_numbers_go_on_after_those_that_are_there(tmp_path: Path) -> None:
    for client in range(3):
        opened(tmp_path).memory().updated(remember(client)).save()
    assert files(tmp_path)[-1] == "segment-000003.safetensors"
    assert os.path.getsize(tmp_path / "clients" / files(tmp_path)[0]) > 400


def test_files_of_other_writers_that_were_taken_in_go_too(tmp_path: Path) -> None:
    index = opened(tmp_path / "old", writer="rank1-").memory().updated(remember(1)).save()
    for place in ("old", "new"):
        store = opened(tmp_path / place)
        memory = store.restored(index, tmp_path / "old")
        assert files(tmp_path / place) == ["rank1-segment-000001.safetensors"]
        if place == "new":
            memory = memory.updated({1: {}})
            store.prune([memory.save()])
            assert files(tmp_path / place) == []
