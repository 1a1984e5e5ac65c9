"""Traced ends in eager's bits, vectorized within rounding of it; what they cannot do they refuse or leave to eager."""

import contextlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.data import TensorSource
from flrl.errors import ClientError
from flrl.layout import BoundModel
from flrl.sampling import AllClients
from flrl.strategies import FedAvg, FedProx, FedSGD, Scaffold, Strategy
from flrl.trainers import EagerTrainer, LightningTrainer, TracedTrainer, Trainer, VectorizedTrainer
from flrl.trainers.capture import NotCapturableError, Shape, record
from flrl.trainers.graphs import with_sgd
from flrl.types import Broadcast, ClientTask
from tests.toys import Linear, Rich, blobs, fit, make_worker

SIZES = (20, 28, 40, 8, 4)
AVERAGE: dict[str, Any] = {
    "rounds": 2,
    "sampler": AllClients(),
    "server_optimizer": partial(torch.optim.SGD, lr=1.0),
}


class Net(Linear):
    """A net of one's own with an optimizer of one's own; logs a number."""

    def __init__(self, net: nn.Module, optimizer: Callable[..., Any] | None = None, schedule: bool = False) -> None:
        super().__init__()
        self.net, self.optimizer, self.schedule = net, optimizer, schedule

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/double", loss * 2)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers() if self.optimizer is None else self.optimizer(self.parameters())
        return ([optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]) if self.schedule else optimizer


def mlp(dropout: float = 0.5) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 3))


def trained(strategy: Strategy, module: Callable[[], pl.LightningModule], trainer: Trainer, **options: Any) -> Any:
    torch.manual_seed(0)
    worker = make_worker(strategy, module=module(), trainer=trainer, **{"sizes": SIZES, **options})
    state, history = fit(worker)
    return state.vector, history


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


MODULES: dict[str, Callable[[], nn.Module]] = {
    "dropout": mlp,
    "batch norm": lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
    "tied": lambda: Tied(),
    "a frozen layer": lambda: frozen(mlp()),
    "layer norm and gelu": lambda: nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
    "recurrent": lambda: Recurrent(),
    "factors": lambda: Factors(),
}


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Recurrent(nn.Module):
    """Takes the features one after the other."""

    def __init__(self, kind: Any = nn.GRU) -> None:
        super().__init__()
        self.cells, self.head = kind(1, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[:, :, None])[0][:, -1])


class Factors(nn.Module):
    """A layer that is the product of two: each one's gradient is a product with the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.first @ self.second)


def frozen(net: nn.Module) -> nn.Module:
    next(net.parameters()).requires_grad_(False)
    return net


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
    assert trainer._recordings is not None  # it did replay, or the comparison would be idle
    assert not trainer._recordings.closed
    assert trainer._recordings._steps


def test_a_schedule_follows_each_clients_own_epochs() -> None:
    options = {"batch_size": 8, "local_epochs": 3}
    eager, stacked = (
        trained(FedAvg(**AVERAGE), lambda: Net(mlp(), schedule=True), kind(**options))[0]
        for kind in (EagerTrainer, VectorizedTrainer)
    )
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())


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


class Step(Net):
    """A module whose training step is given."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__(mlp(0.0))
        self.step, self.count, self.seen = step, 0, []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(self, nn.functional.cross_entropy(self.net(batch[0]), batch[1]), batch_idx)


def counting(module: Any, loss: Tensor, batch_idx: int) -> Tensor:
    module.count += 1
    return loss * (1 + 0.01 * module.count)


def collecting(module: Any, loss: Tensor, batch_idx: int) -> Tensor:
    module.seen.append(0)
    return loss * (1 + 0.01 * len(module.seen))


STEPS: dict[str, tuple[Callable[..., Any], str]] = {
    "branches on the loss": (lambda m, loss, i: loss * 2 if loss > 1 else loss, ""),
    "batch_idx": (lambda m, loss, i: loss * 2 if i % 2 else loss, "depends on batch_idx"),
    "the epoch": (lambda m, loss, i: loss * (1 + m.current_epoch), "reads Trainer.current_epoch"),
    "an attribute": (counting, "changes module.count"),
    "a list": (collecting, "changes module.seen"),
    "Python's generator": (lambda m, loss, i: loss * random.random(), "random numbers from Python"),
    "logs a number": (lambda m, loss, i: (m.log("a", 1.5), loss)[1], "logs a number that is no tensor"),
    "skips": (lambda m, loss, i: None, "skipped a batch"),
}


