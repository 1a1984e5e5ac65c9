"""Whole runs on the device: several workers on one, resumed, verified and evaluated there."""

import json
from pathlib import Path
from typing import Any

import pytest

from flrl import evaluate, verify

pytestmark = pytest.mark.gpu

RUN = ("strategy.sampler.num=4", "holdout=0.2", "evaluation.clients_every=1", "logger=none", "trainer.shuffle=true")
KEPT = ("trainer.keep_optimizer_state=true", "model.optimizer.momentum=0.9")
RUNS: dict[str, tuple[str, ...]] = {
    "fedavg, vectorized": ("trainer=vectorized",),
    "scaffold, traced": ("strategy=scaffold", "trainer=traced"),
    "fedprox, lightning": ("strategy=fedprox", "trainer=lightning"),
    "personal, vectorized": ("strategy.personal=[*bias]", "trainer=vectorized"),
    "momentum on both sides, eager": ("strategy=fedavgm", "trainer=eager", *KEPT),
    "median of top-k": ("strategy/aggregator=median", "strategy/transforms=top_k"),
}


def rows(folder: str) -> list[dict[str, Any]]:
    """All rounds, with the metrics of the test set and of the clients, without times."""
    lines = Path(folder, "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


@pytest.mark.parametrize("name", RUNS)
def test_two_workers_on_one_device_resumed_verified_evaluated(name: str, cli: Any, device: str) -> None:
    serial = f"backend.device={device}"
    shared = f"backend.device={'cuda:0' if device == 'cuda' else device}"
    assert cli(*RUN, *RUNS[name], serial, "strategy.rounds=4", "hydra.run.dir=whole").code == 0
    two = ("backend=process", "backend.workers=2", shared, "strategy.rounds=2", "hydra.run.dir=part")
    done = cli(*RUN, *RUNS[name], *two)
    assert done.code == 0, done.err
    assert rows("part") == rows("whole")[:2]
    assert cli("resume=part", "backend=serial", serial, "strategy.rounds=4").code == 0
    assert rows("part") == rows("whole")
    assert cli("run=part", serial, main=verify.main).code == 0
    assert cli("run=part", f"device={device}", "clients=true", main=evaluate.main).code == 0
    found = json.loads(Path("part/evaluation.json").read_text())
    last = rows("whole")[-1]
    assert found["central"] == pytest.approx({name: last[name] for name in found["central"]}, rel=1e-6)
    assert found["clients"] == pytest.approx({name: last[name] for name in found["clients"]}, rel=1e-6)


def test_an_engine_that_was_chosen_there_ends_in_the_same_bits_again(cli: Any, device: str) -> None:
    done = cli(*RUN, "trainer=auto", "strategy=scaffold", f"backend.device={device}", "hydra.run.dir=whole")
    assert done.code == 0, done.err
    assert cli("run=whole", f"backend.device={device}", main=verify.main).code == 0
