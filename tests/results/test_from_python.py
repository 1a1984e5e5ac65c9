"""`flrl.train` and `flrl.load` give what the command line gives."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import flrl
from flrl.results import Run

ROOT = Path(__file__).parents[2]
SMALL = ("strategy.rounds=2", "logger=none", "callbacks=none")


def test_train_from_python_is_the_command(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["my_script.py"])
    assert cli(*SMALL, "hydra.run.dir=command", "log_clients=true").code == 0
    run = flrl.train(*SMALL, "hydra.run.dir=python", "log_clients=true")
    other = flrl.load("command")
    assert isinstance(run, Run)
    assert (run.digest, run.finished, run.seed) == (other.digest, True, 0)
    assert run.metrics["digest"].tolist() == other.metrics["digest"].tolist()
    assert (list(run.metrics.index), run.choices["strategy"]) == ([1, 2], "fedavg")
    assert run.clients.loc[(2, 3), "num_samples"] == len(run.partition[3])
    assert sum(map(len, run.partition)) == 1438
    assert run.summary["digest"] == run.digest
    assert run.overrides == [*SMALL, "log_clients=true"]
    weights = run.model().state_dict()
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        "net.1.weight": (10, 64), "net.1.bias": (10,)
    }  # fmt: skip
    assert "2 of 2 rounds" in repr(run)


WRONG = {
    "seeed=1": "seeed=1: there is no such key; did you mean seed or partition.seed?",
    "strategy.rounds=-1": "strategy.rounds=-1: must be at least 1",
    "resume=nowhere": "resume=nowhere: there is no run in this folder",
    "--nonsense": "--nonsense: not a command line of flrl-train",
    "-m": "-m: from Python a sweep is a loop, [flrl.train(f'seed={seed}') for seed in range(3)]",
}


@pytest.mark.parametrize(("override", "message"), WRONG.items(), ids=WRONG)
def test_errors_are_exceptions_with_the_commands_line(cli: Any, override: str, message: str) -> None:
    before = sys.argv
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        flrl.train(override)
    assert str(error.value) == message
    assert sys.argv is before


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no run in this folder$"):
        flrl.load(tmp_path)
    (tmp_path / "a" / ".hydra").mkdir(parents=True)
    (tmp_path / "a" / ".hydra" / "config.yaml").write_text("seed: 3\nstrategy: {rounds: 2}\n")
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(FileNotFoundError, match=r"it holds 1 runs: flrl.results.runs\("):
        flrl.load(tmp_path)
    run = flrl.load(tmp_path / "a")
    assert (run.seed, run.digest, run.summary, run.finished, len(run.metrics)) == (3, "", {}, False, 0)
    with pytest.raises(FileNotFoundError, match="a run writes it with log_clients=true"):
        run.clients  # noqa: B018
    with pytest.raises(FileNotFoundError, match="the run has not finished"):
        run.model()


def test_the_page_on_python_runs_as_it_stands(cli: Any) -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    first, second, parts = re.findall(r"```python\n(.*?)```", text, re.S)
    assert (ROOT / "README.md").read_text().count(first) == 1
    here: dict[str, Any] = {}
    small = ", ".join(f'"{key}"' for key in (*SMALL, "hydra.run.dir=outputs/multirun/0"))
    exec(first.replace('"+experiment=mnist_fedavg"', small), here)
    assert here["run"].seed == 1
    exec(second, here)
    assert here["rows"]["digest"].iloc[-1] == here["run"].digest
    exec(parts, here)
    assert tuple(here["update"].shape) == (1000,)
    assert any(here["update"].equal(row) for row in here["rows"])
    assert (len(here["owner"]), here["owner"].max(), len(set(here["cohort"].tolist()))) == (1000, 4, 3)
