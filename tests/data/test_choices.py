"""Every dataset of conf/dataset/ runs for a round, from tiny files in their real formats where it reads any."""

import json
from pathlib import Path
from typing import Any

import pytest

from flrl.config import CONF_DIR

DOWNLOADED = {"mnist", "fashion_mnist"}  # their files are checked by SHA-256; the slow tests read them
MODELS = {"text": "char_lstm", "shakespeare": "char_transformer"}
MODELS |= dict.fromkeys(("diabetes", "california_housing"), "linear_regression")
CLIENTS = {"synthetic_fedprox": 30, "femnist": 4, "shakespeare": 4, "leaf": 4, "text": 2, "image_folder": 2}
POOLED = {"emnist", "shakespeare", "synthetic_fedprox"}  # pixels in a view, characters, two numbers
FAST = {"text"}
PATHS = [path.relative_to(CONF_DIR) for path in sorted((CONF_DIR / "dataset").glob("*.yaml"))]


@pytest.mark.parametrize("path", [
    pytest.param(path, marks=[pytest.mark.slow] * (path.stem not in FAST), id=path.stem)
    for path in PATHS if path.stem not in DOWNLOADED
])  # fmt: skip
def test_every_dataset_runs_shrunk(path: Path, cli: Any) -> None:
    """Those with clients of their own are divided by them; some run on other processes too, to the same bits."""
    name = path.stem
    given = [f"dataset={name}", f"model={MODELS.get(name, 'softmax_regression')}", "strategy.rounds=1", "logger=none"]
    given += ["partition=natural"] if name in CLIENTS else ["partition.num_clients=2"]
    given += ["dataset.sections=speakers", "dataset.length=20"] if name == "text" else []
    given += ["optimized_metric=null", "model.optimizer.lr=0.01", "callbacks=none"]
    done = cli(*given, "hydra.run.dir=run")
    assert done.code == 0, done.err
    (row,) = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert row["clients/num"] == CLIENTS.get(name, 2)
    metrics = {"linear_regression": "mse mae", "softmax_regression": "accuracy"}.get(
        given[1][6:], "accuracy perplexity"
    )
    assert {f"test/{metric}" for metric in ("loss", *metrics.split())} <= set(row)
    if name in POOLED:
        assert cli(*given, "backend=process", "backend.workers=2", "hydra.run.dir=pool").code == 0
        assert json.loads(Path("pool/metrics.jsonl").read_text())["digest"] == row["digest"]
