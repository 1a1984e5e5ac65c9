"""The comparison of strategies: its table, page and picture, from finished jobs made by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flrl.audit.comparison import compare, figure_of, page_of, rows_of, spread_of
from flrl.config import CONF_DIR

PERSONAL = "clients/personal/accuracy_mean"
EXPERIMENT = CONF_DIR / "experiment" / "comparison.yaml"


def job(sweep: Path, strategy: str, partition: str, seed: int, **metrics: float) -> None:
    folder = sweep / partition / strategy / str(seed)
    (folder / ".hydra").mkdir(parents=True)
    alpha = "{alpha: 0.1}" if partition == "dirichlet" else "{}"
    (folder / ".hydra" / "config.yaml").write_text(f"seed: {seed}\npartition: {alpha}\n")
    choices = {"strategy": strategy, "partition": partition}
    (folder / "environments.jsonl").write_text(json.dumps({"after_round": 0, "choices": choices}) + "\n")
    summary = {"seed": seed, "rounds": 50, "metrics": metrics, "wall_time_s": 20.0 + seed, "digest": f"{seed}"}
    (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    for seed, accuracy in enumerate((0.80, 0.82, 0.87)):
        job(tmp_path, "fedavg", "dirichlet", seed, **{"test/accuracy": accuracy})
        job(tmp_path, "ditto", "dirichlet", seed, **{"test/accuracy": 0.8, PERSONAL: 0.9 + 0.01 * seed})
    job(tmp_path, "fedavg", "iid", 0, **{"test/accuracy": 0.85})
    (tmp_path / "iid" / "ditto" / "0" / ".hydra").mkdir(parents=True)  # has not finished
    return tmp_path


def test_each_finished_job_is_a_row(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(sweep)
    with (sweep / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert {row["partition"] for row in rows} == {"dirichlet(0.1)", "iid"}
    assert [row[PERSONAL] for row in rows if row["strategy"] == "ditto"] == ["0.9", "0.91", "0.92"]
    assert (sweep / "comparison.png").stat().st_size > 10_000
    assert (sweep / "comparison.md").read_text() == page_of(rows_of(sweep))
    assert capsys.readouterr().out.split() == [str(sweep / f"comparison.{kind}") for kind in ("csv", "png", "md")]


def test_means_and_deviations_are_over_seeds(sweep: Path) -> None:
    rows = rows_of(sweep)
    found = spread_of(rows, "test/accuracy", strategy="fedavg", partition="dirichlet(0.1)")
    assert found == pytest.approx((0.83, 0.036055512754639896, 3))  # sqrt((0.03^2 + 0.01^2 + 0.04^2) / 2)
    assert spread_of(rows, "test/accuracy", strategy="fedavg", partition="iid") == (0.85, 0.0, 1)
    assert spread_of(rows, PERSONAL, strategy="fedavg") is None
    lines = page_of(rows).splitlines()
    assert "### dirichlet(0.1), 50 rounds, 3 seeds, accuracy in %" in lines
    assert "| `fedavg` | 83.0 ± 3.6 |  | 21 |" in lines
    assert "| `ditto` | 80.0 ± 0.0 | 91.0 ± 1.0 | 21 |" in lines
    assert "| `fedavg` | 85.0 ± 0.0 |  | 20 |" in lines


def test_a_bar_for_each_model_of_each_strategy(sweep: Path) -> None:
    dirichlet, iid = figure_of(rows_of(sweep)).axes
    heights = [[bar.get_height() for bar in bars.patches] for bars in dirichlet.containers if hasattr(bars, "patches")]
    assert sorted(map(sorted, heights)) == [pytest.approx([80.0, 83.0]), pytest.approx([91.0])]
    assert [label.get_text() for label in iid.get_xticklabels()] == ["ditto", "fedavg"]


def test_a_sweep_without_a_finished_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no job of a sweep has finished there"):
        compare(tmp_path)


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(cli: Any) -> None:
    short = ("-m", "+experiment=comparison", "dataset=digits", "strategy.rounds=1", "hydra.sweep.dir=sweep", "seed=0")
    short = (*short, "partition.num_clients=10", "strategy.sampler.num=2", "partition.min_samples=5")
    assert cli(*short, "strategy=fedavg", "partition=iid").code == 0
    checkpoint = Path("sweep/iid/fedavg/0/checkpoints/round-00001/state.safetensors")
    written = checkpoint.stat().st_mtime_ns
    done = cli(*short, "strategy=fedavg,scaffold", "partition=iid,dirichlet")
    assert done.code == 0, done.err
    with Path("sweep/comparison.csv").open() as file:
        rows = {row["job"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["dirichlet/fedavg/0", "dirichlet/scaffold/0", "iid/fedavg/0", "iid/scaffold/0"]
    assert all(0 <= float(row["test/accuracy"]) <= 1 for row in rows.values())
    assert checkpoint.stat().st_mtime_ns == written


def test_all_that_the_sweep_names_is_there() -> None:
    """A choice that is not would end the sweep in its middle."""
    params = yaml.safe_load(EXPERIMENT.read_text())["hydra"]["sweeper"]["params"]
    for group in ("strategy", "partition"):
        for choice in params[group].split(","):
            assert (CONF_DIR / group / f"{choice}.yaml").is_file(), choice
