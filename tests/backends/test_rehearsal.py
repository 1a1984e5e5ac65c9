"""The first clients' first batch is trained and forgotten before the first round; state is put back between clients."""

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from flrl.data.sources import DatasetSource
from flrl.errors import ClientError
from flrl.sampling import AllClients
from flrl.strategies import FedAvg
from flrl.strategies.base import Local
from flrl.trainers import EagerTrainer, LightningTrainer, LocalProblem, Trainer, VectorizedTrainer
from flrl.transforms import ClipNorm, Context
from flrl.types import Broadcast, ClientUpdate
from flrl.worker import Worker
from tests.toys import Linear, Notes, blobs, fit, make_worker, setup_of
from tests.zoo import stateful

OPTIONS: dict[str, Any] = {
    "rounds": 2,
    "sampler": AllClients(),
    "server_optimizer": partial(torch.optim.SGD, lr=1.0),
}


def rehearsed(worker: Worker) -> None:
    state = worker.strategy.initialize(worker.model.vector.clone(), worker.model.layout)
    worker.rehearse(*worker.strategy.plan(state, worker.data.sizes, worker.seed, worker.model.layout))


class Batches(Linear):
    """Records its batches."""

    def __init__(self, seen: Notes) -> None:
        super().__init__()
        self.seen = seen

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen.add(len(batch[0]))
        return super().training_step(batch, batch_idx)


def test_one_batch_is_trained_and_nothing_is_left() -> None:
    seen = Notes()
    worker = make_worker(FedAvg(**OPTIONS), module=Batches(seen), trainer=EagerTrainer(batch_size=8))
    before, random_numbers = worker.model.vector.clone(), torch.get_rng_state()
    rehearsed(worker)
    assert seen.all() == [8]
    assert torch.equal(worker.model.vector, before)
    assert torch.equal(torch.get_rng_state(), random_numbers)


