"""One way to write a client's part of a round carries six algorithms, under every engine, client batches included."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from flrl.layout import digest
from flrl.sampling import AllClients
from flrl.strategies import (
    AFL,
    Ditto,
    FedAvg,
    FedDC,
    FedDyn,
    FedExP,
    FedLin,
    FedNova,
    FedRep,
    FedSAM,
    FedSGD,
    Mime,
    MimeLite,
    Moon,
    QFedAvg,
    Scaffold,
)
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, VectorizedTrainer
from tests.toys import Linear, fit, make_worker

OPTIONS: dict[str, Any] = {"sampler": AllClients(), "server_optimizer": partial(torch.optim.SGD, lr=1.0), "rounds": 3}
SIX = {
    "fedsgd": partial(FedSGD, **OPTIONS),
    "scaffold-1": partial(Scaffold, option=1, **OPTIONS),
    "scaffold-2": partial(Scaffold, option=2, **OPTIONS),
    "fednova": partial(FedNova, mu=0.1, **OPTIONS),
    "feddyn": partial(FedDyn, alpha=0.1, **OPTIONS),
    "fedexp": partial(FedExP, **OPTIONS),
    "fedlin": partial(FedLin, **OPTIONS),
    "feddc": partial(FedDC, alpha=0.1, **OPTIONS),
    "ditto": partial(Ditto, lam=0.3, **OPTIONS),
    "fedrep": partial(FedRep, head_epochs=2, personal=["net.2.*"], **OPTIONS),
    "moon": partial(Moon, layer="net.1", mu=1.0, **OPTIONS),
    "mime": partial(Mime, betas=(0.5, 0.9), **OPTIONS),
    "mimelite": partial(MimeLite, statistics="adam", eps=0.3, **OPTIONS),
    "fedsam": partial(FedSAM, rho=0.1, **OPTIONS),
    "fedasam": partial(FedSAM, rho=0.1, adaptive=True, **OPTIONS),
    "qfedavg": partial(QFedAvg, q=1.0, **OPTIONS),
    "afl": partial(AFL, mixture_lr=0.1, **OPTIONS),
}


class Deep(Linear):
    """Two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


def trained(name: str, trainer: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    worker = make_worker(SIX[name](), module=Deep(), trainer=trainer(batch_size=8, **options), sizes=(20, 32, 33))
    return fit(worker)[0]


SLOW = {
    "fedsam",
    "fednova",
    "feddyn",
    "fedexp",
    "fedlin",
    "mime",
    "mimelite",
    "moon",
    "fedasam",
    "qfedavg",
    "afl",
}  # what they ask for others do too


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in SIX])
def test_engines_agree(name: str) -> None:
    eager = trained(name, EagerTrainer)
    for engine in (TracedTrainer, LightningTrainer):
        other = trained(name, engine)
        assert digest(other.vector) == digest(eager.vector)
        for client_id, memory in eager.memory.items():
            assert all(torch.equal(other.memory[client_id][key], value) for key, value in memory.items())
    for width in (2, 3):
        close = trained(name, VectorizedTrainer, width=width)
        torch.testing.assert_close(close.vector, eager.vector, rtol=0, atol=2e-6)
        for client_id, memory in eager.memory.items():
            for key, value in memory.items():
                torch.testing.assert_close(close.memory[client_id][key], value, rtol=0, atol=1e-5)


class Normalised(Linear):
    """With BatchNorm, whose buffers every forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


@pytest.mark.parametrize("engine", [EagerTrainer, TracedTrainer, LightningTrainer])
def test_features_of_former_models_leave_no_trace_in_the_model(engine: Any) -> None:
    """Without their term in the loss, a round is FedAvg's to the bit: buffers included."""
    states = []
    for strategy in (Moon(layer="net.2", mu=0.0, **OPTIONS), FedAvg(**OPTIONS)):
        torch.manual_seed(0)
        states.append(fit(make_worker(strategy, module=Normalised(), trainer=engine(batch_size=8)))[0])
    assert digest(states[0].vector) == digest(states[1].vector)


def test_steps_with_features_of_former_models_are_replayed(caplog: pytest.LogCaptureFixture) -> None:
    state = trained("moon", TracedTrainer)
    assert caplog.text == ""
    assert sorted(state.memory) == [0, 1, 2]