def test_a_step_that_never_returns_a_loss_is_an_error() -> None:
    for kind in (EagerTrainer, TracedTrainer, LightningTrainer):
        with pytest.raises(ClientError, match="training_step returned no loss for any of the client's 20 batches"):
            trained(FedAvg(**AVERAGE), lambda: Step(STEPS["skips"][0]), kind(batch_size=2, local_epochs=2))


TRAINED = {name: found for name, found in STEPS.items() if name != "skips"}


@pytest.mark.parametrize(("step", "reason"), TRAINED.values(), ids=TRAINED.keys())
def test_what_cannot_be_replayed_is_trained_eagerly_and_said_once(
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


class Sharing(nn.Module):
    """Its two weights have one gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.p + self.q)


class Turned(nn.Module):
    """The gradients come transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(60, 5)), nn.Parameter(torch.randn(3, 60))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oi->bo", torch.einsum("bi,oi->bo", x, self.w).tanh(), self.head)


class Penalised(nn.Module):
    """A weight whose only gradient is the same number everywhere, and a bias with a dimension too many."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias, self.level = (
            nn.Linear(5, 3),
            nn.Parameter(torch.randn(1, 3)),
            nn.Parameter(torch.ones(4)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.bias + self.level.sum()[None, None] * torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.parametrize("make", [Sharing, Turned, Penalised])
@pytest.mark.parametrize("clip", [{}, {"gradient_clip_algorithm": "value"}], ids=["norm", "value"])
@pytest.mark.parametrize("kind", [TracedTrainer, VectorizedTrainer])
def test_gradients_that_are_clipped_in_place(make: Any, clip: dict[str, Any], kind: Any) -> None:
    options = {"batch_size": 4, "gradient_clip_val": 0.05, **clip}
    eager, fast = (trained(FedAvg(**AVERAGE), lambda: Net(make()), k(**options))[0] for k in (EagerTrainer, kind))
    assert torch.equal(eager, fast) if kind is TracedTrainer else float((fast - eager).norm()) <= 1e-6 * eager.norm()


@pytest.mark.parametrize("make", [Sharing, Turned, Penalised])
def test_unusual_gradients_can_be_fused(make: Any) -> None:
    engines = (EagerTrainer(batch_size=4), TracedTrainer(batch_size=4, fuse=True))
    eager, fused = (trained(FedAvg(**AVERAGE), lambda: Net(make()), engine)[0] for engine in engines)
    assert float((fused - eager).norm()) <= 1e-6 * float(eager.norm())


class Crossing(torch.autograd.Function):
    """Says that each of two tensors is the other's gradient."""

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


@pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())
def test_fused_steps_are_eagers_up_to_rounding(make: Callable[[], nn.Module]) -> None:
    eager, fused = (
        trained(FedAvg(**AVERAGE), lambda: Net(make()), kind(batch_size=4, local_epochs=2, **options))[0]
        for kind, options in ((EagerTrainer, {}), (TracedTrainer, {"fuse": True}))
    )
    assert float((fused - eager).norm()) <= 1e-6 * float(eager.norm())


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


@pytest.mark.parametrize("name", ["branches on the loss", "batch_idx", "skips"])
def test_what_cannot_be_fused_is_refused(name: str) -> None:
    step, reason = STEPS[name]
    with pytest.raises(ClientError, match=f"fuse and compile must be false: .*{reason}"):
        trained(FedAvg(**AVERAGE), lambda: Step(step), TracedTrainer(batch_size=2, local_epochs=2, fuse=True))


def test_what_is_fused() -> None:
    module = Net(mlp(0.0))
    batch = (torch.randn(4, 5), torch.tensor([0, 1, 2, 0]))
    recorded = record(BoundModel(module), batch, context=contextlib.nullcontext)
    steps = [with_sgd(recorded.graph, range(4), fuse=fuse) for fuse in (False, True)]
    called = [[str(node.target) for node in step.graph.nodes if node.op == "call_function"] for step in steps]
    for name, counts in {"addmm_.default": (0, 2), "addmv_.default": (0, 2), "add_.Tensor": (4, 0)}.items():
        assert tuple(names.count(f"aten.{name}") for names in called) == counts, name


