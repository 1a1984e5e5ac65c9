import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from flrl.clients import ClientMemory, ClientStore
from flrl.errors import DamagedError
from flrl.layout import digest
from flrl.runs import checkpoint
from flrl.runs.checkpoint import kept_indexes, list_checkpoints, load_checkpoint, prune_checkpoints, save_checkpoint
from flrl.types import ServerState

IDENTITY = {"model": "a" * 64, "seed": 0}


def state(round: int = 3) -> ServerState:
    return ServerState(
        round=round,
        vector=torch.arange(4.0) + round,
        optimizer={"0/exp_avg": torch.tensor([1.5], dtype=torch.float64)},
        variables={"control": torch.ones(2)},
        memory=ClientMemory().updated({7: {"control/a": torch.zeros(2)}, 11: {"x": torch.tensor(3)}}),
    )


def plain(state: ServerState) -> dict[int, dict[str, Any]]:
    return {client: {name: t.tolist() for name, t in memory.items()} for client, memory in state.memory.items()}


def segments(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "clients").glob("*"))


def test_everything_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(), IDENTITY)
    assert path == tmp_path / "checkpoints" / "round-00003"
    found = load_checkpoint(path, IDENTITY)
    assert found.round == 3
    assert found.vector.tolist() == [3.0, 4.0, 5.0, 6.0]
    assert found.optimizer["0/exp_avg"].tolist() == [1.5]
    assert found.optimizer["0/exp_avg"].dtype == torch.float64
    assert found.variables["control"].tolist() == [1.0, 1.0]
    assert plain(found) == {7: {"control/a": [0.0, 0.0]}, 11: {"x": 3}}
    assert sorted(load_file(path / "state.safetensors")) == [
        "memory/checksums", "memory/client_ids", "memory/files", "memory/kinds", "memory/starts",
        "optimizer/0/exp_avg", "variables/control", "vector",
    ]  # fmt: skip
    assert segments(tmp_path) == ["segment-000001.safetensors"]


def test_newest_last_and_only_some_are_kept(tmp_path: Path) -> None:
    for round in (2, 10, 9):
        save_checkpoint(tmp_path, state(round), IDENTITY)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["round-00002", "round-00009", "round-00010"]
    prune_checkpoints(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["round-00009", "round-00010"]


def test_the_newest_of_many_rounds_is_by_number(tmp_path: Path) -> None:
    """Names have five digits at least: as text, round 100000 would come before round 99999."""
    for round in (100000, 99999):
        save_checkpoint(tmp_path, state(round), IDENTITY)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["round-99999", "round-100000"]
    prune_checkpoints(tmp_path, 1)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["round-100000"]


def test_the_same_state_is_saved_once_and_another_is_refused(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(), IDENTITY)
    before = path.stat().st_mtime_ns
    assert save_checkpoint(tmp_path, state(), IDENTITY).stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="round-00003 is already there"):
        save_checkpoint(tmp_path, ServerState(3, torch.zeros(4)), IDENTITY)


def test_a_disk_that_fills_up_leaves_the_previous_one_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save_checkpoint(tmp_path, state(1), IDENTITY)

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_synced", full)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, state(2), IDENTITY)
    assert list_checkpoints(tmp_path) == [first]
    assert load_checkpoint(first, IDENTITY).round == 1
    assert load_checkpoint(save_checkpoint(tmp_path, state(2), IDENTITY), IDENTITY).round == 2


