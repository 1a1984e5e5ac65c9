"""RAM, disk, and what happens when files are not what they were."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flrl.clients import ClientIndex, ClientMemory, ClientStore, segment
from flrl.clients.cache import Cache
from flrl.errors import DamagedError

CLIENT_BYTES = 400


def remember(*client_ids: int, value: float = 0.0) -> dict[int, dict[str, Tensor]]:
    return {client: {"control": torch.full((100,), 1000.0 * value + client)} for client in client_ids}


def values(memory: Mapping[int, Mapping[str, Tensor]]) -> dict[int, float]:
    return {client: float(own["control"][0]) for client, own in memory.items()}


def opened(folder: Path, budget: int = 2**30, writer: str = "") -> ClientStore:
    store = ClientStore(budget_bytes=budget)
    store.open(folder, writer=writer)
    return store


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "clients")) if (folder / "clients").exists() else []


def test_a_budget_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"client_store\.budget_bytes=-1: must be at least 0"):
        ClientStore(budget_bytes=-1)


def test_a_writers_name_is_part_of_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"writer='\.\./': must consist of letters, digits, _ and -"):
        opened(tmp_path, writer="../")


def test_all_stays_in_ram_without_a_folder() -> None:
    store = ClientStore(budget_bytes=0)
    memory = store.memory().updated(remember(1, 2, 3))
    assert (store.bytes_in_ram, values(memory)) == (3 * CLIENT_BYTES, {1: 1.0, 2: 2.0, 3: 3.0})
    with pytest.raises(ValueError, match="cannot be saved before its store has been opened"):
        memory.save()


def test_tensors_that_stay_in_ram_are_the_ones_that_were_given() -> None:
    given = torch.ones(3)
    assert ClientMemory().updated({0: {"a": given}})[0]["a"] is given
    whole = torch.arange(6.0)
    kept = ClientMemory().updated({0: {"a": whole[:2]}})[0]["a"]
    assert kept.untyped_storage().nbytes() == 8  # a view would hold on to all six


def test_what_was_used_last_stays_in_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = Cache._read
    monkeypatch.setattr(Cache, "_read", lambda cache, entry: (read.append(entry.client_id), plain(cache, entry))[1])
    memory = opened(tmp_path, 3 * CLIENT_BYTES).memory().updated(remember(1, 2, 3))
    assert files(tmp_path) == []
    memory[1]
    memory = memory.updated(remember(4))  # 2 goes
    assert files(tmp_path) == ["segment-000001.safetensors"]
    assert (float(memory[1]["control"][0]), read) == (1.0, [])
    assert (float(memory[2]["control"][0]), read) == (2.0, [2])  # and 3 goes
    assert (values(memory), read[:2]) == ({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}, [2, 3])


def test_clients_that_are_on_disk_leave_ram_without_being_rewritten(tmp_path: Path) -> None:
    store = opened(tmp_path, 4 * CLIENT_BYTES)
    memory = store.memory().updated(remember(1, 2, 3, 4))
    memory.save()
    size = (tmp_path / "clients" / "segment-000001.safetensors").stat().st_size
    memory = memory.updated(remember(5, 6))
    assert (files(tmp_path), store.bytes_in_ram) == (["segment-000001.safetensors"], 4 * CLIENT_BYTES)
    assert size - 4 * CLIENT_BYTES < 4 * 100  # the header


def test_many_clients_go_in_one_file(tmp_path: Path) -> None:
    store = opened(tmp_path, 80 * CLIENT_BYTES)
    memory = store.memory().updated(remember(*range(80)))
    for client in range(80, 90):
        memory = memory.updated(remember(client))
    assert files(tmp_path) == ["segment-000001.safetensors"]  # an eighth of the budget: ten clients
    assert len(load_file(tmp_path / "clients" / files(tmp_path)[0])) == 10


def test_only_what_has_changed_is_written(tmp_path: Path) -> None:
    memory = opened(tmp_path).memory().updated(remember(*range(10)))
    memory.save()
    memory = memory.updated(remember(3, value=1))
    index = memory.save()
    assert [s.name for s in index.segments] == ["segment-000001.safetensors", "segment-000002.safetensors"]
    assert [s.data_bytes for s in index.segments] == [10 * CLIENT_BYTES, CLIENT_BYTES]
    assert index.files.tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    assert memory.save().segments == index.segments
    assert files(tmp_path) == [s.name for s in index.segments]
    assert all((tmp_path / "clients" / s.name).stat().st_size == s.nbytes for s in index.segments)


def test_segments_are_safetensors_files(tmp_path: Path) -> None:
    own = {"b/c": torch.tensor([True, False, True]), "a": torch.tensor(7), "d": torch.empty(0), "e": torch.ones(2, 3)}
    memory = opened(tmp_path, 0).memory().updated({4: own, 12: {"x": torch.tensor([1.5], dtype=torch.bfloat16)}})
    found = load_file(tmp_path / "clients" / "segment-000001.safetensors")
    assert sorted(found) == ["12/x", "4/a", "4/b/c", "4/d", "4/e"]
    assert (found["4/b/c"].tolist(), found["4/a"].tolist()) == ([True, False, True], 7)
    assert {name: (t.dtype, t.tolist()) for name, t in memory[4].items()} == {
        name: (t.dtype, t.tolist()) for name, t in own.items()
    }
    assert (memory[12]["x"].dtype, memory[12]["x"].tolist()) == (torch.bfloat16, [1.5])


def test_a_dtype_that_files_cannot_hold_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"client 3: 'x' has dtype torch\.complex128; allowed are torch\.float64, "):
        ClientMemory().updated({3: {"x": torch.zeros(1, dtype=torch.complex128)}})
    with pytest.raises(ValueError, match="client -1: must be at least 0"):
        ClientMemory().updated({-1: {"x": torch.zeros(1)}})


def test_bits_come_back_as_they_were(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, -0x80000000, 0x00000001, -1], dtype=torch.int32)  # NaNs, -0.0, a denormal
    memory = opened(tmp_path, 0).memory().updated({0: {"x": bits.view(torch.float32)}})
    assert memory[0]["x"].view(torch.int32).tolist() == bits.tolist()


def test_the_budget_is_exceeded_by_one_update_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path, 20 * CLIENT_BYTES)
    seen: list[int] = []
    plain = Cache.shrink
    monkeypatch.setattr(Cache, "shrink", lambda cache: (seen.append(cache.nbytes), plain(cache))[1])
    memory = store.memory()
    for round in range(30):
        memory = memory.updated(remember(*range(7 * round, 7 * round + 7)))
        assert store.bytes_in_ram <= 20 * CLIENT_BYTES
    assert max(seen) <= 27 * CLIENT_BYTES
    assert len(values(memory)) == 210
    assert store.bytes_in_ram <= 20 * CLIENT_BYTES


def test_a_forgotten_version_takes_no_ram(tmp_path: Path) -> None:
    store = opened(tmp_path)
    memory = store.memory().updated(remember(1, 2))
    older = memory
    memory = memory.updated(remember(1, value=1))
    assert store.bytes_in_ram == 3 * CLIENT_BYTES
    assert (values(older), values(memory)) == ({1: 1.0, 2: 2.0}, {1: 1001.0, 2: 2.0})
    del older
    assert store.bytes_in_ram == 2 * CLIENT_BYTES
    assert list(memory.updated({1: {}, 5: {}})) == [2]
    assert (1 in memory, 7 in memory, memory.get(7)) == (True, False, None)


@pytest.mark.parametrize("every", [1, 5])
def test_disk_stays_within_three_times_what_is_alive(tmp_path: Path, every: int) -> None:
    """Whatever is overwritten in whatever order; with `every` beyond the rounds nothing is ever saved."""
    store, random = opened(tmp_path, 20 * CLIENT_BYTES), torch.Generator().manual_seed(0)
    memory, kept, largest = store.memory().updated(remember(*range(100))), [], 0
    for round in range(1, 120):
        memory = memory.updated(remember(*torch.randperm(100, generator=random)[:10].tolist(), value=round))
        if round % every == 0:
            kept = [*kept[-1:], memory.save()]
            store.prune(kept[-1:])
        sizes = [(tmp_path / "clients" / name).stat().st_size for name in files(tmp_path)]
        largest = max(largest, sum(sizes))
    assert largest <= 3 * 100 * (CLIENT_BYTES + 80)  # 80 bytes of header a client
    assert len(values(memory)) == 100


def test_without_any_save_dead_segments_go_too(tmp_path: Path) -> None:
    store, random = opened(tmp_path, 8 * CLIENT_BYTES), torch.Generator().manual_seed(0)
    memory = store.memory().updated(remember(*range(100)))
    for round in range(200):
        memory = memory.updated(remember(*torch.randperm(100, generator=random)[:10].tolist(), value=round))
    sizes = [(tmp_path / "clients" / name).stat().st_size for name in files(tmp_path)]
    assert sum(sizes) <= 3 * 100 * (CLIENT_BYTES + 80)
    store.close()
    assert not (tmp_path / "clients").exists()


def test_a_save_carries_over_no_more_than_it_writes(tmp_path: Path) -> None:
    store = opened(tmp_path)
    memory = store.memory().updated(remember(*range(40)))
    memory.save()
    memory = memory.updated({client: {} for client in range(30)} | remember(50, 51, 52))
    index = memory.save()  # 10 of 40 are alive there; three are carried over
    assert [s.data_bytes // CLIENT_BYTES for s in index.segments] == [40, 3, 3]
    assert index.files.tolist() == [2] * 3 + [0] * 7 + [1] * 3
    assert len(memory.save().segments) == 3  # without changes nothing is carried over
    memory = memory.updated(remember(*range(60, 70)))
    index = memory.save()
    store.prune([index])
    assert "segment-000001.safetensors" not in files(tmp_path)
    assert values(memory) == {client: float(client) for client in [*range(30, 40), 50, 51, 52, *range(60, 70)]}


def test_pruning_keeps_what_an_index_or_the_newest_version_needs(tmp_path: Path) -> None:
    store = opened(tmp_path)
    memory, indexes = store.memory(), []
    for value in range(4):
        memory = memory.updated(remember(0, value=value))
        indexes.append(memory.save())
    (tmp_path / "clients" / "other-segment-000001.safetensors").write_bytes(b"another writer's")
    store.prune([indexes[1]])
    assert files(tmp_path) == [
        "other-segment-000001.safetensors", "segment-000002.safetensors", "segment-000004.safetensors"
    ]  # fmt: skip
    assert values(opened(tmp_path).restored(indexes[1], tmp_path)) == {0: 1000.0}
    store.close([indexes[1]])
    assert files(tmp_path) == ["other-segment-000001.safetensors", "segment-000002.safetensors"]


def test_a_kill_between_any_two_writes_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is copied before each rename and each deletion, and resumed from as it lies there."""
    run, copies = tmp_path / "run", [tmp_path / "start"]
    kept: list[tuple[ClientIndex, dict[int, float]]] = []
    found: list[tuple[Path, ClientIndex, dict[int, float]]] = []

    def copied(act: object) -> object:
        def acting(*arguments: object, **options: object) -> object:
            if kept and run.exists():
                copies.append(tmp_path / f"copy{len(copies)}")
                shutil.copytree(run, copies[-1])
                found.append((copies[-1], *kept[-1]))
            return act(*arguments, **options)  # type: ignore[operator]

        return acting

    monkeypatch.setattr(segment.os, "rename", copied(os.rename))
    monkeypatch.setattr(Path, "unlink", copied(Path.unlink))
    store = opened(run, 5 * CLIENT_BYTES)
    memory = store.memory()
    for round in range(8):
        memory = memory.updated(remember(*range(round, round + 4), value=round))
        index = memory.save()
        kept = [*kept[-1:], (index, values(memory))]
        store.prune([index for index, _ in kept])
    monkeypatch.undo()
    assert len(found) > 12
    partial = 0
    for folder, index, expected in found:
        partial += sum(name.endswith(".partial") for name in files(folder))
        store = opened(folder, 0)
        resumed = store.restored(index, folder)
        assert values(resumed) == expected
        assert not any(name.endswith(".partial") for name in files(folder))
        assert values(resumed.updated(remember(99))) == expected | {99: 99.0}
    assert partial > 5


