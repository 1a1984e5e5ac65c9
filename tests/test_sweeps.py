"""A sweep goes on after a failed job, keeps a table, ends with the failures, and does not train twice."""

import csv
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from flrl.sweeps import note_failure, read_table, show, write_row

SMALL = ("-m", "strategy.rounds=1", "logger=none", "callbacks=none", "hydra.sweep.dir=sweep")


def table(folder: str = "sweep") -> dict[str, dict[str, str]]:
    with Path(folder, "sweep.csv").open(newline="") as file:
        return {row["job"]: row for row in csv.DictReader(file)}


def test_a_failed_job_is_named_and_the_others_are_trained(cli: Any) -> None:
    done = cli(*SMALL, "seed=-1,0,1", "strategy=fedsgd")
    assert done.code == 1
    rows = table()
    assert [rows[job]["status"] for job in "012"] == ["failed", "finished", "finished"]
    assert (rows["0"]["seed"], rows["0"]["strategy"], rows["0"]["rounds"]) == ("-1", "fedsgd", "0")
    negative = "seed=-1: must be at least 0 and below 2**63"
    assert rows["0"]["error"] == negative
    assert Path("sweep/0/error.txt").read_text() == f"{negative}\n"
    assert len(rows["1"]["digest"]) == 64
    assert rows["1"]["digest"] != rows["2"]["digest"]
    assert f"error: job 0: {negative}\n" in done.err
    assert "error: 1 of 3 jobs failed; all are in sweep/sweep.csv\n" in done.err
    assert f"  0  seed=-1: {negative}\n" in done.err
    mean = sum(float(rows[job]["test/accuracy"]) for job in "12") / 2
    assert f"{100 * mean:.2f} ± " in done.out


def test_the_same_command_again_trains_only_what_has_not_finished(cli: Any) -> None:
    command = (*SMALL, "resume=auto", "callbacks=checkpoint", "strategy.sampler.num=null,99")
    assert cli(*command).code == 1
    before = Path("sweep/0/summary.json").stat().st_mtime_ns
    done = cli(*command)
    assert done.code == 1
    assert f"finished already: {Path('sweep/0').resolve()}\n" in done.out
    assert "1 of 2 jobs failed" in done.err
    assert Path("sweep/0/summary.json").stat().st_mtime_ns == before
    done = cli(*command[:-1], "strategy.sampler.num=null", "strategy.rounds=2")
    assert (done.code, table()["0"]["rounds"]) == (0, "2")
    assert "finished already" not in done.out
    changed = cli(*command[:-1], "strategy.sampler.num=null", "strategy.rounds=2", "seed=5")
    assert "error: job 0: the results of " in changed.err
    assert "seed was 0, is 5" in changed.err


def test_what_a_job_before_left_is_not_this_sweeps_failure(cli: Any) -> None:
    assert cli(*SMALL, "seed=-1", "hydra.sweep.subdir=old").code == 1
    done = cli(*SMALL, "seed=0", "console=json")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert [row["status"] for row in table().values()] == ["failed", "finished"]


