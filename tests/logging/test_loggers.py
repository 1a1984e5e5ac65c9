"""CSV, TensorBoard, W&B and loggers of one's own get every round; offline W&B runs are read back from their files."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import Logger
from torch import nn

from flrl.bound_model import BoundModel
from flrl.data import FederatedData, Splits, TensorSource
from flrl.data.pictures import save_partition
from flrl.logging.confusion import confusion
from flrl.logging.pictures import confusion_figure
from flrl.logging.wandb_files import last_step, records, run_id

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-hunter2"


def finished(path: Path) -> list[Any]:
    """All records, once W&B's own process has written the last one."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = list(records(path))
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"no exit record among {len(found)}")


def values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def rows(found: list[Any]) -> list[dict[str, Any]]:
    return [values(record.history.item) for record in found if record.WhichOneof("record_type") == "history"]


def summary(found: list[Any]) -> dict[str, Any]:
    together: dict[str, Any] = {}
    for record in found:
        if record.WhichOneof("record_type") == "summary":
            together |= values(record.summary.update)
    return together


def written(folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_an_offline_wandb_run_holds_it_all(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flrl.data.pictures.save_partition", save_partition)
    monkeypatch.setenv("SERVICE_TOKEN", SECRET)
    done = cli(
        "logger=wandb_offline", "tags=[a,b]", "name=study", "strategy.rounds=3", "hydra.run.dir=run",
        "logger.wandb.target=0.3", f"+vars={{x:'at {SECRET}',api_key:{SECRET[::-1]}}}", "evaluation.at_start=true",
    )  # fmt: skip
    assert done.code == 0
    assert done.err == ""
    assert len(done.out.splitlines()) == 1 + 1 + 3 + 3 + 1
    (path,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    found = finished(path)
    run = next(record.run for record in found if record.WhichOneof("record_type") == "run")
    assert (run.project, run.run_group, run.display_name, list(run.tags)) == ("flrl", "study", "study-0", ["a", "b"])
    assert run.job_type == "train"
    assert done.out.splitlines()[-1] == f"offline wandb sync {path.parents[1].absolute()}/offline-run-*-{run.run_id}"

    metrics, logged = written("run"), rows(found)
    assert [row["_step"] for row in logged] == [row["round"] for row in logged] == [0, 1, 2, 3]
    assert [row["test/accuracy"] for row in logged] == [row["test/accuracy"] for row in metrics]
    assert [row["objective"] for row in logged] == [row["test/accuracy"] for row in metrics]
    assert all("clients/table.path" in row and "clients/histogram/train/loss.bins" in row for row in logged[1:])
    assert sum(logged[1]["clients/histogram/train/loss.values"]) == 10
    table = json.loads((path.parent / "files" / logged[3]["clients/table.path"]).read_text())
    assert table["columns"] == ["client", "num_samples", "num_steps", "comm/up_bytes", "state", "train/loss"]
    assert [row[0] for row in table["data"]] == [*range(10)]
    losses = [row[-1] * row[1] for row in table["data"]]
    assert sum(losses) / 1438 == pytest.approx(metrics[3]["train/loss"])
    for name, row in (("partition", logged[0]), ("confusion", logged[3])):
        assert matplotlib.image.imread(path.parent / "files" / row[f"{name}.path"]).ndim == 3

    defined = {r.metric.name or r.metric.glob_name: r.metric for r in found if r.WhichOneof("record_type") == "metric"}
    assert defined["*"].step_metric == defined["test/accuracy"].step_metric == "round"
    assert (defined["test/accuracy"].summary.max, defined["test/loss"].summary.min) == (True, True)
    ends = summary(found)
    reached = next(row["round"] for row in metrics if row["test/accuracy"] >= 0.3)
    assert (ends["rounds_to_target"], ends["bytes_to_target"]) == (reached, reached * 52000)
    assert ends["test/accuracy"]["max"] == max(row["test/accuracy"] for row in metrics)
    assert ends["digest"] == metrics[-1]["digest"]

    artifacts = {r.request.log_artifact.artifact.type for r in found if r.request.HasField("log_artifact")}
    artifacts |= {record.artifact.type for record in found if record.WhichOneof("record_type") == "artifact"}
    assert {"model", "partition"} <= artifacts
    assert any(record.WhichOneof("record_type") == "stats" for record in found), "system metrics"
    configured = {item.key or ".".join(item.nested_key) for record in found for item in record.config.update}
    assert "strategy" in configured | {item.key for item in run.config.update}
    arguments = [*next(r.environment.args for r in found if r.environment.args)]
    assert "+vars=***" in arguments
    for file in path.parent.rglob("*"):
        assert not file.is_file() or not any(s.encode() in file.read_bytes() for s in (SECRET, SECRET[::-1])), file


def test_a_resume_goes_on_with_the_wandb_run(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even if the kill has torn the file: rounds that it lacks are logged by the resume, no other one twice."""
    monkeypatch.setattr("flrl.data.pictures.save_partition", save_partition)
    assert cli("logger=wandb_offline", "strategy.rounds=3", "hydra.run.dir=run").code == 0
    (first,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    kept = finished(first)
    assert last_step(Path("run"), run_id(Path("run")) or "") == 3
    whole, size = first.read_bytes(), first.stat().st_size
    while last_step(Path("run"), run_id(Path("run")) or "") > 1:  # cut it within what follows round 1
        size -= 50
        first.write_bytes(whole[:size])
    assert len(list(records(first))) < len(kept)
    time.sleep(1.1)  # W&B names folders by the second
    done = cli("resume=run", "strategy.rounds=4")
    assert done.code == 0, done.err
    first, second = sorted(Path("run/wandb").glob("offline-run-*/run-*.wandb"))
    assert first.name == second.name
    assert [row["_step"] for row in rows(list(records(first)))] == [0, 1]
    resumed = rows(finished(second))
    assert [row["_step"] for row in resumed] == [row["round"] for row in resumed] == [2, 3, 4]
    assert [row["test/accuracy"] for row in resumed] == [row["test/accuracy"] for row in written("run")[1:]]
    assert "partition.path" not in resumed[0]


def test_the_sweep_of_the_docs_is_one_of_flrl(cli: Any) -> None:
    """Each combination is a command line that runs; `wandb agent` replaces the last argument by it."""
    page = (ROOT / "docs" / "watching.md").read_text()
    sweep = yaml.safe_load(page.split("# sweep.yaml\n")[1].split("```")[0])
    program, logger, arguments = sweep["command"]
    assert (program, logger, arguments) == ("flrl-train", "logger=wandb", "${args_no_hyphens}")
    assert sweep["metric"] == {"name": "objective", "goal": "maximize"}
    chosen = {name: parameter["values"][-1] for name, parameter in sweep["parameters"].items()}
    overrides = [f"{name}={value}" for name, value in chosen.items()]
    assert cli(f"{logger}_offline", *overrides, "--cfg", "job", "--resolve").code == 0
    assert cli("logger=none", *overrides, "strategy.rounds=1", "hydra.run.dir=run").code == 0
    saved = yaml.safe_load(Path("run/.hydra/config.yaml").read_text())
    assert (saved["strategy"]["_target_"], saved["model"]["optimizer"]["lr"]) == ("flrl.strategies.FedProx", 0.1)


def test_the_jobs_of_a_sweep_are_runs_of_one_group_and_a_failed_one_has_failed(cli: Any) -> None:
    sweep = ("-m", "seed=0,1", "logger=wandb_offline", "strategy.rounds=1", "hydra.sweep.dir=sweeps/a")
    assert cli(*sweep, "model.optimizer.lr=1e38").code == 1
    (path,) = Path("sweeps/a").glob("1/wandb/offline-run-*/run-*.wandb")
    found = finished(path)
    assert next(r.run.run_group for r in found if r.WhichOneof("record_type") == "run") == "train/a"
    assert next(r.exit.exit_code for r in found if r.WhichOneof("record_type") == "exit") == 1


class Minimal(Logger):
    """A logger as any tracking service's is."""

    name, version = "minimal", ""

    def __init__(self, token: str) -> None:
        self.file = Path("minimal.jsonl")

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        Path("minimal.json").write_text(json.dumps(params))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def finalize(self, status: str) -> None:
        Path("status").write_text(status)


def test_loggers_of_lightning_and_of_ones_own_get_the_same_names(cli: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    own = f"+logger.mine={{_target_:{__name__}.Minimal,token:{SECRET}}}"
    assert cli("logger=[csv,tensorboard]", own, "strategy.rounds=2", "hydra.run.dir=run").code == 0
    lines = [line.split(",") for line in Path("run/csv/metrics.csv").read_text().splitlines()]
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    mine = [json.loads(line) for line in Path("minimal.jsonl").read_text().splitlines()]
    for name in ("test/accuracy", "test/loss", "train/loss", "comm/up_bytes", "time/round_s"):
        expected = [(row["round"], row[name]) for row in written("run")]
        column = lines[0].index(name)
        assert [(int(line[lines[0].index("step")]), float(line[column])) for line in lines[1:]] == expected
        assert [(row["step"], row[name]) for row in mine] == expected
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(round, np.float32(value)) for round, value in expected]
    assert Path("status").read_text() == "success"
    assert json.loads(Path("minimal.json").read_text())["logger"]["mine"]["token"] == "***"
    assert SECRET not in Path("run/csv/hparams.yaml").read_text()


class Larger(pl.LightningModule):
    """Class 1 where the second number, times a weight, is larger than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, 0], self.weight * x[:, 1]], dim=1)


class Sum(Larger):
    """No classifier."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).sum(dim=1)


def test_the_confusion_matrix_counts_what_the_global_model_says() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 5.0], [2.0, 1.0], [0.0, 1.0]])
    source = TensorSource(x, torch.tensor([0, 0, 1, 1, 1]))
    data = FederatedData(Splits(source, source), lambda num_samples, labels, rng: np.zeros(num_samples, int), seed=0)
    model = BoundModel(Larger())
    counts = confusion(model, data, torch.tensor([1.0]))
    assert counts is not None
    assert counts.tolist() == [[1, 1], [1, 2]]
    assert Counter(model.local.tolist()) == {1.0: 1}
    shares = confusion_figure(counts).axes[0].images[0].get_array()
    assert np.array_equal(shares, [[1 / 2, 1 / 2], [1 / 3, 2 / 3]])
    assert confusion(BoundModel(Sum()), data, torch.tensor([1.0])) is None