def test_a_full_disk_leaves_no_incomplete_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = opened(tmp_path).memory().updated(remember(1))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(segment.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            memory.save()
    assert files(tmp_path) == []
    assert values(opened(tmp_path).restored(memory.save(), tmp_path)) == {1: 1.0}


DAMAGES = {
    "a flipped bit": (lambda path: flip(path), "is damaged: the memory of client 2 is not what was written"),
    "cut off": (lambda path: os.truncate(path, path.stat().st_size - 1), "is damaged: the memory of client 2 is not"),
    "missing": (lambda path: path.unlink(), "is missing: it holds the memory of client 2"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(("damage", "expected"), DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_read_is_checked(tmp_path: Path, damage: object, expected: str) -> None:
    memory = opened(tmp_path, 0).memory().updated(remember(1, 2))
    damage(tmp_path / "clients" / "segment-000001.safetensors")  # type: ignore[operator]
    with pytest.raises(DamagedError, match=f"segment-000001.safetensors {expected}"):
        memory[2]


def test_an_index_of_files_that_are_gone_or_cut_off_is_refused(tmp_path: Path) -> None:
    index = opened(tmp_path).memory().updated(remember(1)).save()
    path = tmp_path / "clients" / "segment-000001.safetensors"
    whole = path.stat().st_size
    os.truncate(path, 100)
    with pytest.raises(DamagedError, match=f"segment-000001.safetensors has 100 bytes, it should have {whole}"):
        ClientStore().restored(index, tmp_path)
    path.unlink()
    with pytest.raises(DamagedError, match=r"segment-000001.safetensors is missing$"):
        ClientStore().restored(index, tmp_path)


def test_the_emptiest_segment_is_carried_over_first(tmp_path: Path) -> None:
    memory = opened(tmp_path).memory().updated(remember(*range(10)))
    memory.save()
    memory = memory.updated(remember(*range(10, 20)))
    memory.save()
    memory = memory.updated({client: {} for client in [*range(4, 10), *range(12, 20)]} | remember(30, 31))
    index = memory.save()  # four of ten are alive in the first segment, two in the second
    assert [s.name[8:14] for s in index.segments] == ["000001", "000003", "000004"]
    assert index.files.tolist() == [0, 0, 0, 0, 2, 2, 1, 1]


def test_a_segment_that_an_index_names_outlives_its_clients(tmp_path: Path) -> None:
    memory = opened(tmp_path, 2 * CLIENT_BYTES).memory().updated(remember(1, 2))
    memory.save()
    index = memory.save()
    for value in range(1, 6):
        memory = memory.updated(remember(1, 2, 3, value=value))
    assert values(ClientStore().restored(index, tmp_path)) == {1: 1.0, 2: 2.0}
