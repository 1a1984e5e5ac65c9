"""Updates that leave a worker one by one leave it encoded: the bytes that are counted are those that move."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from flrl.aggregation import Aggregator, EveryUpdate, Mean, Median, merged
from flrl.backends.pool.encoded import decoded_into, leaving, vector_of
from flrl.backends.pool.messages import of_broadcast
from flrl.rounds import initial_state
from flrl.sampling import AllClients
from flrl.strategies import FedAvg, Scaffold
from flrl.transforms import Downlink, Sign, TopK, Transform
from flrl.types import Broadcast, ClientTask
from flrl.worker import Worker
from tests.backends.test_digest_table import launch, outcome
from tests.toys import make_worker
from tests.transforms.compression.table import COMPRESSORS
from tests.transforms.test_apply import SGD

ROOT = Path(__file__).parents[2]
MPIEXEC = shutil.which("mpiexec") or str(Path(sys.executable).with_name("mpiexec"))


def trained(worker: Worker, *, apart: bool) -> tuple[dict[str, torch.Tensor], list[int], int, int]:
    """The aggregate of three clients, two of which are trained elsewhere, their bytes, those that moved, and others."""
    size = worker.model.layout.size
    variables = {"control": torch.zeros(size)} if isinstance(worker.strategy, Scaffold) else {}
    broadcast = Broadcast(1, worker.model.vector.clone(), 30.0, variables, cohort=(0, 1, 2))
    tasks = [ClientTask(1, client, 10, 10.0) for client in range(3)]
    here, _ = worker.train(broadcast, tasks[:1], lambda report: None)
    there, reports = worker.train(
        broadcast, tasks[1:], lambda report: None, reducer=leaving(worker, broadcast, each=True) if apart else None
    )
    moved = others = 0
    if apart:
        parcel = there.parcel()
        assert parcel.summand is None
        moved = sum(tensor.nbytes for name, tensor in parcel.extras.items() if "/encoded/" in name)
        others = sum(tensor.nbytes for name, tensor in parcel.extras.items() if "/encoded/" not in name)
        assert decoded_into(here, [parcel], worker) == []
    else:
        here = merged([here, there])
    return here.result()[0], [report.up_bytes for report in reports], moved, others


@pytest.mark.parametrize("rule", [Mean(), Mean(cosines=True), Median()])
@pytest.mark.parametrize("name", ["top_k", "eden", "int8", "power_sgd", "gradient_pruning"])
def test_decoded_elsewhere_is_what_was_added_at_the_client(rule: Aggregator, name: str) -> None:
    coder = {"coder": COMPRESSORS[name]()}
    strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=coder, aggregator=rule)
    here, apart = (trained(make_worker(strategy), apart=apart) for apart in (False, True))
    assert here[1] == apart[1]
    assert apart[2] == sum(apart[1])
    assert apart[3] == 2 * 8  # weights
    assert torch.equal(here[0]["update"].view(torch.int64), apart[0]["update"].view(torch.int64))


def test_what_is_not_encoded_moves_as_it_is() -> None:
    """SCAFFOLD's variates, float64 as they are summed, and counted in float32."""
    strategy = Scaffold(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms={"sign": Sign()})
    here, apart = (trained(make_worker(strategy), apart=apart) for apart in (False, True))
    assert all(torch.equal(here[0][name], apart[0][name]) for name in ("update", "control"))
    assert (apart[2], apart[3]) == (2 * (4 + 3), 2 * (8 * 18 + 8))
    assert apart[1] == [4 + 3 + 4 * 18] * 2


def test_a_model_that_is_encoded_moves_so() -> None:
    coder = Downlink(codec=Sign())
    worker = make_worker(FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms={"down": coder}))
    broadcast, _ = worker.strategy.plan(
        initial_state(worker.strategy, worker.model.vector.clone(), worker.model.layout, 0),
        worker.data.sizes,
        0,
        worker.model.layout,
    )
    moved = of_broadcast(broadcast)
    assert [(name, tensor.nbytes) for name, tensor in moved.items()] == [("encoded", broadcast.payload["vector"])]
    assert torch.equal(vector_of(moved, worker), broadcast.vector)
    assert vector_of({"vector": broadcast.vector}, worker) is broadcast.vector


