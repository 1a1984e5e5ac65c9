"""Every partition and every shift has one digest, wherever it runs. `pytest -m mpi` runs it."""

from pathlib import Path
from typing import Any

import pytest

from flrl.config import CONF_DIR
from tests.backends.test_digest_table import launch, outcome

PARTITIONS = sorted(path.stem for path in (CONF_DIR / "partition").glob("*.yaml") if path.stem != "natural")
SHIFTS = sorted(path.stem for path in (CONF_DIR / "partition" / "shift").glob("*.yaml"))
COMMON = (
    "strategy.rounds=3", "holdout=0.3", "held_out_clients=2", "evaluation=clients", "evaluation.finetune_steps=1",
    "adversary=label_flip", "adversary.clients=2", "logger=none", "callbacks=none", "log_clients=true",
)  # fmt: skip
SWEEPS = {
    "partitions": (len(PARTITIONS), (f"partition={','.join(PARTITIONS)}",)),
    "shifts": (len(SHIFTS), ("partition=dirichlet", f"partition/shift={','.join(SHIFTS)}")),
    "drifts": (
        len(SHIFTS) - 1,
        ("partition=temporal_drift", "partition.shift.length=2",
         f"partition/shift@partition.shift.shift={','.join(shift for shift in SHIFTS if shift != 'drift')}"),
    ),
}  # fmt: skip
BACKENDS = {
    "process x 2": (0, ("backend=process", "backend.workers=2", "backend.schedule=random")),
    "mpi x 3": (3, ("backend=mpi",)),
    "mpi x 3, dedicated server": (3, ("backend=mpi", "backend.dedicated_server=true")),
}

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]


def swept(folder: Path, sweep: str, processes: int, *arguments: str) -> list[dict[str, Any]]:
    number, own = SWEEPS[sweep]
    launch(folder, processes, "-m", *COMMON, *own, *arguments, f"hydra.sweep.dir={folder}")
    return [outcome(folder / str(job)) for job in range(number)]


@pytest.fixture(scope="module", params=SWEEPS)
def serial(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Any]]:
    runs = swept(tmp_path_factory.mktemp("serial"), request.param, 0)
    assert len({run["rounds"][-1]["digest"] for run in runs}) >= len(runs) - 2  # a partition of two names is one
    return request.param, runs


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_same_digests(serial: tuple[str, list[Any]], backend: str, tmp_path: Path) -> None:
    sweep, expected = serial
    processes, arguments = BACKENDS[backend]
    assert swept(tmp_path, sweep, processes, *arguments) == expected


def test_the_engines_that_end_in_the_same_bits_do_so_on_shifted_samples(tmp_path: Path) -> None:
    traced, eager, lightning = (
        swept(tmp_path / engine, "drifts", 0, f"trainer={engine}") for engine in ("traced", "eager", "lightning")
    )
    assert traced == eager
    assert [run["digests"] for run in traced] == [run["digests"] for run in lightning]
