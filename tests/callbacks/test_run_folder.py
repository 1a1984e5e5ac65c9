"""The rows of a run that was interrupted: all that is known of its last round is there, and it can go on."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl.callbacks import Callback, Checkpoint, RunFolder, RunInfo
from flrl.callbacks.checkpoint import identity_of
from flrl.callbacks.run_folder import _number
from flrl.runs.checkpoint import list_checkpoints, load_checkpoint
from flrl.runs.resuming import _records, _until
from flrl.runs.rows import read_rows
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.types import RoundRecord, ServerState
from flrl.worker import Worker
from tests.toys import fit, make_worker


class Interrupts(Callback):
    """Raises when a round ends, before later callbacks are called."""

    def __init__(self, round: int) -> None:
        self.round = round

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        if state.round == self.round:
            raise RuntimeError("interrupted")


def made(folder: Path, rounds: int = 4) -> tuple[Worker, RunInfo, list[Callback]]:
    strategy = FedAvg(rounds=rounds, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    worker = make_worker(strategy)
    config: dict[str, Any] = {"strategy": {"_target_": "FedAvg"}, "model": {}, "trainer": {}}
    run = RunInfo("run", folder, 0, rounds, (), config, "", model=worker.model, data=worker.data)
    callbacks: list[Callback] = [RunFolder(log_clients=True), Checkpoint()]
    folder.mkdir(exist_ok=True)
    for callback in callbacks:
        callback.setup(run)
    return worker, run, callbacks


def read_history(folder: Path, rounds: int) -> list[RoundRecord]:
    return _until(_records(folder), rounds, folder)


def rows(folder: Path, name: str) -> list[tuple[int, Any]]:
    found = [json.loads(line) for line in (folder / name).read_text().splitlines()]
    return [(row["round"], row.get("client_id")) for row in found]


def test_an_interrupted_rounds_rows_are_written_and_it_goes_on_from_there(tmp_path: Path) -> None:
    whole, _, callbacks = made(tmp_path / "whole")
    expected, _ = fit(whole, callbacks=callbacks)
    folder = tmp_path / "run"
    worker, _, callbacks = made(folder)
    with pytest.raises(RuntimeError, match="interrupted"):
        fit(worker, callbacks=[Interrupts(2), *callbacks])
    clients = [(round, client) for round in (1, 2) for client in (0, 1, 2)]
    assert rows(folder, "metrics.jsonl") == [(1, None), (2, None)]
    assert rows(folder, "clients.jsonl") == clients
    assert rows(folder, "digests.jsonl") == [(1, None), (2, None)]
    assert (folder / "error.txt").read_text() == "after round 2: RuntimeError: interrupted\n"
    worker, run, callbacks = made(folder)
    state = load_checkpoint(list_checkpoints(folder)[-1], identity_of(run))
    after, history = fit(worker, state=state, history=read_history(folder, 2), callbacks=callbacks)
    assert state.round == 2
    assert torch.equal(after.vector, expected.vector)
    assert [record.round for record in history] == [1, 2, 3, 4]
    assert rows(folder, "metrics.jsonl") == rows(tmp_path / "whole", "metrics.jsonl")
    assert rows(folder, "clients.jsonl") == rows(tmp_path / "whole", "clients.jsonl")
    assert not (folder / "error.txt").exists()


def test_rows_after_the_resumed_round_are_dropped_with_an_incomplete_row(tmp_path: Path) -> None:
    worker, run, callbacks = made(tmp_path / "run")
    fit(worker, callbacks=callbacks)
    for name in ("clients.jsonl", "digests.jsonl"):
        with (run.folder / name).open("a") as file:
            file.write('{"round": 9')
    state = load_checkpoint(run.folder / "checkpoints" / "round-00003", identity_of(run))
    callbacks[0].on_fit_start(state, read_history(run.folder, 3))
    assert [round for round, _ in rows(run.folder, "metrics.jsonl")] == [1, 2, 3]
    assert [round for round, _ in rows(run.folder, "digests.jsonl")] == [1, 2, 3]
    assert [row["round"] for row in read_rows(run.folder / "clients.jsonl")] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    with pytest.raises(ValueError, match=r"metrics\.jsonl should hold rounds 1 to 4, it holds \[1, 2, 3\]"):
        read_history(run.folder, 4)


def test_numbers_of_transforms_are_not_cut() -> None:
    found = {value: _number("transforms/noise/std", value) for value in (0.25, 7.0)}
    assert found == {0.25: 0.25, 7.0: 7}
    assert isinstance(found[7.0], int)
    assert _number("comm/up_bytes", 100.0) == 100
    assert _number("test/loss", float("inf")) is None
