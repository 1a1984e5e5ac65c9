"""The audit of many runs: bounds below the truth, coins and scores that no backend changes, sweeps as they end."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flrl.audit.__main__ import main
from flrl.audit.audited import Settings
from flrl.audit.privacy import audit
from flrl.privacy import epsilon, sampled_gaussian
from tests.audit.test_privacy import ALL_CANARIES, BOTH, ROUNDS, by_part, noise

SWEPT = (*ALL_CANARIES, "-m", "hydra.sweep.dir=sweep", "hydra/callbacks=privacy", "hydra.sweep.subdir=${hydra.job.num}")


def rows_of(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_bounds_of_runs_are_below_the_truth(cli: Any) -> None:
    """Twenty seeds: each run's bound, that of all runs together, and that over runs; a promise of a tenth is broken."""
    done = cli(*SWEPT, noise(1.0), f"seed={','.join(map(str, range(20)))}")
    assert done.code == 0, done.err
    true = epsilon(sampled_gaussian(1.0, 1.0, ROUNDS), delta=1e-5)
    assert true == pytest.approx(6.573, abs=0.01)
    bounds = []
    for number in range(20):
        found = audit("one", [Path(f"sweep/{number}")], Settings(epsilon=true))
        bounds.append(by_part(found.rows, "lower bound by guesses")[0]["value"])
    assert sum(bound <= true for bound in bounds) >= 19
    rows = rows_of("sweep/audit/result.csv")
    (pooled,), (many,) = (by_part(rows, f"lower bound by {which}") for which in ("guesses", "rates"))
    assert (pooled["setting"], pooled["runs"], pooled["canaries"]) == ("all runs", "20", "1200")
    assert max(np.mean(bounds), 1.5) < float(pooled["value"]) < true
    assert float(many["value"]) < true
    assert (many["runs"], many["guesses"]) == ("20", "10")
    assert {row["verdict"] for row in (pooled, many)} == {"no violation found"}
    done = cli("run=sweep", f"epsilon={true / 10}", main=main)
    assert done.code == 0, done.err
    assert "all runs: VIOLATION: lower bound" in done.out


@pytest.mark.slow
def test_settings_are_side_by_side(cli: Any) -> None:
    done = cli(*SWEPT, f"{noise(0.1)},10", "seed=0,1,2,3")
    assert done.code == 0, done.err
    rows = rows_of("sweep/audit/result.csv")
    names = ["noise_multiplier=0.1", "noise_multiplier=10"]
    assert list(dict.fromkeys(row["setting"] for row in rows)) == names
    values = [[float(row["value"]) for row in by_part(rows, "lower bound by guesses") if row["setting"] == name]
              for name in names]  # fmt: skip
    assert values[0][0] > 3 > values[1][0]
    result = json.loads(Path("sweep/audit/result.json").read_text())
    assert [len(folders) for folders in result["runs"].values()] == [4, 4]
    (Path("sweep/7") / "summary.json").unlink()
    assert cli("run=sweep", "~attacks.inversion", main=main).code == 0
    (left,) = by_part(rows_of("sweep/audit/result.csv"), "run")
    assert (left["setting"], left["missing"]) == (names[1], "sweep/7: has not finished")


@pytest.mark.slow
def test_released_models_of_all_rounds_are_recomputed(cli: Any) -> None:
    assert cli(*BOTH, "hydra.run.dir=run", "strategy.rounds=4").code == 0
    assert cli("run=run", main=main).code == 0
    last = [float(row["score"]) for row in rows_of("run/audit/canaries.csv") if row["unit"] == "sample"]
    assert cli("run=run", "released=all", main=main).code == 0
    mean = [float(row["score"]) for row in rows_of("run/audit/canaries.csv") if row["unit"] == "sample"]
    assert len(last) == len(mean) == 60
    assert last != mean
    assert np.corrcoef(last, mean)[0, 1] > 0.9


@pytest.mark.slow
def test_processes_have_the_coins_and_scores_of_one(cli: Any) -> None:
    for name, backend in (("a", "serial"), ("b", "process")):
        assert cli(*BOTH, f"backend={backend}", f"hydra.run.dir={name}").code == 0
        assert cli(f"run={name}", main=main).code == 0
    same_canaries("a", "b")


@pytest.mark.mpi
def test_ranks_have_the_coins_and_scores_of_one(cli: Any) -> None:
    assert cli(*BOTH, "hydra.run.dir=a").code == 0
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    for name, more in (("b", ()), ("c", ("backend.dedicated_server=true",))):
        command = ["mpiexec", "--oversubscribe", "-n", "3", sys.executable, "-m", "flrl.train"]
        subprocess.run([*command, *BOTH, "backend=mpi", *more, f"hydra.run.dir={name}"], check=True, env=environment)
    for name in "abc":
        assert cli(f"run={name}", main=main).code == 0
    same_canaries("a", "b")
    same_canaries("a", "c")


def same_canaries(a: str, b: str) -> None:
    digests = [json.loads(Path(f"{name}/metrics.jsonl").read_text().splitlines()[-1])["digest"] for name in (a, b)]
    assert digests[0] == digests[1]
    both = [rows_of(f"{name}/audit/canaries.csv") for name in (a, b)]
    assert len(both[0]) == 63
    for one, other in zip(*both, strict=True):
        assert {**one, "run": "", "setting": ""} == {**other, "run": "", "setting": ""}