def test_a_name_that_is_swept_over_makes_folders_and_one_table(cli: Any) -> None:
    """The jobs' own `hydra.sweep.dir` has the name in it."""
    done = cli("-m", "name=a,b", "seed=0,-1", "strategy.rounds=1", "logger=none", "callbacks=none")
    assert done.code == 1
    (sweep,) = Path("outputs/multirun/train").iterdir()
    rows = table(str(sweep))
    assert [(row["name"], row["status"]) for row in rows.values()] == [
        ("a", "finished"), ("a", "failed"), ("b", "finished"), ("b", "failed")
    ]  # fmt: skip
    assert {Path(sweep, job).resolve().parents[1].name for job in rows} == {"a", "b"}
    assert "error: 2 of 4 jobs failed" in done.err
    away = cli("-m", "name=..,b", "strategy.rounds=1", "logger=none", "callbacks=none")
    assert (away.code, away.err.startswith("error: name=..: must be the name of a folder below")) == (1, True)
    assert not [*Path("outputs").glob("2*/**/metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_in_other_processes(cli: Any, monkeypatch: pytest.MonkeyPatch, launcher: str) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    parallel = ("hydra.launcher.n_jobs=2",) if launcher == "joblib" else ()
    done = cli(*SMALL, "seed=0,-1,1", f"hydra/launcher={launcher}", *parallel)
    assert done.code == 1
    rows = table()
    assert [rows[job]["status"] for job in "012"] == ["finished", "failed", "finished"]
    summary = json.loads(Path("sweep/0/summary.json").read_text())
    assert summary["command"].endswith(
        f" -m {' '.join(SMALL[1:])} seed=0,-1,1 hydra/launcher={launcher} {' '.join(parallel)}".rstrip()
    )
    assert cli("strategy.rounds=1", "logger=none", "callbacks=none", "hydra.run.dir=alone").code == 0
    assert json.loads(Path("alone/summary.json").read_text())["digest"] == rows["0"]["digest"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["random", "tpe", "cmaes"])
@pytest.mark.filterwarnings("default")
def test_optuna_finds_the_best_of_its_trials(cli: Any, sampler: str) -> None:
    search = ("+hparams_search=optuna_" + sampler, "hydra.sweeper.n_trials=3", "+model.optimizer.nesterov=false")
    assert cli(*SMALL, *search).code == 0
    best = max(float(row["test/accuracy"]) for row in table().values())
    assert f"best_value: {best}" in Path("sweep/optimization_results.yaml").read_text()


def test_a_row_replaces_the_jobs_earlier_one_and_brings_its_columns(tmp_path: Path) -> None:
    write_row(tmp_path, {"job": "0", "status": "failed", "seed": 1, "rounds": 0, "digest": "", "error": "no"})
    write_row(tmp_path, {"job": "1", "status": "finished", "lr": 2, "rounds": 3, "test/loss": 0.5, "digest": "d"})
    write_row(tmp_path, {"job": "0", "status": "finished", "seed": 1, "rounds": 3, "test/loss": 0.25, "digest": "e"})
    header = "job,status,seed,lr,rounds,test/loss,seconds,digest,ended,error"
    assert (tmp_path / "sweep.csv").read_text().split() == [
        header,
        "0,finished,1,,3,0.25,,e,,",
        "1,finished,,2,3,0.5,,d,,",
    ]
    assert read_table(tmp_path)[0] == ["seed", "lr"]


def test_the_best_is_first_and_a_loss_is_best_when_it_is_low(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"job": str(n), "status": "finished", "strategy": name, "seed": str(n), "test/loss": loss}
        for n, (name, loss) in enumerate([("a", "2.0"), ("b", "0.5"), ("b", "1.5"), ("c", "")])
    ]
    show(rows, ["strategy", "seed"], "test/loss", Path("x y"))
    lines = capsys.readouterr().out.split("\n")
    assert [line.split() for line in lines[3:5]] == [["b", "2", "1.0000", "±", "0.7071"], ["a", "1", "2.0000"]]
    assert "compare flrl-compare 'x y'" in lines
    show([{**row, "test/accuracy": "0.8632"} for row in rows[:1]], ["seed"], "test/accuracy", Path("x"))
    lines = capsys.readouterr().out.split("\n")
    assert [line.split() for line in (lines[1], lines[3])] == [["jobs", "test/accuracy", "(%)"], ["1", "86.32"]]


def test_a_runs_own_reason_stays(tmp_path: Path) -> None:
    started = time.time() - 10
    note_failure(tmp_path / "job", "first", started)
    note_failure(tmp_path / "job", "second", started)
    assert (tmp_path / "job" / "error.txt").read_text() == "first\n"
    note_failure(tmp_path / "job", "third", time.time() + 10)
    assert (tmp_path / "job" / "error.txt").read_text() == "third\n"


def test_workers_are_divided_among_jobs_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from flrl.backends.local import backend
    from flrl.cli.app import _at_once

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for n_jobs, cores in {1: 8, 2: 4, 3: 2, 20: 1, -1: 1, -5: 2}.items():
        monkeypatch.setenv("FLRL_JOBS", str(_at_once(n_jobs)))
        assert backend._cores() == cores
