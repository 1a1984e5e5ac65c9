"""The engines take the same steps: equal bits on the same seeds, and those of a plain PyTorch loop."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.bound_model import BoundModel
from flrl.sampling import AllClients
from flrl.seeding import generator_for, isolated_randomness, seed_for
from flrl.strategies import FedAvg, FedProx
from flrl.trainers import EagerTrainer, LightningTrainer, LocalProblem, TracedTrainer, Trained, VectorizedTrainer
from flrl.types import Broadcast, ClientTask
from tests.toys import Linear, Rich, blobs, fit, make_worker

AVERAGE = partial(FedAvg, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))


def problem(module: pl.LightningModule, *, round: int = 1, memory: Any = None, samples: int = 21) -> LocalProblem:
    model = BoundModel(module)
    start = (torch.sin(torch.arange(model.layout.size).float()) / 3).to(model.layout.dtype)
    start[model.layout.num_trainable :] = model.vector[model.layout.num_trainable :]
    task = ClientTask(round, 4, samples, float(samples), memory or {})
    indices = np.arange(samples)[::-1].copy()
    return LocalProblem.of(model, blobs(), indices, task, Broadcast(round, start, 21.0), seed=3)


def asked(strategy: FedAvg, given: LocalProblem) -> LocalProblem:
    """What the strategy asks an engine to train."""
    return next(strategy.local(given))


def same(a: Trained, b: Trained) -> None:
    assert a.difference.numpy().tobytes() == b.difference.numpy().tobytes()
    assert a.metrics == b.metrics
    assert (a.num_steps, a.lr_sum, a.not_plain_sgd) == (b.num_steps, b.lr_sum, b.not_plain_sgd)
    assert {k: v.tolist() for k, v in a.memory.items()} == {k: v.tolist() for k, v in b.memory.items()}


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two epochs, shuffled": {"local_epochs": 2, "shuffle": True},
    "clipped by norm": {"gradient_clip_val": 0.1},
    "clipped by value": {"gradient_clip_val": 0.05, "gradient_clip_algorithm": "value"},
    "decayed": {"lr_decay": 0.5},
    "bf16": {"precision": "bf16-mixed"},
    "keeping the optimizer's state": {"keep_optimizer_state": True, "local_epochs": 2},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("module", [Linear, Rich, partial(Rich, "epoch")], ids=["linear", "rich", "rich by epoch"])
@pytest.mark.parametrize(
    "hooks", [AVERAGE(rounds=1), FedProx(mu=0.3, **AVERAGE.keywords, rounds=1)], ids=["avg", "prox"]
)
def test_eager_and_lightning_end_in_the_same_bits(
    module: Callable[[], pl.LightningModule], settings: dict[str, Any], hooks: FedAvg
) -> None:
    updates, calls = [], []
    for trainer in (EagerTrainer, LightningTrainer):
        torch.manual_seed(0)
        instance = module()
        updates.append(trainer(batch_size=8, **settings).fit(asked(hooks, problem(instance, round=3)), hooks))
        calls.append(getattr(instance, "calls", []))
    same(*updates)
    assert calls[0] == calls[1]
    assert float(updates[0].difference.abs().max()) > 1e-3


class InGroups(Linear):
    """Steps its bias before its weights, in groups; or its bias alone."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.alone = alone

    def configure_optimizers(self) -> Any:
        groups: list[Any] = [{"params": [self.net.bias], "lr": 0.3}, {"params": [self.net.weight]}]
        return torch.optim.SGD(groups[: 1 if self.alone else 2], lr=0.1, momentum=0.5)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_what_the_optimizer_steps_is_clipped(alone: bool, algorithm: Any) -> None:
    """As Lightning does it: gradients of other parameters do not count, and add up from batch to batch."""
    options: dict[str, Any] = {"batch_size": 8, "gradient_clip_val": 0.02, "gradient_clip_algorithm": algorithm}
    updates = []
    for trainer in (LightningTrainer, EagerTrainer, TracedTrainer, VectorizedTrainer):
        torch.manual_seed(0)
        updates.append(trainer(**options, local_epochs=3).fit(problem(InGroups(alone=alone)), AVERAGE(rounds=1)))
    same(updates[0], updates[1])
    same(updates[0], updates[2])
    exact, stacked = updates[0].difference, updates[3].difference
    assert float((stacked - exact).norm()) <= 1e-5 * float(exact.norm())