def test_gradients_of_fewer_bits_are_not_fused() -> None:
    """One rounding instead of two would show in bfloat16."""
    module = Net(mlp(0.0)).bfloat16()
    batch = (torch.randn(4, 5, dtype=torch.bfloat16), torch.tensor([0, 1, 2, 0]))
    recorded = record(BoundModel(module), batch, context=contextlib.nullcontext)
    called = [str(node.target) for node in with_sgd(recorded.graph, range(4), fuse=True).graph.nodes]
    assert [called.count(f"aten.{name}") for name in ("addmm_.default", "addmv_.default", "add_.Tensor")] == [0, 0, 4]


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


REFUSED: dict[str, tuple[Callable[[], pl.LightningModule], str]] = {
    "batch norm": (lambda: Net(MODULES["batch norm"]()), "BatchNorm1d"),
    "hooks": (lambda: Rich(), "BatchNorm1d"),
    "an optimizer": (lambda: Net(mlp(), partial(torch.optim.Adafactor)), "Adafactor"),
    "dtypes": (lambda: Net(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3).double())), "one dtype, torch.float64"),
    "one of its own": (lambda: Net(mlp(), partial(type("Mine", (torch.optim.SGD,), {}), lr=0.1)), "Mine"),
}


@pytest.mark.parametrize(("module", "name"), REFUSED.values(), ids=REFUSED.keys())
def test_vectorized_refuses_by_name(module: Callable[[], pl.LightningModule], name: str) -> None:
    with pytest.raises(ValueError, match=f"trainer=vectorized.*{name}"):
        VectorizedTrainer().check(module())


def test_vectorized_refuses_strategies_that_train_in_their_own_way() -> None:
    strategy = FedSGD(**AVERAGE)
    with pytest.raises(ValueError, match=r"FedSGD.*trainer=traced"):
        strategy.check(Linear(), VectorizedTrainer())
    strategy.check(Linear(), TracedTrainer())


def test_no_row_learns_from_another() -> None:
    """A client whose loss is no number leaves those beside it as they are."""
    source = blobs(60)
    spoiled = TensorSource(source.inputs.clone(), source.targets)
    spoiled.inputs[:20] = torch.nan
    runs = []
    for inputs in (source, spoiled):
        trainer = VectorizedTrainer(batch_size=8, width=3)
        runs.append(
            trained(FedAvg(**{**AVERAGE, "rounds": 1}), lambda: Net(mlp()), trainer, sizes=(20, 20, 20), source=inputs)[
                1
            ]
        )
    clean, dirty = (run[-1].reports for run in runs)
    rejected = [report.client_id for report in dirty if report.rejected is not None]
    assert len(rejected) == 1
    assert [r.checksum for r in clean if r.client_id not in rejected] == [
        r.checksum for r in dirty if r.client_id not in rejected
    ]


class Embedded(nn.Module):
    """Looks up each rounded number."""

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        self.table, self.outward = nn.Embedding(10, 6, sparse=sparse), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(self.table((3 * x).round().long().clamp(0, 9)).mean(1))


