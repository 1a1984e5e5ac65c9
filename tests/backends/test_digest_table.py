"""One experiment has one digest, wherever it runs: the table of docs/backends.md. `pytest -m mpi` runs it.

Four experiments (tests/conf/case/), three seeds, each backend one sweep in one launch; all rounds, clients' rows and
metrics are compared, not only the last digest.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CASES = ("mnist", "scaffold", "dropout_batchnorm", "dp_sgd")
SEEDS = (0, 1, 2)
ENGINES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # name to overrides, and the cases it can train
    "vectorized": (("trainer=vectorized",), ("mnist", "scaffold", "dp_sgd")),
    "traced, fused": (("trainer=traced", "trainer.fuse=true"), ("mnist", "scaffold", "dropout_batchnorm")),
}
MPIEXEC = shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec"))
RANDOM = "backend.schedule=random"
BACKENDS: dict[str, tuple[int, tuple[str, ...]]] = {  # name to MPI processes (0: no mpiexec) and overrides
    "process x 2": (0, ("backend=process", "backend.workers=2", RANDOM)),
    "process x 3, assigned by size": (0, ("backend=process", "backend.workers=3")),
    "mpi, alone": (0, ("backend=mpi", RANDOM)),
    "mpi x 1": (1, ("backend=mpi", RANDOM)),
    "mpi x 2": (2, ("backend=mpi", RANDOM)),
    "mpi x 3": (3, ("backend=mpi", RANDOM)),
    "mpi x 4": (4, ("backend=mpi", RANDOM)),
    "mpi x 3, dedicated server": (3, ("backend=mpi", "backend.dedicated_server=true")),
}
Runs = dict[tuple[str, int], dict[str, Any]]

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]


def launch(folder: Path, processes: int, *arguments: str) -> None:
    """Run `flrl-train` with the given arguments, under mpiexec if that is asked for."""
    command = [
        sys.executable,
        "-m",
        "flrl.train",
        "--config-dir=tests/conf",
        f"paths.data_dir={ROOT / 'data'}",
        *arguments,
    ]
    if processes:
        command = [MPIEXEC, "--oversubscribe", "--timeout", "800", "-n", str(processes), *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMPI_MCA_btl": "self,sm"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=850)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]


def outcome(folder: Path) -> dict[str, Any]:
    """All that must not depend on where a run was trained."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "rounds": [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows],
        "clients": (folder / "clients.jsonl").read_text(),
        "digests": (folder / "digests.jsonl").read_text(),
        "model": (folder / "model.safetensors").read_bytes(),
    }


def swept(folder: Path, processes: int, *arguments: str, cases: Sequence[str] = CASES) -> Runs:
    """Each case and seed on one backend."""
    sweep = (f"+case={','.join(cases)}", f"seed={','.join(map(str, SEEDS))}", "logger=none", "log_clients=true")
    launch(folder, processes, "-m", *sweep, *arguments, f"hydra.sweep.dir={folder}")
    keys = [(case, seed) for case in cases for seed in SEEDS]
    return {key: outcome(folder / str(job)) for job, key in enumerate(keys)}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = swept(tmp_path_factory.mktemp("serial"), 0)
    assert len({run["rounds"][-1]["digest"] for run in runs.values()}) == len(CASES) * len(SEEDS)
    assert all(len(run["rounds"]) == 5 for run in runs.values())
    for (case, seed), run in runs.items():
        print(f"{case} {seed} {run['rounds'][-1]['digest']}")
    return runs


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_digests(serial: Runs, backend: str, tmp_path: Path) -> None:
    processes, overrides = BACKENDS[backend]
    assert swept(tmp_path, processes, *overrides) == serial


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_with_bits_of_their_own_have_the_same_everywhere(engine: str, tmp_path: Path) -> None:
    overrides, cases = ENGINES[engine]
    alone = swept(tmp_path / "serial", 0, *overrides, cases=cases)
    assert len({run["rounds"][-1]["digest"] for run in alone.values()}) == len(cases) * len(SEEDS)
    for backend in ("process x 2", "mpi x 3"):
        processes, others = BACKENDS[backend]
        assert swept(tmp_path / backend, processes, *overrides, *others, cases=cases) == alone


def test_resumed_at_round_3_from_three_ranks_in_one_process(serial: Runs, tmp_path: Path, cli: Any) -> None:
    swept(tmp_path, 3, "backend=mpi", RANDOM, "strategy.rounds=3")
    for job, key in enumerate(serial):
        done = cli("strategy.rounds=5", "backend=serial", f"resume={tmp_path / str(job)}")
        assert done.code == 0, done.err
        assert "resumed after round 3" in done.out
        assert outcome(tmp_path / str(job)) == serial[key]


def test_resumed_from_one_process_on_two_ranks(serial: Runs, tmp_path: Path, cli: Any) -> None:
    case = ("scaffold", 1)
    common = ("+case=scaffold", "seed=1", "logger=none", "log_clients=true")
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    launch(tmp_path, 0, *common, "strategy.rounds=2", folder)
    launch(tmp_path, 2, *common, "backend=mpi", folder, "resume=auto")
    assert outcome(tmp_path / "run") == serial[case]
