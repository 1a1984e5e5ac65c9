"""Under MPI a job that fails in one process, while others are busy, leaves the sweep's next job as it is alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flrl.sweeps import read_table
from tests.faults import FaultyTrainer

ROOT = Path(__file__).parents[2]
SWEEP = (
    "-m", "seed=0,1", "strategy.rounds=3", "partition.num_clients=6", "logger=none", "trainer=eager",
)  # fmt: skip


class Slowly(FaultyTrainer):
    """Client 3 fails in round 2, as FaultyTrainer does; those after it take a second then."""

    def fit(self, problem, hooks):  # type: ignore[no-untyped-def]
        import time

        time.sleep(float(problem.task.round == 2 and problem.task.client_id > 3 and self.fault == "raise"))
        return super().fit(problem, hooks)


def run(folder: Path, *arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*launcher, sys.executable, "-m", "flrl.train", *SWEEP, *arguments, f"hydra.sweep.dir={folder}"]
    return subprocess.run(
        command, cwd=folder.parent, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


@pytest.mark.mpi
def test_the_next_job_is_as_it_is_alone(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    faulty = (
        "trainer._target_=tests.backends.test_failed_jobs.Slowly", "+trainer.fault=raise", "+trainer.round=2",
        f"+trainer.mark={tmp_path}/mark", "backend=mpi",
    )  # fmt: skip
    mpi = ("mpiexec", "--allow-run-as-root", "--oversubscribe", "-n", "3")
    done = run(tmp_path / "mpi", *faulty, launcher=mpi)
    assert done.returncode == 1
    assert [row["status"] for row in read_table(tmp_path / "mpi")[1]] == ["failed", "finished"]
    first, second = (
        json.loads((tmp_path / name / "1" / "summary.json").read_text())["digest"] for name in ("alone", "mpi")
    )
    assert first == second