@pytest.mark.parametrize("make", [partial(Recurrent, nn.LSTM), partial(Embedded, sparse=True)], ids=["lstm", "sparse"])
def test_operators_that_cannot_be_called_again_are_left_to_eager(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    eager, traced = (
        trained(FedAvg(**AVERAGE), lambda: Net(make()), kind(batch_size=4))[0] for kind in (EagerTrainer, TracedTrainer)
    )
    assert torch.equal(eager, traced)
    assert "a replay fails" in caplog.text


class Attentive(nn.Module):
    """Five tokens of one number each, mixed by attention."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(1, 8), nn.Linear(8, 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(self.layer(self.inward(x[..., None])).mean(1))


def images(*layers: nn.Module) -> nn.Module:
    """Layers between the samples as images of 1 x 5 pixels and ten numbers."""
    return nn.Sequential(nn.Unflatten(1, (1, 1, 5)), *layers, nn.Flatten(), nn.LazyLinear(3))


STACKED: dict[str, Callable[[], nn.Module]] = {
    **{name: make for name, make in MODULES.items() if name != "batch norm"},
    "convolution": lambda: images(nn.Conv2d(1, 4, (1, 3)), nn.ReLU(), nn.MaxPool2d((1, 2)), nn.Dropout2d(0.3)),
    "group norm": lambda: images(nn.Conv2d(1, 4, 1), nn.GroupNorm(2, 4), nn.GELU(), nn.Conv2d(4, 4, 1, groups=2)),
    "transposed convolution": lambda: images(nn.ConvTranspose2d(1, 2, (1, 3)), nn.InstanceNorm2d(2, affine=True)),
    "attention": Attentive,
    "embedding": Embedded,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 3)),
}


@pytest.mark.parametrize("make", STACKED.values(), ids=STACKED.keys())
def test_stacked_steps_are_eagers_up_to_rounding(make: Callable[[], nn.Module]) -> None:
    def module() -> Net:
        net = Net(make())
        net.net(torch.zeros(2, 5))  # lazy layers see what they get
        torch.manual_seed(0)
        return net

    options = {"batch_size": 8, "local_epochs": 2, "shuffle": True, "gradient_clip_val": 0.5}
    trainers = EagerTrainer(**options), VectorizedTrainer(width=3, **options)
    eager, stacked = (trained(FedAvg(**AVERAGE), module, trainer)[0] for trainer in trainers)
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_fused_optimizers_step_stacks_too(optimizer: Any) -> None:
    eager, stacked = (
        trained(FedAvg(**AVERAGE), lambda: Net(mlp(), partial(optimizer, lr=0.01, fused=True)), kind(batch_size=8))[0]
        for kind in (EagerTrainer, VectorizedTrainer)
    )
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())


def test_a_stack_that_would_draw_other_numbers_is_refused() -> None:
    """Attention draws its dropout within one operator, in an order of its own."""
    with pytest.raises(ClientError, match=r"differs from the module's own .*use trainer=traced"):
        trained(FedAvg(**AVERAGE), lambda: Net(Attentive(0.2)), VectorizedTrainer(batch_size=8))


@pytest.mark.parametrize(("cohort", "width"), [(0, 1), (1, 1), (2, 1), (5, 3), (100, 50), (257, 65), (1000, 125)])
def test_a_cohort_is_divided_into_pairs_of_equal_stacks(cohort: int, width: int) -> None:
    """Of at most 128 clients: 257 are 65 + 65 + 65 + 62."""
    assert VectorizedTrainer().clients_at_once(BoundModel(Linear()), cohort) == width
    assert VectorizedTrainer(width=7).clients_at_once(BoundModel(Linear()), cohort) == 7


def test_steps_are_recorded_for_few_sizes_of_stacks() -> None:
    trainer = VectorizedTrainer(batch_size=4, width=20)
    trained(FedAvg(**AVERAGE), lambda: Net(mlp()), trainer, sizes=tuple(range(4, 24)))
    assert trainer._steps is not None
    assert {rows for rows, _ in trainer._steps[1]} <= {1, 2, 4, 8, 16, 20}


def test_the_shape_of_a_batch_tells_what_a_recording_holds_for() -> None:
    a = (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    assert Shape.of(a)[0] == Shape.of((torch.ones(2, 3), torch.ones(2, dtype=torch.int64)))[0]
    turned = torch.zeros(3, 2).t()
    others: list[Any] = [(a[0][:1], a[1][:1]), (a[0].double(), a[1]), list(a), {"x": a[0], "y": a[1]}, (turned, a[1])]
    shapes = [Shape.of(other)[0] for other in [a, *others]]
    assert len(set(shapes)) == len(shapes)
    assert [Shape.of(other)[0] for other in [(*a, 1), (*a, "id"), (*a, np.zeros(2))]] == [None, None, None]


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


def test_recording_leaves_the_module_as_it_is() -> None:
    module = Net(MODULES["batch norm"]())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    record(BoundModel(module), (torch.randn(4, 5), torch.tensor([0, 1, 2, 0])), context=contextlib.nullcontext)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_step_that_replaces_a_buffer_is_refused() -> None:
    class Replaces(Net):
        def __init__(self) -> None:
            super().__init__(mlp())
            self.register_buffer("mean", torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.mean = self.mean * 0.9 + 0.1
            return super().training_step(batch, batch_idx)

    module = Replaces()
    with pytest.raises(NotCapturableError, match="replaces buffers"):
        record(BoundModel(module), (torch.randn(4, 5), torch.tensor([0, 1, 2, 0])), context=contextlib.nullcontext)


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


@pytest.mark.parametrize("index", [-1, 10])
def test_a_lookup_beyond_a_clients_table_is_an_error(index: int) -> None:
    """In one table of all clients' rows it would find a row of another client."""

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.outward = nn.Embedding(10, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.outward(self.table(x).mean(1))

    class Looked(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    inputs = torch.zeros(24, 5, dtype=torch.int64)
    trainer = VectorizedTrainer(batch_size=4, width=3)
    worker = make_worker(
        FedAvg(**AVERAGE),
        module=Looked(Looking()),
        trainer=trainer,
        sizes=(8, 8, 8),
        source=TensorSource(inputs, torch.zeros(24, dtype=torch.int64)),
    )
    broadcast = Broadcast(1, worker.model.vector.clone(), 24.0)
    tasks = worker.stacked([ClientTask(1, client, 8, 8.0) for client in range(3)])
    worker.train(broadcast, tasks, lambda report: None)
    inputs[worker.data.train_indices(1)[-1]] = index
    worker.data.splits.train._forget()  # type: ignore[attr-defined]
    with pytest.raises(ClientError, match="index out of range"):
        worker.train(broadcast, tasks, lambda report: None)


class Scheduled(Linear):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


class Sized(Linear):
    """Its learning rate depends on how many steps a client takes."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5 / self.trainer.estimated_stepping_batches)


@pytest.mark.parametrize(("strategy", "module"), [(Scaffold, Scheduled), (FedAvg, Sized)])
def test_each_client_of_a_stack_has_its_own_rates(strategy: Any, module: Any) -> None:
    eager, stacked = (
        trained(strategy(**AVERAGE), module, kind(batch_size=8, local_epochs=3))[0]
        for kind in (EagerTrainer, partial(VectorizedTrainer, width=5))
    )
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())


class Scaled(Linear):
    """Its loss is multiplied by an attribute."""

    scale = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.scale

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.scale /= 2


def test_a_stack_sees_an_attribute_that_evaluation_changes() -> None:
    eager, stacked = (
        trained(FedAvg(**AVERAGE), Scaled, kind(batch_size=8))[0] for kind in (EagerTrainer, VectorizedTrainer)
    )
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())


class Transferring(Linear):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class Hooked(Linear):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        optimizer.register_step_pre_hook(lambda *args: None)
        return optimizer


@pytest.mark.parametrize(("module", "name"), [(Transferring, "on_after_batch_transfer"), (Hooked, "hooks of SGD")])
def test_stacks_take_no_hooks_that_would_see_many_clients(module: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"trainer=vectorized.*{name}.*use trainer=traced"):
        VectorizedTrainer().check(module())


def test_a_learning_rate_that_is_the_modules_own_tensor_is_not_decayed_in_place() -> None:
    vectors = []
    for rate in (0.1, torch.tensor(0.1)):
        torch.manual_seed(0)
        module = Linear(lr=rate)  # type: ignore[arg-type]
        vectors.append(trained(FedAvg(**AVERAGE), lambda m=module: m, EagerTrainer(batch_size=8, lr_decay=0.5))[0])
        assert float(module.lr) == pytest.approx(0.1)
    assert float((vectors[0] - vectors[1]).norm()) <= 1e-6 * float(vectors[0].norm())


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
    steps = []

    class Observed(Linear):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            optimizer.register_step_post_hook(lambda *args: steps.append(1))
            return optimizer

    trained(FedAvg(**AVERAGE), Observed, TracedTrainer(batch_size=2), sizes=(20,))
    assert len(steps) == 20


def test_clients_that_are_trained_in_groups_get_their_own_updates() -> None:
    """With a schedule, clients of 3 and of 5 batches an epoch are trained apart: 0 and 2, then 1 and 3."""
    results = []
    for trainer in (
        EagerTrainer(batch_size=8, local_epochs=3),
        VectorizedTrainer(batch_size=8, local_epochs=3, width=4),
    ):
        vector, history = trained(Scaffold(**AVERAGE), Scheduled, trainer, sizes=(20, 40, 21, 39))
        results.append(vector)
        reports = [(report.client_id, report.num_samples, report.num_steps) for report in history[-1].reports]
        assert reports == [(0, 20, 9), (1, 40, 15), (2, 21, 9), (3, 39, 15)]
    assert float((results[1] - results[0]).norm()) <= 1e-6 * float(results[0].norm())
