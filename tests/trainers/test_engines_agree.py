"""Traced ends in eager's bits, vectorized within rounding of it, whatever is trained and how."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.data import TensorSource
from flrl.errors import ClientError
from flrl.strategies import FedAvg, FedProx, FedSGD, Scaffold, Strategy
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, VectorizedTrainer
from flrl.types import Broadcast, ClientTask
from tests.toys import Linear, make_worker
from tests.trainers.nets import AVERAGE, STEPS, Net, Penalised, Scheduled, Sharing, Step, Turned, mlp, trained

OPTIMIZERS: dict[str, Any] = {
    "sgd": None,
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.01),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two epochs, shuffled": {"local_epochs": 2, "shuffle": True},
    "clipped by norm": {"gradient_clip_val": 0.1},
    "clipped by value": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    "decayed": {"lr_decay": 0.5},
}
# A strategy that is added later joins this table by being listed.
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedavg": partial(FedAvg, **AVERAGE),
    "fedprox": partial(FedProx, mu=0.3, **AVERAGE),
    "scaffold": partial(Scaffold, **AVERAGE),
    "scaffold 1": partial(Scaffold, option=1, **AVERAGE),
    "fedsgd": partial(FedSGD, **AVERAGE),
}
CASES = [
    *(
        pytest.param("fedavg", o, s, id=f"fedavg {o} {s}")
        for o in OPTIMIZERS
        for s in ("plain", "two epochs, shuffled")
    ),
    *(pytest.param("fedprox", "momentum", s, id=f"fedprox momentum {s}") for s in SETTINGS),
    *(pytest.param(k, "sgd", "two epochs, shuffled", id=k) for k in STRATEGIES),
]


@pytest.mark.parametrize(("strategy", "optimizer", "settings"), CASES)
def test_engines_agree(strategy: str, optimizer: str, settings: str) -> None:
    def run(kind: Any, **more: Any) -> Any:
        trainer = kind(batch_size=8, **SETTINGS[settings], **more)
        return trained(STRATEGIES[strategy](), lambda: Net(mlp(), OPTIMIZERS[optimizer]), trainer)

    eager, history = run(EagerTrainer)
    traced, traced_history = run(TracedTrainer)
    assert torch.equal(traced, eager)
    for ours, theirs in zip(traced_history, history, strict=True):
        assert [(r.metrics, r.checksum) for r in ours.reports] == [(r.metrics, r.checksum) for r in theirs.reports]
    stacked, stacked_history = run(VectorizedTrainer)
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())
    for ours, theirs in zip(stacked_history, history, strict=True):
        for name in ("train/loss", "train/double"):
            assert ours.metrics[name] == pytest.approx(theirs.metrics[name], rel=1e-6)
        assert [r.num_steps for r in ours.reports] == [r.num_steps for r in theirs.reports]
    assert torch.equal(run(VectorizedTrainer, width=2)[0], stacked)


def test_channels_last_is_the_same_training_up_to_rounding() -> None:
    images = TensorSource(torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3)

    def run(kind: Any, memory_format: Any) -> Tensor:
        def make() -> pl.LightningModule:
            net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(64, 3))
            module = Net(net)
            module.test_step = lambda batch, batch_idx: module.log("test/loss", torch.zeros(()))  # type: ignore
            return module

        trainer = kind(batch_size=8, memory_format=memory_format)
        return trained(FedAvg(**AVERAGE), make, trainer, sizes=(32, 32), source=images)[0]  # type: ignore

    eager = run(EagerTrainer, "contiguous")
    last = run(EagerTrainer, "channels_last")
    assert 0 < float((last - eager).norm()) <= 1e-5 * float(eager.norm())
    assert torch.equal(run(TracedTrainer, "channels_last"), last)
    assert torch.equal(run(TracedTrainer, "contiguous"), eager)


def test_a_step_that_never_returns_a_loss_is_an_error() -> None:
    for kind in (EagerTrainer, TracedTrainer, LightningTrainer):
        with pytest.raises(ClientError, match="training_step returned no loss for any of the client's 20 batches"):
            trained(FedAvg(**AVERAGE), lambda: Step(STEPS["skips"][0]), kind(batch_size=2, local_epochs=2))


@pytest.mark.parametrize("make", [Sharing, Turned, Penalised])
@pytest.mark.parametrize("clip", [{}, {"gradient_clip_algorithm": "value"}], ids=["norm", "value"])
@pytest.mark.parametrize("kind", [TracedTrainer, VectorizedTrainer])
def test_gradients_that_are_clipped_in_place(make: Any, clip: dict[str, Any], kind: Any) -> None:
    options = {"batch_size": 4, "gradient_clip_val": 0.05, **clip}
    eager, fast = (trained(FedAvg(**AVERAGE), lambda: Net(make()), k(**options))[0] for k in (EagerTrainer, kind))
    assert torch.equal(eager, fast) if kind is TracedTrainer else float((fast - eager).norm()) <= 1e-6 * eager.norm()


@pytest.mark.parametrize("engine", [EagerTrainer, TracedTrainer, partial(TracedTrainer, fuse=True), VectorizedTrainer])
def test_a_clients_bits_do_not_depend_on_what_was_trained_before(engine: Any) -> None:
    """Else they would depend on the number of workers, and a resumed run would end elsewhere."""
    updates = []
    for before in (0, 1, 5):
        torch.manual_seed(0)
        trainer = engine(batch_size=4)
        worker = make_worker(FedAvg(**AVERAGE), module=Net(mlp()), trainer=trainer, sizes=(20, 10))
        broadcast = Broadcast(1, worker.model.vector.clone(), 30.0)
        reports: list[Any] = []
        for client in [0] * before + [1]:
            worker.train(broadcast, [ClientTask(1, client, 20 - 10 * client, 1.0)], reports.append)
        updates.append(reports[-1].checksum)
    assert len(set(updates)) == 1


def test_a_learning_rate_that_is_the_modules_own_tensor_is_not_decayed_in_place() -> None:
    vectors = []
    for rate in (0.1, torch.tensor(0.1)):
        torch.manual_seed(0)
        module = Linear(lr=rate)  # type: ignore[arg-type]
        vectors.append(trained(FedAvg(**AVERAGE), lambda m=module: m, EagerTrainer(batch_size=8, lr_decay=0.5))[0])
        assert float(module.lr) == pytest.approx(0.1)
    assert float((vectors[0] - vectors[1]).norm()) <= 1e-6 * float(vectors[0].norm())


class Sized(Linear):
    """Its learning rate depends on how many steps a client takes."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5 / self.trainer.estimated_stepping_batches)


@pytest.mark.parametrize(("strategy", "module"), [(Scaffold, Scheduled), (FedAvg, Sized)])
def test_each_client_of_a_batch_has_its_own_rates(strategy: Any, module: Any) -> None:
    eager, stacked = (
        trained(strategy(**AVERAGE), module, kind(batch_size=8, local_epochs=3))[0]
        for kind in (EagerTrainer, partial(VectorizedTrainer, width=5))
    )
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())