def test_settings_and_hooks_matter() -> None:
    """The comparison above would be idle if the settings did nothing."""

    def update(hooks: FedAvg | None = None, **settings: Any) -> bytes:
        torch.manual_seed(0)
        trainer, strategy = EagerTrainer(batch_size=8, **settings), hooks or AVERAGE(rounds=1)
        given = asked(strategy, problem(Rich(), round=3))
        return trainer.fit(given, strategy).difference.numpy().tobytes()

    outcomes = {update(**settings) for name, settings in SETTINGS.items() if "keeping" not in name}
    outcomes.add(update(FedProx(mu=0.3, **AVERAGE.keywords, rounds=1)))
    assert len(outcomes) == len(SETTINGS)


def plain_sgd(module: Linear, source: Any, indices: np.ndarray, *, epochs: int, lr: float, batch_size: int) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for _ in range(epochs):
        for start in range(0, len(indices), batch_size):
            chosen = indices[start : start + batch_size]
            optimizer.zero_grad()
            nn.functional.cross_entropy(module.net(source.inputs[chosen]), source.targets[chosen]).backward()
            optimizer.step()


@pytest.mark.parametrize("trainer", [EagerTrainer, LightningTrainer])
@pytest.mark.parametrize("rounds", [1, 3])
def test_one_client_with_all_data_is_plain_training(trainer: Any, rounds: int) -> None:
    torch.manual_seed(5)
    plain = Linear()
    worker = make_worker(
        AVERAGE(rounds=rounds), sizes=(90,), trainer=trainer(batch_size=8, local_epochs=2), module=Linear()
    )
    worker.model.load(BoundModel(plain).vector)
    state, _ = fit(worker)
    indices = worker.data.train_indices(0)
    plain_sgd(plain, worker.data.splits.train, indices, epochs=2 * rounds, lr=0.1, batch_size=8)
    assert torch.equal(state.vector, BoundModel(plain).vector)


