"""A dedicated server: no sample and no index of any process's data is ever sent, and no process holds another's."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flrl.data.datasets import synthetic_classification
from flrl.data.federated import FederatedData
from flrl.data.partitions import iid
from flrl.runs.checkpoint import list_checkpoints, load_checkpoint

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec"))
DATA = ("dataset=synthetic_classification", "dataset.num_samples=300", "dataset.input_shape=[20]", "seed=5")
RUN = (
    *DATA, "partition.num_clients=6", "holdout=0.2", "evaluation.clients_every=1", "strategy=scaffold",
    "strategy.rounds=3", "strategy.sampler.num=4", "logger=none", "log_clients=true",
)  # fmt: skip
SENT = {"Prepare", "Setup", "Train", "Evaluate", "reduce", "over", "NoneType"}
ANSWERED = {"here", "Ready", "Started", "Trained", "Evaluated", "NoneType"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recorded")


@pytest.fixture(scope="module")
def processes(folder: Path) -> list[dict[str, Any]]:
    if not Path(MPIEXEC).exists():
        pytest.fail("there is no mpiexec: pip install 'flrl[dev]'")
    command = [
        MPIEXEC,
        "--oversubscribe",
        "--timeout",
        "200",
        "-n",
        "3",
        sys.executable,
        "-m",
        "tests.backends.recorder",
    ]
    command += [str(folder), *RUN, "backend=mpi", "backend.dedicated_server=true", f"hydra.run.dir={folder / 'run'}"]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"OMPI_MCA_btl": "self,sm", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return [pickle.loads((folder / f"rank{rank}.pickle").read_bytes()) for rank in range(3)]


@pytest.fixture(scope="module")
def data() -> FederatedData:
    splits = synthetic_classification(
        num_samples=300, test_samples=500, input_shape=[20], num_classes=5, separation=1.0, seed=5
    )
    return FederatedData(splits, lambda n, labels, rng: iid(n, labels, rng, num_clients=6), seed=5, holdout=0.2)


def traces(data: FederatedData) -> list[bytes]:
    """What would show that a sample or a list of indices was sent: a part of each sample, each run of three indices."""
    inputs = data.splits.train.inputs.numpy()  # type: ignore[attr-defined]
    parts = [row[start : start + 3].tobytes() for row in inputs for start in (0, 9)]
    for client in range(data.num_clients):
        indices = np.concatenate([data.train_indices(client), data.holdout_indices(client)])
        for run in np.lib.stride_tricks.sliding_window_view(indices, 3):
            parts += [run.astype(kind).tobytes() for kind in ("<i8", "<i4", "<i2")]
            parts += [b"".join(pickle.dumps(int(index), 5)[2:-1] for index in run)]
    return parts


def test_the_traces_would_be_found(data: FederatedData) -> None:
    found = pickle.dumps([data.train_indices(2), data.train_indices(3).tolist(), data.splits.train])
    assert sum(trace in found for trace in traces(data)) > 600


def test_no_sample_and_no_index_is_ever_sent(processes: list[dict[str, Any]], data: FederatedData) -> None:
    sent = b"|".join(record["data"] for process in processes for record in process["records"])
    assert len(sent) > 20000
    assert [trace for trace in traces(data) if trace in sent] == []


def test_messages_are_those_that_are_listed(processes: list[dict[str, Any]]) -> None:
    server, *clients = ([r for r in process["records"] if r["what"] != "buffer"] for process in processes)
    assert {record["what"] for record in server} == SENT
    assert {record["what"] for process in clients for record in process} == ANSWERED
    assert all(record["arrays"] == 0 for process in [server, *clients] for record in process)
    page = (ROOT / "docs" / "backends.md").read_text()
    assert [name for name in (SENT | ANSWERED) - {"NoneType"} if f"`{name}`" not in page] == []


def test_vectors_and_sums_travel_as_buffers(processes: list[dict[str, Any]]) -> None:
    server, *clients = ([r for r in process["records"] if r["what"] == "buffer"] for process in processes)
    size = 20 * 5 + 5
    assert {(record["kind"], len(record["data"])) for record in server} == {("Bcast", 4 * size)}
    reduced = [len(record["data"]) for process in clients for record in process if record["kind"] == "Reduce"]
    assert reduced == [2 * 8 * (2 * size + 1)] * 6  # two processes, three rounds: update, control and weight
    places = [record for process in clients for record in process if record["kind"] != "Reduce"]
    assert {record["kind"] for record in places} == {"Isend"}  # where client memory lies: numbers of files and offsets
    assert max(len(record["data"]) for record in places) < 4 * size


def test_what_clients_remember_is_never_sent(processes: list[dict[str, Any]], folder: Path) -> None:
    last = list_checkpoints(folder / "run")[-1]
    memory = load_checkpoint(last, {}).memory
    assert len(memory) == 5  # one client has taken part in no round
    sent = b"|".join(record["data"] for process in processes for record in process["records"])
    for own in memory.values():
        control = own["control"].numpy()
        assert len(control) == 105
        assert np.count_nonzero(control) > 90
        assert not [start for start in range(100) if control[start : start + 4].tobytes() in sent]


def test_each_process_holds_its_own_clients_and_no_others(processes: list[dict[str, Any]]) -> None:
    server, *clients = (process["held"] for process in processes)
    assert (server["samples"], server["test"]) == (0, 500)
    assert sum(process["samples"] for process in clients) == 300
    assert all(process["test"] == 0 for process in clients)
    for client in range(6):
        found = [process["clients"][client] for process in (server, *clients)]
        assert sorted(map(str, found)) == ["40", *[f"the samples of client {client} are not held here"] * 2]


def train(folder: Path, *arguments: str, processes: int = 0) -> subprocess.CompletedProcess[bytes]:
    """A run of three rounds, in this process's kind of environment, or under mpiexec with a dedicated server."""
    command = [sys.executable, "-m", "flrl.train", *DATA, "partition.num_clients=6", "strategy.rounds=3", "logger=none"]
    command += [*arguments, f"hydra.run.dir={folder}"]
    if processes:
        apart = ("backend=mpi", "backend.dedicated_server=true")
        command = [MPIEXEC, "--oversubscribe", "--timeout", "200", "-n", str(processes), *command, *apart]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"OMPI_MCA_btl": "self,sm", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=240)


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["fedamp", "apfl", "fedlin", "cfl"])
def test_strategies_with_more_for_each_client_have_the_digests_of_one_process(strategy: str, tmp_path: Path) -> None:
    """FedAMP's cloud models come with the tasks, which have no memory there."""
    for name, processes in (("serial", 0), ("apart", 3)):
        done = train(tmp_path / name, f"strategy={strategy}", processes=processes)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
    serial, apart = ((tmp_path / name / "digests.jsonl").read_text() for name in ("serial", "apart"))
    assert apart == serial


@pytest.mark.mpi
def test_training_on_everybodys_samples_is_refused(tmp_path: Path) -> None:
    done = train(tmp_path / "run", "strategy=centralized", processes=3)
    assert done.returncode != 0
    said = (
        "error: backend.dedicated_server=true: Centralized trains on the samples of all, which stay with their clients"
    )
    assert said in done.stderr.decode()
