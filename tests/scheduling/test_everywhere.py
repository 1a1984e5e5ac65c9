"""Schedules on virtual time end in the same bits wherever clients are trained, and when they are killed in flight."""

from pathlib import Path
from typing import Any

import pytest

from flrl.runs.rows import read_rows
from flrl.verify import main as verify
from tests.backends.test_digest_table import launch, outcome

CASES = ("buffered", "asynchronous", "deadline", "tiered")  # tests/conf/case
COMMON = ("logger=none", "log_clients=true", "callbacks.report=null")
RANDOM = "backend.schedule=random"


def swept(folder: Path, processes: int, *arguments: str) -> list[dict[str, Any]]:
    """Each case on one backend."""
    launch(folder, processes, "-m", f"+case={','.join(CASES)}", *COMMON, *arguments, f"hydra.sweep.dir={folder}")
    return [outcome(folder / str(job)) for job in range(len(CASES))]


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return swept(tmp_path_factory.mktemp("serial"), 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_have_the_bits_of_one(serial: list[dict[str, Any]], tmp_path: Path) -> None:
    assert swept(tmp_path, 0, "backend=process", "backend.workers=2", RANDOM) == serial


@pytest.mark.mpi
@pytest.mark.timeout(900)
@pytest.mark.parametrize("more", [RANDOM, "backend.dedicated_server=true"])
def test_three_ranks_have_the_bits_of_one(serial: list[dict[str, Any]], tmp_path: Path, more: str) -> None:
    assert swept(tmp_path, 3, "backend=mpi", more) == serial


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_in_flight(serial: list[dict[str, Any]], tmp_path: Path, case: str) -> None:
    folder = f"hydra.run.dir={tmp_path / 'run'}"
    launch(tmp_path, 0, f"+case={case}", *COMMON, "strategy.rounds=2", folder)
    launch(tmp_path, 0, f"+case={case}", *COMMON, "backend=process", "backend.workers=2", folder, "resume=auto")
    assert outcome(tmp_path / "run") == serial[CASES.index(case)]


@pytest.mark.slow
def test_rounds_in_flight_are_verified_and_a_client_of_an_earlier_model_is(tmp_path: Path, cli: Any) -> None:
    launch(tmp_path, 0, "+case=buffered", *COMMON, f"hydra.run.dir={tmp_path / 'run'}")
    late = [
        row for row in read_rows(tmp_path / "run" / "clients.jsonl") if row["round"] == 5 and not row.get("rejected")
    ]
    for row in late:
        done = cli(f"run={tmp_path / 'run'}", f"client={row['client_id']}", "round=5", main=verify)
        assert (done.code, "its update is the same" in done.out) == (0, True), done.err
    done = cli(f"run={tmp_path / 'run'}", main=verify)
    assert "rounds 1 to 5: every digest is the same" in done.out


@pytest.mark.mpi
@pytest.mark.timeout(900)
def test_samplers_have_one_digest_on_all_backends(tmp_path: Path) -> None:
    names = "weighted,importance,round_robin"
    sizes = ("partition=dirichlet", "partition.alpha=0.3", "strategy.rounds=4", "strategy.sampler.num=4")
    found = []
    for backend in (("backend=serial",), ("backend=process", "backend.workers=2", RANDOM), ("backend=mpi", RANDOM)):
        folder = tmp_path / backend[0].replace("=", "-")
        ranks = 3 if backend[0] == "backend=mpi" else 0
        launch(folder, ranks, "-m", f"strategy/sampler={names}", *sizes, *COMMON, *backend, f"hydra.sweep.dir={folder}")
        found.append([outcome(folder / str(job)) for job in range(3)])
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert len({run["digests"] for run in found[0]}) == 3