def test_only_what_leaves_by_itself_and_is_encoded_is_kept_so() -> None:
    def kind(rule: Aggregator, *, each: bool, **transforms: Transform) -> str:
        strategy = FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms=transforms, aggregator=rule)
        worker = make_worker(strategy)
        return type(leaving(worker, Broadcast(1, worker.model.vector, 1.0), each=each)).__name__

    coder = TopK(share=0.5)
    assert kind(Mean(), each=False, coder=coder) == "MeanReducer"
    assert kind(Mean(), each=True, coder=coder) == "EncodedReducer"
    assert kind(Mean(), each=True) == "MeanReducer"
    assert kind(Median(), each=False, coder=coder) == "EncodedReducer"
    assert kind(EveryUpdate(), each=False, coder=coder) == "EncodedReducer"
    assert kind(Median(), each=False) == "RowsReducer"
    worker = make_worker(FedAvg(rounds=1, sampler=AllClients(), server_optimizer=SGD, transforms={"coder": coder}))
    reducer = leaving(worker, Broadcast(1, worker.model.vector, 1.0), each=True)
    with pytest.raises(TypeError, match="merged by the controller"):
        reducer.merge([])
    with pytest.raises(TypeError, match="aggregated by the controller"):
        reducer.result()


CHOICES = (
    "top_k", "random_k", "threshold", "qsgd", "int8", "int4", "terngrad", "sign", "ef_sign", "power_sgd", "drive",
    "eden", "cast", "gradient_pruning",
)  # fmt: skip
RUN = (
    "dataset=synthetic_classification", "dataset.num_samples=120", "dataset.input_shape=[6]", "model=mlp_2nn",
    "partition.num_clients=6", "strategy.rounds=2", "strategy.sampler.num=4", "logger=none", "log_clients=true",
)  # fmt: skip
RULES = ("mean", "median")
BACKENDS: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {  # MPI processes, rules, overrides
    "process x 2": (0, ("median",), ("backend=process", "backend.workers=2")),
    "mpi x 3": (3, ("median",), ("backend=mpi",)),
    "mpi x 3, dedicated server": (3, RULES, ("backend=mpi", "backend.dedicated_server=true")),
}


def swept(folder: Path, processes: int, *arguments: str, rules: Sequence[str] = RULES) -> dict[str, Any]:
    """A run with each compressor and each rule."""
    sweep = (f"strategy/transforms={','.join(CHOICES)}", f"strategy/aggregator={','.join(rules)}")
    launch(folder, processes, "-m", *RUN, *sweep, *arguments, f"hydra.sweep.dir={folder}")
    keys = [f"{choice}, {rule}" for choice in CHOICES for rule in rules]
    return {key: outcome(folder / str(job)) for job, key in enumerate(keys)}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    runs = swept(tmp_path_factory.mktemp("serial"), 0)
    assert len({run["rounds"][-1]["digest"] for run in runs.values()}) == len(CHOICES) * len(RULES)
    return runs


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.mpi if processes else pytest.mark.slow)
        for name, (processes, *_) in BACKENDS.items()
    ],
)
def test_every_compressor_has_one_digest(serial: dict[str, Any], backend: str, tmp_path: Path) -> None:
    processes, rules, overrides = BACKENDS[backend]
    expected = {key: run for key, run in serial.items() if key.endswith(rules)}
    assert swept(tmp_path, processes, *overrides, rules=rules) == expected


@pytest.mark.mpi
@pytest.mark.parametrize("rule", RULES)
def test_counted_bytes_are_those_that_move(rule: str, tmp_path: Path) -> None:
    """With a dedicated server, of all buffers that other processes send; each is rounded up to 64 bytes."""
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
    command += [str(tmp_path), *RUN, "strategy/transforms=drive", f"strategy/aggregator={rule}", "backend=mpi"]
    command += ["backend.dedicated_server=true", f"hydra.run.dir={tmp_path / 'run'}"]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment |= {"OMPI_MCA_btl": "self,sm", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    counted = sum(row.get("comm/up_bytes", 0) for row in rows)
    moved, parts = 0, []
    for rank in (1, 2):
        records = pickle.loads((tmp_path / f"rank{rank}.pickle").read_bytes())["records"]
        assert "Reduce" not in {record["kind"] for record in records}
        for record in records:
            if record["what"] == "Trained":
                specs = pickle.loads(record["data"])[1]
                parts += [shape[0] for name, _, shape, _ in specs.entries if "/encoded/" in name]
            elif record["what"] == "buffer":
                moved += len(record["data"])
    assert len(parts) == 2 * 4
    assert sum(parts) == counted
    assert moved == sum(-(-part // 64) * 64 + 64 for part in parts)  # the buffer, and the weight
