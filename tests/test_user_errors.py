"""Errors of a user's own code: one line with type, message, file and line, wherever the code is called from."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

SMALL = ("strategy.rounds=2", "partition.num_clients=3", "logger=none", "hydra.run.dir=run")
MORE = "HYDRA_FULL_ERROR=1 shows the whole traceback"
CODE = """
import multiprocessing
import os

import numpy as np
import torch

from flrl.callbacks import Callback
from flrl.data import Splits, TensorSource
from tests.toys import Linear


def dataset():
    return {}["train"]  # dataset


def uneven():
    return Splits(TensorSource(torch.zeros(3, 2), torch.zeros(4)), None)  # uneven


def partition(num_samples, labels, rng):
    return np.zeros(num_samples, dtype=int)[[num_samples]]  # partition


class Constructor(Linear):
    def __init__(self):
        super().__init__(features=64, classes=10)
        raise RuntimeError("no weights today")  # constructor


class Model(Linear):
    def __init__(self):
        super().__init__(features=64, classes=10)

    def flat(self, batch):
        return batch[0].flatten(1), batch[1]

    def training_step(self, batch, batch_idx):
        if os.environ.get("FAILS") == "training_step":
            assert batch_idx < 0, "two\\nlines"  # training_step
        if os.environ.get("FAILS") == "worker" and multiprocessing.parent_process() is not None:
            raise LookupError("no")  # worker
        return super().training_step(self.flat(batch), batch_idx)

    def test_step(self, batch, batch_idx):
        if os.environ.get("FAILS") == "test_step":
            batch.nothing  # test_step
        super().test_step(self.flat(batch), batch_idx)


class Watcher(Callback):
    def on_round_end(self, state, history):
        self.rounds = 1 / (2 - state.round)  # watcher
"""
YAMLS = {
    "dataset/own": "_target_: own.dataset",
    "dataset/uneven": "_target_: own.uneven",
    "dataset/unnamed": "_target_: unnamed.dataset",
    "dataset/unparsable": "_target_: unparsable.dataset",
    "partition/own": "_target_: own.partition\n_partial_: true\nnum_clients: null",
    "model/constructor": "_target_: own.Constructor",
    "model/own": "_target_: own.Model",
    "callbacks/own": "defaults: [default]\nwatcher:\n  _target_: own.Watcher",
}
LINES = {line.partition("  # ")[2]: number for number, line in enumerate(CODE.splitlines(), 1) if "  # " in line}
FAULTS = {
    "dataset": (("dataset=own", "model=own"), "KeyError: 'train' (own.py:{}, in dataset)", "dataset"),
    "dataset, on purpose": (
        ("dataset=uneven", "model=own"),
        "ValueError: 3 inputs but 4 targets (own.py:{}, in uneven)",
        "uneven",
    ),
    "constructor": (
        ("model=constructor",),
        "RuntimeError: no weights today (own.py:{}, in __init__)",
        "constructor",
    ),
    "callback": (
        ("model=own", "callbacks=own"),
        "ZeroDivisionError: division by zero (own.py:{}, in on_round_end)",
        "watcher",
    ),
}


@pytest.fixture(autouse=True)
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "unnamed.py").write_text("dataset = lambda: None\n\nunknown_name\n")
    (tmp_path / "unparsable.py").write_text("def dataset(:\n")
    for name, yaml in YAMLS.items():
        path = tmp_path / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).parents[1]}")
    for name in ("own", "unnamed", "unparsable"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def last_line(cli: Any, *arguments: str) -> str:
    done = cli("--config-dir=conf", *SMALL, *arguments)
    assert done.code == 1
    assert done.err.endswith("\n")
    assert done.err.count("\n") == 1
    return str(done.err.removesuffix("\n"))


@pytest.mark.parametrize(("arguments", "message", "line"), FAULTS.values(), ids=FAULTS)
def test_type_message_file_and_line(cli: Any, arguments: tuple[str, ...], message: str, line: str) -> None:
    assert last_line(cli, *arguments) == f"error: {message.format(LINES[line])}; {MORE}"


def test_a_partition(cli: Any) -> None:
    message = last_line(cli, "partition=own", "~partition.num_clients")
    assert message.startswith("error: IndexError: index 1438 is out of bounds")
    assert message.endswith(f" (own.py:{LINES['partition']}, in partition); {MORE}")


def test_a_module_that_cannot_be_imported(cli: Any) -> None:
    where = "(unnamed.py:3, in <module>)"
    assert (
        last_line(cli, "model=own", "dataset=unnamed")
        == f"error: NameError: name 'unknown_name' is not defined {where}; {MORE}"
    )
    assert last_line(cli, "model=own", "dataset=unparsable").endswith(f" (unparsable.py:1); {MORE}")


def test_a_clients_training(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "training_step")
    message = f"AssertionError: two lines (own.py:{LINES['training_step']}, in training_step); {MORE}"
    assert last_line(cli, "model=own") == f"error: client 0, round 1: {message}"


@pytest.mark.slow
def test_a_clients_training_in_another_process(
    cli: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from flrl.train import main

    monkeypatch.setenv("FAILS", "worker")
    message = last_line(cli, "model=own", "backend=process", "backend.workers=1")
    place = rf"\(own\.py:{LINES['worker']}, in training_step\); {MORE}"
    assert re.fullmatch(rf"error: client 0, round 1, worker 0 \(process \d+\): LookupError: no {place}", message)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    own = ("--config-dir=conf", *SMALL[:-1], "hydra.run.dir=other", "model=own", "backend=process", "backend.workers=1")
    monkeypatch.setattr(sys, "argv", ["flrl-train", *own])
    with pytest.raises(RuntimeError, match="LookupError: no"):
        main()
    assert 'raise LookupError("no")' in capfd.readouterr().err


def test_a_bug_of_our_own_has_its_place_too(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import flrl
    from flrl.data import FederatedData

    monkeypatch.setattr(FederatedData, "save", FederatedData.train_indices)
    message = last_line(cli)
    assert message.startswith("error: TypeError: unsupported operand")
    assert f"({Path(flrl.__file__).parent / 'data' / 'federated.py'}:" in message


def test_what_fails_in_test_step_fails_before_the_first_round_and_changes_nothing(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("--config-dir=conf", *SMALL, "model=own").code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    monkeypatch.setenv("FAILS", "test_step")
    place = f"(own.py:{LINES['test_step']}, in test_step)"
    error = f"error: AttributeError: 'tuple' object has no attribute 'nothing' {place}; {MORE}"
    assert last_line(cli, "model=own", "resume=run", "strategy.rounds=3") == error
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    assert last_line(cli, "model=own", "hydra.run.dir=other") == error
    assert not (Path("other") / "metrics.jsonl").exists()
    done = cli("--config-dir=conf", *SMALL, "model=own", "hydra.run.dir=third", "evaluation.try_first=false")
    assert done.code == 1
    assert "round 1" not in done.out
    assert (Path("third") / "partition.npz").exists()


def test_digests_do_not_depend_on_trying_first(cli: Any) -> None:
    def digest(folder: str, *arguments: str) -> str:
        assert cli("--config-dir=conf", *SMALL, f"hydra.run.dir={folder}", "model=own", *arguments).code == 0
        return str(json.loads((Path(folder) / "summary.json").read_text())["digest"])

    assert digest("a") == digest("b", "evaluation.try_first=false")