class Logging(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("accuracy", self.accuracy)
        return super().training_step(batch, batch_idx)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a logged metric in client batches": (
        {"module": Logging(), "trainer": VectorizedTrainer(batch_size=8)},
        "trainer=vectorized cannot train Logging: training_step logs a torchmetrics object as 'accuracy'",
    ),
    "samples that are not in memory": (
        {
            "trainer": VectorizedTrainer(batch_size=8),
            "source": DatasetSource(torch.utils.data.TensorDataset(blobs().inputs, blobs().targets)),
        },
        r"trainer=vectorized needs samples in memory \(TensorSource\): use trainer=traced",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_come_before_the_first_round(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rehearsed(make_worker(FedAvg(**OPTIONS), **options))


def test_errors_of_the_modules_own_code_are_a_clients() -> None:
    class Failing(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise ValueError("a bad sample")

    with pytest.raises(ClientError, match="client 0, round 1: ValueError: a bad sample"):
        rehearsed(make_worker(FedAvg(**OPTIONS), module=Failing()))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((9, 16), r"last batch has one sample: choose another trainer\.batch_size than 8, or GroupNorm$"),
        ((1, 16), r"it has one sample: raise partition\.min_samples or lower partition\.num_clients, or GroupNorm$"),
    ],
)
def test_a_last_batch_of_one_sample_names_what_to_change(sizes: tuple[int, ...], message: str) -> None:
    class Normed(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(5)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((self.norm(batch[0]), batch[1]), batch_idx)

    worker = make_worker(FedAvg(**OPTIONS), module=Normed(), sizes=sizes, trainer=EagerTrainer(batch_size=8))
    with pytest.raises(ClientError, match=message):
        fit(worker)


@pytest.mark.parametrize("kind", [EagerTrainer, LightningTrainer])
def test_two_optimizers_are_refused_by_both(kind: type[Trainer]) -> None:
    class Two(Linear):
        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD([self.net.weight], 0.1), torch.optim.SGD([self.net.bias], 0.1)]

    with pytest.raises(ValueError, match=r"must return one torch optimizer, got \['SGD', 'SGD'\]"):
        kind().check(setup_of(Two()))


class InLocal(FedAvg):
    clients = 0

    def local(self, problem: LocalProblem) -> Local:
        trained = yield problem
        self.clients += 1
        return trained.update(problem)


class InBroadcast(FedAvg):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sent: list[int] = []

    def broadcast(self, *args: Any) -> Broadcast:
        self.sent.append(1)
        return super().broadcast(*args)


class Learning(ClipNorm):
    def client(self, update: ClientUpdate, memory: Any, context: Context) -> Any:
        self.max_norm *= 0.9
        return super().client(update, memory, context)


@pytest.mark.parametrize(
    ("strategy", "change"),
    [
        (lambda: InLocal(**OPTIONS), r"InLocal changes strategy\.clients while client 0 trains"),
        (lambda: InBroadcast(**OPTIONS), r"InBroadcast changes strategy\.sent in round 1"),
        (
            lambda: FedAvg(**OPTIONS, transforms={"own": Learning(max_norm=1.0)}),
            r"FedAvg changes strategy\.transforms\['own'\]\.max_norm while client 0 trains",
        ),
    ],
)
def test_a_strategy_that_changes_itself_is_refused(strategy: Any, change: str) -> None:
    with pytest.raises(ValueError, match=rf"strategy: {change}: what lasts .* belongs into client memory"):
        fit(make_worker(strategy()))


def checksums(order: list[int], module: type[pl.LightningModule], trainer: Trainer) -> dict[int, str]:
    """What three clients send that are trained in an order."""
    torch.manual_seed(0)
    worker = make_worker(FedAvg(**OPTIONS), module=module(), trainer=trainer)
    state = worker.strategy.initialize(worker.model.vector.clone(), worker.model.layout)
    broadcast, tasks = worker.strategy.plan(state, worker.data.sizes, 0, worker.model.layout)
    _, reports = worker.train(broadcast, [tasks[index] for index in order], lambda report: None)
    return {report.client_id: report.checksum for report in reports}


@pytest.mark.parametrize("module", [stateful.Counter, stateful.WholeBuffer, stateful.AveragedBuffer, stateful.Hooking])
def test_a_client_does_not_depend_on_those_before_it(module: type[pl.LightningModule]) -> None:
    first, second = (checksums(order, module, EagerTrainer(batch_size=8)) for order in ([0, 1, 2], [2, 1, 0]))
    assert first == second
    assert len(set(first.values())) == 3


def test_a_buffer_that_is_replaced_is_sent() -> None:
    torch.manual_seed(0)
    worker = make_worker(FedAvg(**{**OPTIONS, "rounds": 1}), module=stateful.AveragedBuffer())
    state, _ = fit(worker)
    average = next(entry for entry in worker.model.layout.entries if entry.name == "average")
    expected = 0.0
    for client in range(3):
        value, indices = 1.0, worker.data.train_indices(client)
        for start in range(0, len(indices), 8):
            inputs = worker.data.splits.train.inputs[indices[start : start + 8]]  # type: ignore[attr-defined]
            value = 0.9 * value + 0.1 * float(inputs.abs().mean())
        expected += value * len(indices) / 90
    assert float(state.vector[average.slice]) == pytest.approx(expected, rel=1e-6)


class Halving(pl.Callback):
    """Divides the learning rate of a batch by the number of batches seen so far."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1
        trainer.optimizers[0].param_groups[0]["lr"] = 0.1 / self.batches


def test_callbacks_are_put_back_before_each_client() -> None:
    trainers = [LightningTrainer(batch_size=8, callbacks=[Halving()]) for _ in range(2)]
    assert checksums([0, 1, 2], Linear, trainers[0]) == checksums([2, 1, 0], Linear, trainers[1])


def test_the_stand_in_prints_logs_and_refuses(capsys: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Talking(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.print("batch", batch_idx)
            self.logger.experiment.add_scalar("loss", 1.0)
            return super().training_step(batch, batch_idx)

    fit(make_worker(FedAvg(**{**OPTIONS, "rounds": 1}), module=Talking(), sizes=(8,)))
    assert capsys.readouterr().out == "batch 0\n"
    warnings = [record.getMessage() for record in caplog.records if "self.logger" in record.getMessage()]
    assert len(warnings) <= 1  # once in a process

    class Stopping(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.trainer.should_stop = True
            return super().training_step(batch, batch_idx)

    with pytest.raises(ClientError, match=r"trainer=eager does not end early by Trainer\.should_stop"):
        fit(make_worker(FedAvg(**OPTIONS), module=Stopping()))
