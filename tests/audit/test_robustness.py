"""The audit of robust rules: its table and heat maps, from finished jobs made by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from flrl.audit.pictures import heat_maps
from flrl.audit.robustness import audit, maps_of, rows_of


def job(
    sweep: Path, name: str, adversary: str, rule: str, malicious: int, before: str | None = "none", **metrics: float
) -> None:
    folder = sweep / name
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(f"seed: 0\nvars: {{malicious: {malicious}}}\n")
    choices = {"adversary": adversary, "strategy/aggregator": rule, "strategy/aggregator/before": before}
    (folder / "environments.jsonl").write_text(json.dumps({"after_round": 0, "choices": choices}) + "\n")
    summary = {"seed": 0, "rounds": 3, "metrics": metrics, "wall_time_s": 1.5, "digest": name}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    job(tmp_path, "a", "none", "row_mean", 2, **{"test/accuracy": 0.9})
    job(tmp_path, "b", "none", "krum", 2, "nnm", **{"test/accuracy": 0.8})
    job(tmp_path, "c", "backdoor", "row_mean", 2, **{"test/accuracy": 0.85, "test/backdoor_success": 0.7})
    job(tmp_path, "d", "backdoor", "krum", 2, "nnm", **{"test/accuracy": 0.79, "test/backdoor_success": 0.1})
    job(tmp_path, "e", "ipm", "row_mean", 2, **{"test/accuracy": 0.1})
    (tmp_path / "f" / ".hydra").mkdir(parents=True)  # has not finished
    return tmp_path


def test_each_finished_job_is_a_row(sweep: Path) -> None:
    audit(sweep)
    with (sweep / "robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == ["a", "b", "c", "d", "e"]
    assert rows[3]["aggregator"] == "nnm, krum"
    assert [row["test/backdoor_success"] for row in rows] == ["", "", "0.7", "0.1", ""]
    assert (sweep / "robustness.png").stat().st_size > 10_000


def test_heat_maps_have_accuracy_success_and_cost(sweep: Path) -> None:
    attacked, success, cost = maps_of(rows_of(sweep))
    assert (attacked.rows, attacked.columns) == (["row_mean", "nnm, krum"], [("backdoor", "2"), ("ipm", "2")])
    assert attacked.values == [[0.85, 0.1], [0.79, None]]
    assert (success.columns, success.values) == ([("backdoor", "2")], [[0.7], [0.1]])
    assert [value for (value,) in cost.values] == pytest.approx([0.0, 0.1])
    figure = heat_maps([attacked, success, cost], "")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"85", "79", "10", "-", "70", "backdoor", "ipm"} <= set(texts)


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(cli: Any) -> None:
    short = (
        "-m", "+experiment=audit/robustness", "dataset=digits", "strategy.rounds=1", "strategy/aggregator=median",
        "adversary=backdoor", "adversary.size=2", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    assert cli(*short, "vars.malicious=2").code == 0
    checkpoint = Path("sweep/backdoor/median/2_0/checkpoints/round-00001/state.safetensors")
    written = checkpoint.stat().st_mtime_ns
    done = cli(*short, "vars.malicious=2,4")
    assert done.code == 0, done.err
    with Path("sweep/robustness.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["adversary/num"]) for row in rows] == [
        ("backdoor/median/2_0", "2"), ("backdoor/median/4_0", "4")
    ]  # fmt: skip
    assert all(0 <= float(row["test/backdoor_success"]) <= 1 for row in rows)
    assert checkpoint.stat().st_mtime_ns == written


def test_runs_of_several_seeds_are_averaged(sweep: Path) -> None:
    job(sweep, "g", "ipm", "row_mean", 2, **{"test/accuracy": 0.3})
    attacked = maps_of(rows_of(sweep))[0]
    assert attacked.values[0][1] == pytest.approx(0.2)


def test_a_sweep_without_a_finished_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no job of a sweep has finished there"):
        audit(tmp_path)