def corrupt_bytes(path: Path) -> None:
    data = bytearray((path / "state.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "state.safetensors").write_bytes(data)


def edit(path: Path, **changes: Any) -> None:
    meta = json.loads((path / "state.json").read_text()) | changes
    (path / "state.json").write_text(json.dumps(meta))


DAMAGES = {
    "a flipped bit": corrupt_bytes,
    "a torn file": lambda path: (path / "state.safetensors").write_bytes(b"torn"),
    "no tensors": lambda path: (path / "state.safetensors").unlink(),
    "torn json": lambda path: (path / "state.json").write_text('{"round": 3'),
    "another format": lambda path: edit(path, format=99),
    "not a state": lambda path: (path / "state.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_not_whole_is_refused_with_its_path(tmp_path: Path, damage: Any) -> None:
    path = save_checkpoint(tmp_path, state(), IDENTITY)
    damage(path)
    with pytest.raises(ValueError, match=r"round-00003 is not a valid checkpoint: .*; nothing was changed"):
        load_checkpoint(path, IDENTITY)


def test_another_runs_checkpoint_is_refused_by_what_differs(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(), IDENTITY)
    expected = rf"belongs to another run \(model was {'a' * 12}\.\.\., is {'b' * 12}\.\.\.; seed was 0, is 1\)"
    with pytest.raises(ValueError, match=expected):
        load_checkpoint(path, {"model": "b" * 64, "seed": 1})


def in_format_1(folder: Path) -> Path:
    """A checkpoint as it was before client memory had files of its own."""
    tensors = {"vector": torch.ones(2), "memory/7/control/a": torch.zeros(2), "memory/11/x": torch.tensor(3)}
    data, path = save(tensors), folder / "checkpoints" / "round-00003"
    meta = {"format": 1, "round": 3, "digest": digest(torch.ones(2)), "sha256": hashlib.sha256(data).hexdigest()}
    path.mkdir(parents=True)
    (path / "state.safetensors").write_bytes(data)
    (path / "state.json").write_text(json.dumps(meta | {"identity": IDENTITY}))
    return path


def test_a_checkpoint_that_holds_the_memory_itself_is_still_read(tmp_path: Path) -> None:
    path, store = in_format_1(tmp_path), ClientStore(budget_bytes=0)
    found = load_checkpoint(path, IDENTITY, store)
    assert plain(found) == {7: {"control/a": [0.0, 0.0]}, 11: {"x": 3}}
    assert segments(tmp_path) == []
    assert save_checkpoint(tmp_path, found, IDENTITY) == path  # an interrupted run saves what it started from
    assert kept_indexes(tmp_path) == []
    later = save_checkpoint(tmp_path, ServerState(4, found.vector, memory=found.memory), IDENTITY)
    assert plain(load_checkpoint(later, IDENTITY)) == plain(found)


def test_memory_is_written_once_and_goes_with_its_last_checkpoint(tmp_path: Path) -> None:
    store = ClientStore()
    store.open(tmp_path)
    memory = store.memory().updated({client: {"x": torch.full((1000,), client)} for client in range(10)})
    for round in range(1, 5):
        memory = memory.updated({round: {"x": torch.full((1000,), 100 * round)}})
        path = save_checkpoint(tmp_path, ServerState(round, torch.zeros(2), memory=memory), IDENTITY)
        assert (path / "state.safetensors").stat().st_size < 1500
        prune_checkpoints(tmp_path, 2, memory)
    assert segments(tmp_path) == [f"segment-00000{number}.safetensors" for number in (1, 2, 3, 4)]
    memory = memory.updated({client: {"x": torch.zeros(1)} for client in range(10)})
    for round in (5, 6):
        save_checkpoint(tmp_path, ServerState(round, torch.zeros(2), memory=memory), IDENTITY)
        prune_checkpoints(tmp_path, 1, memory)
    assert segments(tmp_path) == ["segment-000005.safetensors"]


def test_a_checkpoint_without_its_segments_is_damaged(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(), IDENTITY)
    shutil.rmtree(tmp_path / "clients")
    expected = r"round-00003 is not a valid checkpoint: .*segment-000001.safetensors is missing; nothing was changed"
    with pytest.raises(DamagedError, match=expected):
        load_checkpoint(path, IDENTITY)


def test_a_state_of_other_memory_is_another_state(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(), IDENTITY)
    memory = ClientMemory().updated({7: {"control/a": torch.ones(2)}, 11: {"x": torch.tensor(3)}})
    with pytest.raises(FileExistsError, match="round-00003 is already there"):
        save_checkpoint(tmp_path, replace(state(), memory=memory), IDENTITY)
    with pytest.raises(FileExistsError, match="round-00003 is already there"):
        save_checkpoint(tmp_path, replace(state(), optimizer={"0/exp_avg": torch.zeros(1)}), IDENTITY)


def test_a_state_takes_no_other_mapping_for_memory() -> None:
    with pytest.raises(ValueError, match=r"memory=dict: must be a client memory: ClientMemory\(\).updated"):
        ServerState(0, torch.zeros(1), memory={})  # type: ignore[arg-type]
