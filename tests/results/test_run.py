"""`flrl.train` and `flrl.load`: as on the command line, any number of times in a process, errors as exceptions."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import flrl
from flrl.layout import ParameterLayout, digest
from flrl.results import frame, runs
from tests.results.conftest import MakeRun

SMALL = ("strategy.rounds=2", "partition.num_clients=3", "logger=none", "callbacks=none")


def test_the_same_as_on_the_command_line(cli: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli(*SMALL, "seed=1", "hydra.run.dir=cli").code == 0
    argv, handlers = sys.argv, list(logging.getLogger().handlers)
    run = flrl.train(*SMALL, "seed=1", "log_clients=true", "hydra.run.dir=own")
    again = flrl.train(*SMALL, "seed=2")
    assert capfd.readouterr() == ("", "")  # the progress is a callback
    there = flrl.load("cli")
    assert run.digest == there.digest == there.summary["digest"] != again.digest
    assert (run.folder, again.folder.parent) == (tmp_path / "own", tmp_path / "outputs" / "train")
    assert (sys.argv, logging.getLogger().handlers) == (argv, handlers)
    assert not GlobalHydra.instance().is_initialized()
    assert (run.seed, run.finished, run.choices["strategy"]) == (1, True, "fedavg")
    assert run.overrides == [*SMALL, "seed=1", "log_clients=true"]
    assert run.config["partition"]["num_clients"] == 3
    assert run.metrics.index.tolist() == [1, 2]
    assert run.metrics["comm/up_bytes"].tolist() == [3 * 650 * 4] * 2
    assert run.clients.index.tolist() == [(r, c) for r in (1, 2) for c in (0, 1, 2)]
    assert sorted(np.concatenate(run.partition).tolist()) == list(range(1438))
    assert [len(part) for part in run.partition] == run.clients["num_samples"].tolist()[:3]
    assert sorted(run.digests.loc[2, "parameters"]) == ["net.1.bias", "net.1.weight"]
    assert repr(run).startswith(f"Run('{tmp_path / 'own'}', 2 of 2 rounds, strategy.rounds=2 ")
    model = run.model()
    assert digest(ParameterLayout(model).flatten(model)) == run.digest
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    with pytest.raises(FileNotFoundError, match=r"cli/clients.jsonl is missing: a run writes it with log_clients=true"):
        _ = there.clients
    (there.folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"cli/model.safetensors cannot be loaded into the run's model"):
        there.model()


@pytest.mark.parametrize(
    ("arguments", "message"),
    {
        "rounds=5": "rounds=5: there is no such key; did you mean strategy.rounds?",
        "strategy.rounds=0": "strategy.rounds=0: must be at least 1",
        "partition.num_clients=0": "partition.num_clients=0: must be at least 1",
        "seed": "Error parsing override 'seed'; missing EQUAL at '<EOF>'; See "
        "https://hydra.cc/docs/1.2/advanced/override_grammar/basic for details",
        "-m seed=0,1": "-m: from Python a sweep is a loop, [flrl.train(f'seed={seed}') for seed in range(3)]",
        "resume=nowhere": ("resume=nowhere: there is no run in this folder (nowhere/.hydra/config.yaml is missing)"),
    }.items(),
)
def test_errors_are_raised_with_the_line_of_the_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        flrl.train(*arguments.split(), "logger=none")
    assert str(raised.value) == message
    assert capfd.readouterr().err == ""
    assert not GlobalHydra.instance().is_initialized()
    assert "HYDRA_FULL_ERROR" not in os.environ or os.environ["HYDRA_FULL_ERROR"] != "1"


def test_what_no_run_comes_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--cfg job: nothing was trained"):
        flrl.train("--cfg", "job")
    with pytest.raises(ValueError, match="--nonsense: not a command line of flrl-train"):
        flrl.train("--nonsense")


def test_other_processes_of_a_job_are_not_left_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["flrl.train"], "world", object)
    with pytest.raises(ValueError, match="under mpiexec start flrl-train"):
        flrl.train()


def test_importing_flrl_is_fast() -> None:
    code = "import sys, flrl, flrl.train; print({'torch', 'pandas', 'matplotlib', 'scipy'} & {*sys.modules}); "
    code += "print(callable(flrl.train), flrl.train.main.__name__, 'load' in dir(flrl))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "True main True"]


def test_what_flrl_does_not_have() -> None:
    with pytest.raises(AttributeError, match="module 'flrl' has no attribute 'trian'"):
        _ = flrl.trian  # type: ignore[attr-defined]


def test_runs_of_a_sweep(sweep: Path) -> None:
    found = runs(sweep, sweep / "0")
    assert [run.folder.name for run in found] == ["0", "1", "2", "3", "4", "5"]
    assert flrl.load(sweep / "3").seed == 1
    rows = frame(found, "strategy", "seed")
    assert rows.columns.tolist()[:5] == ["run", "strategy", "seed", "round", "test/accuracy"]
    assert len(rows) == 12
    means = rows[rows["round"] == 2].groupby("strategy")["test/accuracy"].mean()
    assert means.to_dict() == pytest.approx({"fedavg": 0.83, "fedprox": 0.85})
    with pytest.raises(ValueError, match=r"stratgy: neither a group nor a key of .*/0; did you mean strategy\?"):
        frame(found, "stratgy")
    with pytest.raises(FileNotFoundError, match=r"clients.jsonl is missing"):
        frame(found, of="clients")


def test_jobs_are_in_the_order_of_their_numbers(make: MakeRun) -> None:
    for seed in range(11):
        folder = make([0.5], seed=seed).folder
    assert [run.seed for run in runs(folder.parent)] == list(range(11))


def test_an_unfinished_run(make: MakeRun) -> None:
    run = make([0.5], finished=False)
    assert (run.finished, run.summary, run.digest) == (False, {}, "0-1")
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing: the run has not finished$"):
        run.model()
    with pytest.raises(FileNotFoundError, match=r"although the run has finished; flrl-train resume=\S+ goes on"):
        make([0.5], seed=1).model()
    with pytest.raises(FileNotFoundError, match=r"partition.npz is missing"):
        _ = run.partition


def test_overrides_of_a_resume_replace_earlier_ones(make: MakeRun) -> None:
    run = make([0.5], overrides=["+a=1"])
    with (run.folder / "environments.jsonl").open("a") as file:
        file.write(json.dumps({"after_round": 1, "overrides": [f"resume={run.folder}", "seed=3", "b=2"]}) + "\n")
    assert run.overrides == ["strategy=fedavg", "seed=3", "+a=1", "b=2"]


def test_a_folder_without_a_run(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"{tmp_path}/x: there is no run in this folder$"):
        flrl.load(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=f"it holds 6 runs: flrl.results.runs\\('{sweep}'\\)"):
        flrl.load(sweep)
