"""Traced ends in eager's bits; what it cannot replay it leaves to eager, with a warning."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.bound_model import BoundModel
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer, TracedTrainer
from tests.toys import Linear, Notes, Rich
from tests.trainers.nets import AVERAGE, MODULES, STEPS, Embedded, Net, Recurrent, Step, mlp, trained


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
@pytest.mark.parametrize("schedule", [False, True], ids=["", "with a schedule"])
def test_traced_ends_in_eagers_bits(make: Callable[[], nn.Module], schedule: bool) -> None:
    options = {"batch_size": 8, "local_epochs": 3, "shuffle": True}
    results = []
    for kind in (EagerTrainer, TracedTrainer):
        trainer = kind(**options)
        net = partial(Net, schedule=schedule)
        sizes = (20, 28, 40, 8, 4)  # BatchNorm cannot train on a batch of one
        results.append(trained(FedAvg(**AVERAGE), lambda net=net: net(make()), trainer, sizes=sizes)[0])
    assert torch.equal(*results)
    (recordings,) = trainer._recordings.values()  # it did replay, or the comparison would be idle
    assert not recordings.closed
    assert recordings._steps


TRAINED = {name: found for name, found in STEPS.items() if name != "skips"}


@pytest.mark.parametrize(("step", "reason"), TRAINED.values(), ids=TRAINED.keys())
def test_what_cannot_be_replayed_is_trained_eagerly_with_one_warning(
    step: Callable[..., Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    results = []
    for kind in (EagerTrainer, TracedTrainer):
        random.seed(0)
        results.append(trained(FedAvg(**AVERAGE), lambda: Step(step), kind(batch_size=2, local_epochs=2))[0])
    assert torch.equal(*results)
    messages = [r.getMessage() for r in caplog.records if "with the eager loop" in r.getMessage()]
    assert len(messages) == 1
    assert reason in messages[0]


def test_hooks_are_left_to_eager(caplog: pytest.LogCaptureFixture) -> None:
    eager, traced = (
        trained(FedAvg(**AVERAGE), Rich, kind(batch_size=4), sizes=(20, 32))[0]
        for kind in (EagerTrainer, TracedTrainer)
    )
    assert torch.equal(eager, traced)
    assert "on_train_batch_end" in caplog.text


def test_a_changed_attribute_is_recorded_anew() -> None:
    class Scaled(Net):
        scale = 1.0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * self.scale

        def test_step(self, batch: Any, batch_idx: int) -> None:
            super().test_step(batch, batch_idx)
            self.scale = self.scale / 2  # evaluation changes what training does

    options = {"batch_size": 4}
    a, b = (trained(FedAvg(**AVERAGE), lambda: Scaled(mlp()), k(**options))[0] for k in (EagerTrainer, TracedTrainer))
    assert torch.equal(a, b)


class Centring(Net):
    """Changes its batch, which is a view of samples that are kept from round to round."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch[0].sub_(0.5)
        return super().training_step(batch, batch_idx)


class Clamping(Net):
    """Changes its weights in every step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.99)
        return super().training_step(batch, batch_idx)


class Slowing(Net):
    """Evaluation changes the learning rate of what follows."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.lr = self.lr / 2


class Ending(Net):
    """So does the end of a client's training."""

    def on_train_end(self) -> None:
        self.lr = self.lr * 0.9


@pytest.mark.parametrize("kind", [Centring, Slowing, Ending, Clamping])
def test_changes_around_the_steps_are_seen(kind: Any) -> None:
    options = {"batch_size": 4, "local_epochs": 2}
    strategy = FedAvg(**{**AVERAGE, "rounds": 3})
    runs = [trained(strategy, lambda: kind(mlp()), engine(**options))[0] for engine in (EagerTrainer, TracedTrainer)]
    assert torch.equal(*runs)


