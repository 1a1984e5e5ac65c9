"""The cheapest cell of McMahan et al., AISTATS 2017: 87 rounds for the 2NN, 97 %, IID, C = 0.1, E = 1, B = 10."""

import json
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parents[2] / "data"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_2nn_needs_at_most_the_papers_rounds(cli: Any) -> None:
    setting = ("+experiment=paper/mcmahan2017/2nn", f"paths.data_dir={DATA}", "hydra.run.dir=run", "callbacks=none")
    done = cli(*setting, "model.optimizer.lr=0.215", "strategy.rounds=200", "logger=none")
    assert done.code == 0, done.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert 20 < summary["rounds_to_target"] <= 87