def test_the_training_loss_is_the_sample_weighted_mean() -> None:
    class Constant(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return 0.0 * self.net(batch[0]).sum() + float(batch_idx + 1)

    update = EagerTrainer(batch_size=8).fit(problem(Constant()), AVERAGE(rounds=1))
    assert update.metrics == {"train/loss": (8 * 1 + 8 * 2 + 5 * 3) / 21}
    assert update.num_steps == 3


def test_dropout_is_seeded_by_client_and_leaves_the_global_generator_alone() -> None:
    given = problem(Rich())
    torch.manual_seed(123)
    state = torch.get_rng_state()
    first = EagerTrainer(batch_size=8).fit(given, AVERAGE(rounds=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(999)
    np.random.seed(1)
    same(EagerTrainer(batch_size=8).fit(given, AVERAGE(rounds=1)), first)


class Noisy(Linear):
    """Logs a random number for each batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("noise", torch.rand(()))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("trainer", [EagerTrainer, LightningTrainer, VectorizedTrainer])
def test_random_numbers_are_those_of_seed_round_and_client(trainer: Any) -> None:
    given = problem(Noisy())
    later = replace(given, task=replace(given.task, round=2))
    other = replace(given, task=replace(given.task, client_id=5))
    for asked, round, client in ((given, 1, 4), (later, 2, 4), (other, 1, 5)):
        with isolated_randomness(seed_for(3, round, client, "train"), torch.device("cpu")):
            expected = float(torch.stack([torch.rand(()) for _ in range(3)]).mean())
        found = trainer(batch_size=7).fit(asked, AVERAGE(rounds=1)).metrics["noise"]
        assert found == pytest.approx(expected, rel=1e-6)


def test_fixed_order_unless_shuffled() -> None:
    trainer = EagerTrainer(batch_size=8)
    given = problem(Linear())
    assert (
        trainer.epoch_indices(given, 0).tolist() == trainer.epoch_indices(given, 1).tolist() == list(range(20, -1, -1))
    )
    trainer.shuffle = True
    first, second = trainer.epoch_indices(given, 0).tolist(), trainer.epoch_indices(given, 1).tolist()
    assert first != second
    assert sorted(first) == sorted(second) == list(range(21))
    assert trainer.epoch_indices(given, 0).tolist() == first


def test_the_order_is_that_of_seed_round_client_and_epoch() -> None:
    trainer, given = EagerTrainer(batch_size=8, shuffle=True), problem(Linear())
    expected = generator_for(3, 1, 4, "shuffle/2").permutation(given.indices)
    assert trainer.epoch_indices(given, 2).tolist() == expected.tolist()
    others = [
        replace(given, seed=4),
        replace(given, task=replace(given.task, round=2)),
        replace(given, task=replace(given.task, client_id=5)),
    ]
    orders = {tuple(trainer.epoch_indices(other, 2)) for other in (given, *others)}
    assert len(orders) == 4


@pytest.mark.parametrize("trainer", [EagerTrainer, LightningTrainer])
def test_learning_rate_decay_multiplies_each_round(trainer: Any) -> None:
    """With one batch a round the update is exactly proportional to the learning rate."""
    updates = [
        trainer(batch_size=21, lr_decay=0.5).fit(problem(Linear().double(), round=r), AVERAGE(rounds=4)) for r in (1, 3)
    ]
    torch.testing.assert_close(updates[0].difference, 4 * updates[1].difference, rtol=1e-9, atol=1e-12)


def test_the_first_round_has_the_modules_own_rate() -> None:
    trainer = EagerTrainer(lr_decay=0.5)
    assert [trainer.lr_factor(problem(Linear(), round=round)) for round in (1, 2, 4)] == [1.0, 0.5, 0.125]


class EndsEarly(Linear):
    """Ends every epoch before its second batch."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 1 else None


def test_minus_one_from_on_train_batch_start_ends_the_epoch() -> None:
    """As Lightning does it: the batches after it are not trained on, the next epoch begins."""
    updates = []
    for trainer in (EagerTrainer, LightningTrainer):
        torch.manual_seed(0)
        updates.append(trainer(batch_size=8, local_epochs=2).fit(problem(EndsEarly()), AVERAGE(rounds=1)))
    same(*updates)
    assert updates[0].num_steps == 2


class Stepped(Linear):
    """Divides its learning rate by two at every step of the schedule, and notes it for every batch."""

    def __init__(self, interval: str, frequency: int) -> None:
        super().__init__()
        self.config = {"interval": interval, "frequency": frequency}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        for name in ("min", "max", "sum"):
            self.log(f"lr {name}", self.lr_schedulers().get_last_lr()[0], reduce_fx=name, on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.64)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.config}}


@pytest.mark.parametrize(
    ("interval", "frequency", "rates"),
    [
        ("step", 1, [0.64, 0.32, 0.16, 0.08, 0.04, 0.02, 0.01, 0.005, 0.0025]),
        ("step", 2, [0.64, 0.64, 0.32, 0.32, 0.32, 0.16, 0.16, 0.16, 0.08]),
        ("epoch", 1, [0.64] * 3 + [0.32] * 3 + [0.16] * 3),
        ("epoch", 2, [0.64] * 6 + [0.32] * 3),
    ],
)
def test_schedulers_step_after_so_many_batches_or_epochs(interval: str, frequency: int, rates: list[float]) -> None:
    """Three epochs of three batches; the second of each epoch's batches, not every second one, as Lightning has it."""
    updates = [
        trainer(batch_size=8, local_epochs=3).fit(problem(Stepped(interval, frequency)), AVERAGE(rounds=1))
        for trainer in (EagerTrainer, LightningTrainer)
    ]
    same(*updates)
    found = [updates[0].metrics[f"lr {name}"] for name in ("min", "max", "sum")]
    assert found == pytest.approx([min(rates), max(rates), sum(rates)])


class Quiet(Stepped):
    """Logs nothing."""

    training_step = Linear.training_step


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_schedulers_of_client_batches_step_as_often(interval: str) -> None:
    eager, stacked = (
        trainer(batch_size=8, local_epochs=3).fit(problem(seeded(lambda: Quiet(interval, 2))), AVERAGE(rounds=1))
        for trainer in (EagerTrainer, VectorizedTrainer)
    )
    exact, found = eager.difference, stacked.difference
    assert float((found - exact).norm()) <= 1e-5 * float(exact.norm())


def seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(0)
    return make()


@pytest.mark.parametrize("trainer", [EagerTrainer, LightningTrainer])
def test_kept_momentum_goes_on_where_it_stopped(trainer: Any) -> None:
    """Two rounds of one epoch with kept momentum are one round of two epochs."""
    hooks, module = AVERAGE(rounds=1), Linear(momentum=0.9).double()
    whole = trainer(batch_size=8, local_epochs=2).fit(problem(module), hooks)
    assert whole.memory == {}  # nothing is kept unless it is asked for
    keeping = trainer(batch_size=8, keep_optimizer_state=True)
    first = problem(module)
    half_way = keeping.fit(first, hooks)
    assert sorted(half_way.memory) == ["optimizer/0/momentum_buffer", "optimizer/1/momentum_buffer"]
    end = keeping.fit(half_way.next(first), hooks)
    moved = half_way.difference + end.difference
    torch.testing.assert_close(moved, whole.difference, rtol=1e-9, atol=1e-12)


def test_bytes_are_those_of_each_parameters_own_dtype() -> None:
    """Fifteen weights of four bytes and three biases of eight; the vector that holds them is float64."""

    class Mixed(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.net.bias.data = self.net.bias.data.double()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(batch[0] @ self.net.weight.T + self.net.bias, batch[1])

    given = problem(Mixed())
    update = EagerTrainer(batch_size=8).fit(given, AVERAGE(rounds=1)).update(given)
    assert update.payload == {"update": 15 * 4 + 3 * 8}


@pytest.mark.parametrize("trainer", [EagerTrainer, LightningTrainer, TracedTrainer, VectorizedTrainer])
def test_a_parameter_without_a_gradient_is_pulled_but_not_pushed(trainer: Any) -> None:
    """FedProx's term is zero where a parameter stays at the global model."""

    class Unused(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.ones(3))

    given = problem(Unused())
    strategy = FedProx(mu=0.3, **AVERAGE.keywords, rounds=1)
    update = trainer(batch_size=8).fit(asked(strategy, given), strategy).difference
    unused = next(entry.slice for entry in given.model.layout.entries if entry.name == "unused")
    assert update[unused].tolist() == [0.0, 0.0, 0.0]
    assert float(update.norm()) > 0.01


def test_infinite_buffers_do_not_spoil_the_update() -> None:
    module = Linear()
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    update = EagerTrainer(batch_size=8).fit(problem(module), AVERAGE(rounds=1)).difference
    assert update[-2:].tolist() == [0.0, 0.0]
    assert torch.isfinite(update).all()


def test_a_skipped_batch_is_no_step() -> None:
    class Skipping(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    update = EagerTrainer(batch_size=8).fit(problem(Skipping()), AVERAGE(rounds=1))
    assert update.num_steps == 2
    reference = Linear()
    given = problem(reference)
    given.model.load(given.broadcast.vector)
    kept = np.concatenate([given.indices[:8], given.indices[16:]])
    plain_sgd(reference, given.source, kept, epochs=1, lr=0.1, batch_size=8)
    assert torch.equal(update.difference, given.model.read().double() - given.broadcast.vector)


def test_metrics_objects_are_logged_at_their_last_epochs_value() -> None:
    from torchmetrics import SumMetric

    class Counting(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.samples = SumMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.samples.update(len(batch[1]))
            self.log("samples", self.samples, on_step=False, on_epoch=True)
            self.log("largest", float(batch_idx), reduce_fx="max", on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    for trainer in (EagerTrainer, LightningTrainer):
        metrics = trainer(batch_size=8, local_epochs=2).fit(problem(Counting()), AVERAGE(rounds=1)).metrics
        assert (metrics["samples"], metrics["largest"]) == (21.0, 2.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"local_epochs": 0}, "trainer.local_epochs=0: must be at least 1"),
        ({"batch_size": 0}, "trainer.batch_size=0: must be at least 1"),
        ({"lr_decay": 0.0}, "trainer.lr_decay=0.0: must be positive"),
        ({"gradient_clip_val": -1.0}, "trainer.gradient_clip_val=-1.0: must be positive, or null"),
        ({"gradient_clip_algorithm": "max"}, "gradient_clip_algorithm='max': must be 'norm' or 'value'"),
        ({"precision": "16-mixed"}, "trainer.precision='16-mixed': must be '32-true' or 'bf16-mixed'"),
    ],
)
@pytest.mark.parametrize("trainer", [EagerTrainer, LightningTrainer])
def test_settings_are_checked(trainer: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**settings)