class Crossing(torch.autograd.Function):
    """Returns each of two tensors as the gradient of the other."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return (a * b).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        a, b = ctx.saved_tensors
        return b, a.view(-1)


class Crossed(Net):
    """Two parameters whose gradients are views of each other."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 3))
        self.a, self.b = nn.Parameter(torch.arange(3.0)), nn.Parameter(torch.ones(3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + Crossing.apply(self.a, self.b)


@pytest.mark.parametrize("optimizer", [None, partial(torch.optim.SGD, lr=0.1, momentum=0.5)])
def test_a_parameter_that_is_anothers_gradient(optimizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    def make() -> pl.LightningModule:
        module = Crossed()
        module.optimizer = optimizer
        return module

    eager, traced = (trained(FedAvg(**AVERAGE), make, kind(batch_size=4))[0] for kind in (EagerTrainer, TracedTrainer))
    assert torch.equal(eager, traced)


class Accumulating(nn.Module):
    """Writes into tensors that begin as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.layer(x)
        total = torch.zeros_like(scores)
        total.add_(scores)
        return total.add_(torch.ones_like(scores).mul_(scores))


def test_a_constant_that_is_written_into_is_made_in_every_step() -> None:
    eager, traced = (
        trained(FedAvg(**AVERAGE), lambda: Net(Accumulating()), kind(batch_size=4))[0]
        for kind in (EagerTrainer, TracedTrainer)
    )
    assert torch.equal(eager, traced)


@pytest.mark.parametrize("make", [partial(Recurrent, nn.LSTM), partial(Embedded, sparse=True)], ids=["lstm", "sparse"])
def test_operators_that_cannot_be_called_twice_are_left_to_eager(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    eager, traced = (
        trained(FedAvg(**AVERAGE), lambda: Net(make()), kind(batch_size=4))[0] for kind in (EagerTrainer, TracedTrainer)
    )
    assert torch.equal(eager, traced)
    assert "a replay fails" in caplog.text


class Counted(Linear):
    """Divides by the number of samples itself, which a recording holds as a constant."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="sum") / len(batch[0])


def test_a_recording_holds_for_batches_of_its_own_shape_alone() -> None:
    """Eleven batches of four are enough to record; the last one of each client has two samples."""
    eager, traced = (
        trained(FedAvg(**AVERAGE), Counted, kind(batch_size=4), sizes=(22, 26))[0]
        for kind in (EagerTrainer, TracedTrainer)
    )
    assert torch.equal(eager, traced)


def test_batch_idx_is_seen_however_it_is_used() -> None:
    """As a power, an index, a bit, or in a tensor: recorded with 0, compared with another."""
    uses: list[Callable[[int], Any]] = [
        lambda i: 0.9**i,
        lambda i: [1 + 0.01 * n for n in range(20)][i],
        lambda i: [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, *[4.0] * 11][i],
        lambda i: ([1.0, 2.0, 3.0] * 7)[i],
        lambda i: 1 + (i & 1),
        lambda i: 1 + torch.tensor(i) / 9,
    ]
    for use in uses:
        eager, traced = (
            trained(
                FedAvg(**AVERAGE),
                lambda use=use: Step(lambda module, loss, i: loss * use(i)),
                kind(batch_size=2),
            )[0]
            for kind in (EagerTrainer, TracedTrainer)
        )
        assert torch.equal(eager, traced)


class BiasAlone(Linear):
    """Steps its bias only."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.net.bias], lr=0.1)


def test_a_replay_steps_what_the_optimizer_has() -> None:
    """Plain SGD without clipping, so that a replay could step all parameters by itself."""
    eager, traced = (
        trained(FedAvg(**AVERAGE), BiasAlone, kind(batch_size=4))[0] for kind in (EagerTrainer, TracedTrainer)
    )
    torch.manual_seed(0)
    start = BoundModel(BiasAlone()).vector
    assert torch.equal(traced, eager)
    assert torch.equal(traced[:15], start[:15])
    assert not torch.equal(traced[15:], start[15:])


def test_hooks_of_the_optimizer_are_called() -> None:
    """At every step: ten of batches of two in each of two rounds, most of them replayed."""
    steps = Notes()

    class Observed(Linear):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            optimizer.register_step_post_hook(lambda *args: steps.add(1))
            return optimizer

    trained(FedAvg(**AVERAGE), Observed, TracedTrainer(batch_size=2), sizes=(20,))
    assert len(steps.all()) == 20
