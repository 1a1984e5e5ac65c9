"""Secure aggregation on every backend: the bits, and what a dedicated server receives. `pytest -m mpi` runs it."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.backends.test_digest_table import BACKENDS, MPIEXEC, ROOT, launch, outcome

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]

RUN = ("strategy.rounds=2", "logger=none", "log_clients=true", "partition.num_clients=12")
CASES: dict[str, tuple[str, ...]] = {
    "fedavg": ("strategy=fedavg", "strategy/transforms=[clip_norm,gaussian_noise,secagg]"),
    "scaffold": (
        "strategy=scaffold",
        "strategy.sampler.num=12",
        "strategy/transforms=[clip_norm,secagg]",
        "strategy.transforms.secagg.dropouts={share_keys:0.05,masked_input:0.1,unmasking:0.05}",
        "seed=3",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_backend_gives_the_same_digests(case: str, tmp_path: Path) -> None:
    launch(tmp_path, 0, *RUN, *CASES[case], f"hydra.run.dir={tmp_path / 'serial'}")
    serial = outcome(tmp_path / "serial")
    for place, backend in enumerate(("process x 2", "mpi x 3", "mpi x 3, dedicated server")):
        processes, overrides = BACKENDS[backend]
        launch(tmp_path, processes, *RUN, *CASES[case], *overrides, f"hydra.run.dir={tmp_path / str(place)}")
        assert outcome(tmp_path / str(place)) == serial, backend
    if case == "fedavg":
        plain = (*CASES[case][:-1], "strategy/transforms=[clip_norm,gaussian_noise]")
        launch(tmp_path, 0, *RUN, *plain, f"hydra.run.dir={tmp_path / 'plain'}")
        without = outcome(tmp_path / "plain")
        assert [row["digest"] for row in without["rounds"]] == [row["digest"] for row in serial["rounds"]]
    else:
        assert sum(row.get("secagg/lost", 0) for row in serial["rounds"]) > 0


SIZE = 5 * 200 + 5
DATA = ("dataset=synthetic_classification", "dataset.num_samples=300", "dataset.input_shape=[200]", "seed=5")
TWO = (
    *DATA, "partition.num_clients=6", "strategy=fedavg", "strategy.rounds=3", "strategy.sampler.num=2", "logger=none",
    "log_clients=true", "backend=mpi", "backend.dedicated_server=true",
)  # fmt: skip


def recorded(folder: Path, *overrides: str) -> list[bytes]:
    """What processes 1 and 2 send to process 0, with one client of two each: sums first, then all else."""
    folder.mkdir()
    command = [MPIEXEC, "--oversubscribe", "--timeout", "200", "-n", "3", sys.executable, "-m"]
    command += ["tests.backends.recorder", str(folder), *TWO, *overrides, f"hydra.run.dir={folder / 'run'}"]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"OMPI_MCA_btl": "self,sm", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    processes: list[Any] = [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in (1, 2)]
    records = [record for process in processes for record in process["records"]]
    sums = [record["data"] for record in records if record["kind"] == "Reduce"]
    return [*sums, b"|".join(record["data"] for record in records if record["kind"] != "Reduce")]


def test_a_dedicated_server_receives_no_update_that_is_not_masked(tmp_path: Path) -> None:
    """Without masks each sum that a process sends is one client's update; with them it is noise, for the same model."""
    *plain, _ = recorded(tmp_path / "plain")
    *masked, others = recorded(tmp_path / "masked", "strategy/transforms=secagg")
    digests = [
        [json.loads(line)["digest"] for line in (tmp_path / name / "run/metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "masked")
    ]
    assert digests[0] == digests[1]
    assert [len(data) for data in masked] == [len(data) for data in plain] == [2 * 8 * (SIZE + 1)] * 6
    seen, noises = b"|".join([*masked, others]), []
    for before, after in zip(plain, masked, strict=True):
        parts = np.frombuffer(before, np.float64).reshape(2, -1)
        words = (parts * [[2.0**24], [2.0**64]]).astype(np.int64)
        if not words.any():  # of the two clients, this process had none
            assert not any(after)
            continue
        assert min(len(telling(words)), len(telling(parts))) > SIZE // 2
        assert [trace for trace in telling(words) + telling(parts) if trace in seen] == []
        noise = np.frombuffer(after, np.int64).astype(np.float64)
        assert abs(np.corrcoef(noise, words.flatten().astype(np.float64))[0, 1]) < 0.1
        noises.append(after)
    assert len(noises) > 3
    counts = np.bincount(np.frombuffer(b"".join(noises), np.uint8), minlength=256)
    assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
    assert stats.chisquare(np.bincount(np.frombuffer(plain[0], np.uint8), minlength=256)).pvalue < 1e-100


def telling(parts: np.ndarray) -> list[bytes]:
    """Those of an update's numbers that are not in a message by chance: with three bytes that are not all 0 or 1."""
    rows = np.ascontiguousarray(parts[:, :-1]).reshape(-1, 1).view(np.uint8)
    return [row.tobytes() for row in rows[((rows != 0) & (rows != 255)).sum(1) >= 3]]
