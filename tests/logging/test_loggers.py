"""CSV, TensorBoard and W&B get every round; the offline W&B run is read back from its file."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
from wandb.proto.wandb_internal_pb2 import Record

from flrl.logging.pictures import partition_figure


def records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file: a 7-byte header, then LevelDB log blocks of 32 KiB with protobuf records."""
    data, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        if kind == 0:
            position += left
            continue
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def finished(path: Path) -> list[Record]:
    """All records, once W&B's own process has written the last one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"no exit record among {len(found)}")


def test_an_offline_wandb_run_holds_it_all(cli: Any) -> None:
    done = cli("logger=wandb_offline", "tags=[a,b]", "name=study", "strategy.rounds=3", "hydra.run.dir=run")
    assert done.code == 0
    assert done.err == ""
    assert len(done.out.splitlines()) == 1 + 3 + 3
    (path,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    found = finished(path)
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_group, run.display_name, list(run.tags)) == ("flrl", "study", "study-0", ["a", "b"])
    history = []
    for record in found:
        if record.WhichOneof("record_type") == "history":
            history.append({item.key or ".".join(item.nested_key): item.value_json for item in record.history.item})
    written = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    logged = [row for row in history if "test/accuracy" in row]
    assert [float(row["test/accuracy"]) for row in logged] == [row["test/accuracy"] for row in written]
    assert [json.loads(row["round"]) for row in logged] == [1, 2, 3]
    metrics = [record.metric for record in found if record.WhichOneof("record_type") == "metric"]
    assert any((m.name or m.glob_name) == "*" and m.step_metric == "round" for m in metrics)
    artifacts = {r.request.log_artifact.artifact.type for r in found if r.request.HasField("log_artifact")}
    artifacts |= {record.artifact.type for record in found if record.WhichOneof("record_type") == "artifact"}
    assert {"model", "partition"} <= artifacts
    configured = {item.key or ".".join(item.nested_key) for record in found for item in record.config.update}
    configured |= {item.key for item in run.config.update}
    assert "strategy" in configured
    (picture,) = Path("run/wandb").rglob("partition*.png")
    assert matplotlib.image.imread(picture).ndim == 3


def test_two_jobs_of_a_sweep_are_two_wandb_runs(cli: Any) -> None:
    assert cli("-m", "seed=0,1", "logger=wandb_offline", "strategy.rounds=1").code == 0
    assert len(list(Path("outputs/multirun/train").glob("*/[01]/wandb/offline-run-*/run-*.wandb"))) == 2


def test_csv_and_tensorboard(cli: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli("logger=[csv,tensorboard]", "strategy.rounds=2", "hydra.run.dir=run").code == 0
    written = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    lines = [line.split(",") for line in Path("run/csv/metrics.csv").read_text().splitlines()]
    column = lines[0].index("test/accuracy")
    assert [float(line[column]) for line in lines[1:]] == [row["test/accuracy"] for row in written]
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("test/accuracy")]
    assert points == [(row["round"], np.float32(row["test/accuracy"])) for row in written]


def test_the_partition_figure_shows_the_counts() -> None:
    counts = np.arange(6).reshape(3, 2)
    image = partition_figure(counts).axes[0].images[0]
    assert np.array_equal(image.get_array(), counts)
    many = partition_figure(np.zeros((1000, 10))).axes[0].images[0]
    assert many.get_array().shape == (100, 10)
