import json
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl import checkpoint
from flrl.checkpoint import list_checkpoints, load_checkpoint, prune_checkpoints, save_checkpoint
from flrl.types import ServerState

IDENTITY = {"model": "a" * 64, "seed": 0}


def state(round: int = 3) -> ServerState:
    return ServerState(
        round=round,
        vector=torch.arange(4.0) + round,
        optimizer={"0/exp_avg": torch.tensor([1.5], dtype=torch.float64)},
        variables={"control": torch.ones(2)},
        memory={7: {"control/a": torch.zeros(2)}, 11: {"x": torch.tensor(3)}},
    )


def test_everything_comes_back(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(), IDENTITY)
    assert path == tmp_path / "checkpoints" / "round-00003"
    found = load_checkpoint(path, IDENTITY)
    assert found.round == 3
    assert found.vector.tolist() == [3.0, 4.0, 5.0, 6.0]
    assert found.optimizer["0/exp_avg"].tolist() == [1.5]
    assert found.optimizer["0/exp_avg"].dtype == torch.float64
    assert found.variables["control"].tolist() == [1.0, 1.0]
    assert {client: {k: v.tolist() for k, v in memory.items()} for client, memory in found.memory.items()} == {
        7: {"control/a": [0.0, 0.0]},
        11: {"x": 3},
    }


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
