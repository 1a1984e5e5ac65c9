"""The audit of leakage: jobs are attacked once, and become a table and heat maps."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from flrl.audit.leakage import LeakageAudit, audit, maps_of, rows_of

SHORT = (
    "-m", "+experiment=audit/leakage", "dataset=digits", "strategy/transforms=none", "trainer.local_steps=1",
    "hydra.sweep.dir=sweep", "hydra.callbacks.leakage.attacks=[analytic,label_counts]",
)  # fmt: skip


def test_each_job_is_attacked_once(cli: Any) -> None:
    for _ in range(2):
        done = cli(*SHORT, "trainer.batch_size=1,2")
        assert done.code == 0, done.err
    assert "analytic" not in done.out  # the second time the results are there
    with Path("sweep/leakage.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["attack"], row["batch_size"], row["defence"]) for row in rows] == [
        ("analytic", "1", "none"), ("label_counts", "1", "none"), ("analytic", "2", "none"),
        ("label_counts", "2", "none"),
    ]  # fmt: skip
    assert float(rows[0]["mse"]) < 1e-9
    assert float(rows[1]["label_accuracy"]) == 1.0
    assert Path("sweep/leakage.png").stat().st_size > 5_000


def test_an_attack_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="there is no attack analitic; there are: all, analytic,"):
        LeakageAudit(attacks=["analitic"])


def job(sweep: Path, name: str, batch_size: int, transforms: str, **scores: Any) -> None:
    folder = sweep / name
    (folder / ".hydra").mkdir(parents=True)
    config = f"seed: 0\ntrainer: {{local_steps: 1, batch_size: {batch_size}}}\nstrategy: {{transforms: {transforms}}}\n"
    (folder / ".hydra" / "config.yaml").write_text(config)
    (folder / "summary.json").write_text(json.dumps({"seed": 0, "metrics": {"test/accuracy": 0.5}}))
    if scores:
        (folder / "attacks" / "all" / "1-0").mkdir(parents=True)
        result = {"attacks": {"dlg": scores, "gan": {"not_applied": "no scores"}}}
        (folder / "attacks" / "all" / "1-0" / "result.json").write_text(json.dumps(result))


def test_heat_maps_go_over_defences_steps_and_batches(tmp_path: Path) -> None:
    job(tmp_path, "a", 16, "{}", ssim=0.5, label_accuracy=1.0)
    job(tmp_path, "b", 4, "{}", ssim=0.75)
    job(tmp_path, "c", 4, "{top_k: {}, clip_norm: {}}", ssim=0.25)
    job(tmp_path, "d", 16, "{top_k: {}, clip_norm: {}}")  # has not been attacked
    rows = rows_of(tmp_path, "1-0")
    similar, labels = maps_of(rows)
    assert similar.columns == [("1 local step, batches of", "4"), ("1 local step, batches of", "16")]
    assert (similar.rows, similar.values) == (["none", "top_k, clip_norm"], [[0.75, 0.5], [0.25, None]])
    assert labels.values == [[None, 1.0], [None, None]]
    assert [row["not_applied"] for row in rows if row["attack"] == "gan"] == ["no scores"] * 3


def test_a_sweep_without_an_attacked_job_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no job of a sweep has been attacked there"):
        audit(tmp_path, "1-0")
