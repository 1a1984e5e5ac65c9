"""`trainer=auto` takes the fastest engine of those that can train a module with a strategy."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from flrl.sampling import AllClients
from flrl.strategies import FedAvg, FedSGD, Strategy
from flrl.strategies.running import train_clients
from flrl.trainers import auto, choose_engine
from tests.toys import Linear, make_worker, setup_of

SECONDS = {"VectorizedTrainer": 1.0, "TracedTrainer": 2.0, "EagerTrainer": 3.0}
OPTIONS: dict[str, Any] = {
    "rounds": 1,
    "sampler": AllClients(),
    "server_optimizer": partial(torch.optim.SGD, lr=1.0),
}


class Normed(Linear):
    """Has what vectorized refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)


def choice(strategy: Strategy, module: Any = None, cohort: int = 3) -> tuple[dict[str, Any], bool]:
    worker = make_worker(strategy, module=module)
    before = worker.model.vector.clone()
    trial = auto.Trial(
        model=worker.model,
        source=worker.data.splits.train,
        setup=setup_of(worker.model.module, strategy=strategy),  # type: ignore[arg-type]
        train=partial(train_clients, strategy),
        broadcast=strategy.broadcast(strategy.initialize(before, worker.model.layout), 1, 1.0),
        cohort=cohort,
    )
    config = choose_engine(trial, batch_size=8, local_epochs=2)
    return config, torch.equal(worker.model.vector, before)


@pytest.mark.parametrize(
    ("strategy", "module", "expected"),
    [(FedAvg, Linear, "VectorizedTrainer"), (FedSGD, Linear, "VectorizedTrainer"), (FedAvg, Normed, "TracedTrainer")],
)
def test_the_fastest_that_can_is_taken(
    strategy: Callable[..., Strategy],
    module: Callable[[], Any],
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(auto, "_seconds_a_step", lambda trainer, *rest: SECONDS[type(trainer).__name__])
    config, _ = choice(strategy(**OPTIONS), module())
    assert config["_target_"] == f"flrl.trainers.{expected}"
    assert (config["batch_size"], config["local_epochs"]) == (8, 2)
    assert f"takes {expected.removesuffix('Trainer').lower()}" in caplog.text


def test_narrower_batches_are_tried_too(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As wide as without a given width (here half of the cohort), a quarter and a sixteenth of that."""
    tried = []

    def seconds(trainer: Any, *rest: Any) -> float:
        tried.append(getattr(trainer, "width", 0))
        return 1.0 if tried[-1] == 10 else 2.0

    monkeypatch.setattr(auto, "_seconds_a_step", seconds)
    config, _ = choice(FedAvg(**OPTIONS), cohort=80)
    assert tried == [0, 0, 0, None, 10, 2]
    assert config["width"] == 10
    assert "takes vectorized width=10" in caplog.text


def test_an_engine_that_fails_is_not_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def seconds(trainer: Any, *rest: Any) -> float:
        if type(trainer).__name__ != "EagerTrainer":
            raise RuntimeError("no such thing")
        return 1.0

    monkeypatch.setattr(auto, "_seconds_a_step", seconds)
    assert choice(FedAvg(**OPTIONS))[0]["_target_"] == "flrl.trainers.EagerTrainer"
    assert "vectorized cannot train this: no such thing" in caplog.text


class Varying(FedAvg):
    """Reads what it has sent."""

    def broadcast(self, state: Any, round: int, total_weight: float) -> Any:
        return replace(super().broadcast(state, round, total_weight), variables={"own": torch.ones(1)})

    def local(self, problem: Any) -> Any:
        assert float(problem.broadcast.variables["own"]) == 1.0
        return super().local(problem)


def test_a_strategys_own_variables_are_sent() -> None:
    assert choice(Varying(**OPTIONS))[0]["_target_"].removeprefix("flrl.trainers.") in SECONDS


def test_trying_leaves_the_model_as_it_was() -> None:
    config, unchanged = choice(FedAvg(**OPTIONS))
    assert unchanged
    assert config["_target_"].removeprefix("flrl.trainers.") in SECONDS


def test_a_resumed_run_keeps_the_engine_and_its_options(cli: Any) -> None:
    common = ("partition.num_clients=3", "logger=none", "hydra.run.dir=run")
    done = cli("trainer=auto", "strategy.rounds=1", *common)
    assert done.code == 0, done.err
    first = OmegaConf.to_container(OmegaConf.load("run/.hydra/config.yaml"))["trainer"]
    assert first["_target_"] != "flrl.trainers.choose_engine"
    done = cli("resume=run", "strategy.rounds=2", "trainer.local_epochs=2")
    assert "trainer.local_epochs was 1, is 2" in done.err
    done = cli("resume=run", "strategy.rounds=2")
    assert done.code == 0, done.err
    assert OmegaConf.to_container(OmegaConf.load("run/.hydra/config.yaml"))["trainer"] == first
