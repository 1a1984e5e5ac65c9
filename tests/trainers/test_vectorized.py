"""Client batches: each row takes the steps that its client takes alone, up to rounding."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.errors import ClientError
from flrl.strategies import FedAvg, Scaffold
from flrl.trainers import EagerTrainer, VectorizedTrainer
from flrl.types import Broadcast, ClientTask
from tests.toys import Linear, Rich, blobs, make_worker, setup_of
from tests.trainers.nets import AVERAGE, MODULES, Attentive, Embedded, Net, Scheduled, mlp, trained


def test_a_schedule_follows_each_clients_own_epochs() -> None:
    options = {"batch_size": 8, "local_epochs": 3}
    eager, stacked = (
        trained(FedAvg(**AVERAGE), lambda: Net(mlp(), schedule=True), kind(**options))[0]
        for kind in (EagerTrainer, VectorizedTrainer)
    )
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())


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
        VectorizedTrainer().check(setup_of(module()))


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
def test_fused_optimizers_step_client_batches_too(optimizer: Any) -> None:
    eager, stacked = (
        trained(FedAvg(**AVERAGE), lambda: Net(mlp(), partial(optimizer, lr=0.01, fused=True)), kind(batch_size=8))[0]
        for kind in (EagerTrainer, VectorizedTrainer)
    )
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())


class Dropped(Linear):
    """Dropout in one piece, as a GPU has it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(torch.native_dropout(self.net(batch[0]), 0.3, True)[0], batch[1])


def test_dropout_that_takes_no_generator_is_drawn_by_row() -> None:
    eager, stacked = (
        trained(FedAvg(**AVERAGE), Dropped, kind(batch_size=8))[0] for kind in (EagerTrainer, VectorizedTrainer)
    )
    assert float((stacked - eager).norm()) <= 1e-6 * float(eager.norm())


def test_a_client_batch_that_would_draw_other_numbers_is_refused() -> None:
    """Attention draws its dropout within one operator, in an order of its own."""
    with pytest.raises(ClientError, match=r"differs from the module's own .*use trainer=traced"):
        trained(FedAvg(**AVERAGE), lambda: Net(Attentive(0.2)), VectorizedTrainer(batch_size=8))


@pytest.mark.parametrize(("cohort", "width"), [(0, 1), (1, 1), (2, 1), (5, 3), (100, 50), (257, 65), (1000, 125)])
def test_a_cohort_is_divided_into_pairs_of_equal_client_batches(cohort: int, width: int) -> None:
    """Of at most 128 clients: 257 are 65 + 65 + 65 + 62."""
    assert VectorizedTrainer().clients_at_once(BoundModel(Linear()), cohort) == width
    assert VectorizedTrainer(width=7).clients_at_once(BoundModel(Linear()), cohort) == 7


def test_steps_are_recorded_for_few_sizes_of_client_batches() -> None:
    trainer = VectorizedTrainer(batch_size=4, width=20)
    trained(FedAvg(**AVERAGE), lambda: Net(mlp()), trainer, sizes=tuple(range(4, 24)))
    (steps,) = trainer._steps.values()
    assert {rows for rows, *_ in steps} <= {1, 2, 4, 8, 16, 20}


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
    tasks = worker.batched([ClientTask(1, client, 8, 8.0) for client in range(3)])
    worker.train(broadcast, tasks, lambda report: None)
    inputs[worker.data.train_indices(1)[-1]] = index
    worker.data.splits.train._forget()  # type: ignore[attr-defined]
    with pytest.raises(ClientError, match="index out of range"):
        worker.train(broadcast, tasks, lambda report: None)


class Scaled(Linear):
    """Its loss is multiplied by an attribute."""

    scale = 1.0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.scale

    def test_step(self, batch: Any, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.scale /= 2


def test_a_client_batch_sees_an_attribute_that_evaluation_changes() -> None:
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
def test_client_batches_take_no_hooks_that_would_see_many_clients(module: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"trainer=vectorized.*{name}.*use trainer=traced"):
        VectorizedTrainer().check(setup_of(module()))


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
