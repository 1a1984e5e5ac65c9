"""Evaluation: when, on what, and the statistics over clients."""

import random
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from flrl.bound_model import BoundModel
from flrl.data import FederatedData, Splits, TensorSource
from flrl.evaluation import Evaluator, summarize_clients
from flrl.fairness import gini, jain
from flrl.lightning.logs import joined
from flrl.models import Classifier
from flrl.models.nets import mlp_2nn
from flrl.seeding import SERVER, isolated_randomness, seed_for
from tests.toys import Linear, Rich, blobs, blocks, setup_of


class Steps(pl.LightningModule):
    """Logs the mean of its inputs times its only weight, and notes the calls of its hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[Any] = []

    def note(self, name: str) -> None:
        self.calls.append((name, self.training, torch.is_inference_mode_enabled()))


class TestOnly(Steps):
    __test__ = False

    def on_test_epoch_start(self) -> None:
        self.note("start")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.note(f"batch {batch_idx} of {len(batch[0])}")
        self.log("test/mean", (batch[0] * self.weight).mean())
        self.log_dict({"test/largest": batch[0].max(), "count": len(batch[0])}, reduce_fx="max")

    def on_test_epoch_end(self) -> None:
        self.note("end")
        self.log("test/epochs", 1.0)


class ValOnly(Steps):
    def validation_step(self, batch: Any) -> None:
        self.note("val")
        self.log("val/mean", batch[0].mean())

    def on_test_epoch_start(self) -> None:
        raise AssertionError("not a test")


class Both(ValOnly):
    def on_test_epoch_start(self) -> None:
        self.note("start")

    def test_step(self, batch: Any) -> None:
        self.log("test/mean", batch[0].mean())


class Raising(Steps):
    def test_step(self, batch: Any) -> None:
        self.note("raise")
        raise RuntimeError("no")


NUMBERS = TensorSource(torch.tensor([[1.0], [2.0], [3.0], [10.0], [4.0]]), torch.zeros(5, dtype=torch.int64))


def federation(sizes: list[int], holdout: float = 0.0) -> FederatedData:
    return FederatedData(Splits(blobs(sum(sizes)), blobs(60, seed=8)), blocks(sizes), seed=0, holdout=holdout)


@pytest.mark.parametrize(
    ("options", "central", "clients"),
    [
        ({}, [1, 2, 3, 4, 5, 6, 7], []),
        ({"every": 3}, [3, 6, 7], []),
        ({"every": 7}, [7], []),
        ({"every": 100, "at_start": True}, [0, 7], []),
        ({"every": 2, "clients_every": 3}, [2, 4, 6, 7], [3, 6, 7]),
        ({"every": 5, "clients_every": 1, "at_start": True}, [0, 5, 7], [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_what_is_due_after_which_round(options: dict[str, Any], central: list[int], clients: list[int]) -> None:
    evaluator = Evaluator(**options)
    due = [evaluator.due(round, 7) for round in range(8)]
    assert [round for round, (yes, _) in enumerate(due) if yes] == central
    assert [round for round, (_, yes) in enumerate(due) if yes] == clients


def test_a_resumed_run_may_be_longer() -> None:
    evaluator = Evaluator(every=4, clients_every=4)
    assert [evaluator.due(6, 6), evaluator.due(6, 8), evaluator.due(8, 8)] == [
        (True, True),
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize(("name", "value", "least"), [("every", 0, 1), ("clients_every", -1, 0), ("batch_size", 0, 1)])
def test_settings_are_checked(name: str, value: int, least: int) -> None:
    with pytest.raises(ValueError, match=rf"^evaluation\.{name}={value}: must be at least {least}$"):
        Evaluator(**{name: value})


def test_check_wants_a_step_and_held_out_samples() -> None:
    for module in (TestOnly(), ValOnly()):
        Evaluator().check(setup_of(module))
        Evaluator(clients_every=2).check(setup_of(module, num_holding_out=1))
    with pytest.raises(ValueError, match=r"^Steps has neither a test_step nor a validation_step to be evaluated with$"):
        Evaluator().check(setup_of(Steps()))
    message = r"^evaluation\.clients_every needs held-out samples: set holdout, for example holdout=0\.2$"
    with pytest.raises(ValueError, match=message):
        Evaluator(clients_every=2).check(setup_of(TestOnly()))
    assert len(federation([1, 1], holdout=0.9).holding_out()) == 0


def test_logs_are_reduced_over_the_batches() -> None:
    module = TestOnly()
    model = BoundModel(module)
    model.load(torch.tensor([2.0]))
    result = Evaluator(batch_size=2).run(model, NUMBERS, np.array([0, 1, 2, 3, 4]))
    # Means are weighted by samples: 2 * (1 + 2 + 3 + 10 + 4) / 5.
    assert result == {"test/mean": 8.0, "test/largest": 10.0, "count": 2.0, "test/epochs": 1.0}
    assert module.calls == [
        ("start", False, True),
        ("batch 0 of 2", False, True),
        ("batch 1 of 2", False, True),
        ("batch 2 of 1", False, True),
        ("end", False, True),
    ]


def test_the_test_step_goes_first_and_the_validation_step_stands_in() -> None:
    both, val = Both(), ValOnly()
    indices = np.array([3, 4])
    assert Evaluator().run(BoundModel(both), NUMBERS, indices) == {"test/mean": 7.0}
    assert Evaluator().run(BoundModel(val), NUMBERS, indices) == {"val/mean": 7.0}
    assert [name for name, *_ in both.calls] == ["start"]
    assert val.calls == []  # put back after each batch that any worker may evaluate


def test_modes_and_log_are_put_back() -> None:
    module = Rich()
    module.net[1].eval()
    module.net[3].train()
    modes = {name: part.training for name, part in module.named_modules()}
    assert set(modes.values()) == {True, False}
    model = BoundModel(module)
    Evaluator().run(model, blobs(30), np.arange(30))
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert {"log", "log_dict"}.isdisjoint(vars(module))


def test_modes_are_put_back_after_an_error() -> None:
    module = Raising()
    with pytest.raises(RuntimeError, match=r"^no$"):
        Evaluator().run(BoundModel(module), NUMBERS, np.arange(2))
    assert module.calls == [("raise", False, True)]
    assert module.training
    assert {"log", "log_dict"}.isdisjoint(vars(module))


def test_evaluation_changes_nothing_and_uses_no_randomness() -> None:
    torch.manual_seed(0)
    model = BoundModel(Rich())
    before, state = model.vector.clone(), torch.get_rng_state()
    first = Evaluator(batch_size=7).run(model, blobs(30), np.arange(30))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert Evaluator(batch_size=7).run(model, blobs(30), np.arange(30)) == first
    assert torch.equal(model.read(), before)
    assert not model.vector.is_inference()


def test_training_goes_on_after_an_evaluation() -> None:
    module = Linear()
    Evaluator().run(BoundModel(module), blobs(30), np.arange(30))
    batch = next(blobs(30).batches(np.arange(30), 30))
    module.training_step(batch, 0).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_metrics_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    torch.manual_seed(2)
    net = mlp_2nn(input_shape=[5], num_classes=3, hidden=8)
    model = BoundModel(Classifier(net=net, num_classes=3, optimizer=torch.optim.SGD))
    source = blobs(150, seed=4)
    with torch.inference_mode():
        scores = net(source.inputs)
        hits = int((scores.argmax(1) == source.targets).sum())
        loss = float(nn.functional.cross_entropy(scores, source.targets))
    result = Evaluator(batch_size=batch_size).run(model, source, np.arange(150))
    assert 10 < hits < 140
    assert result["test/accuracy"] == float(torch.tensor(hits) / 150)
    assert result["test/loss"] == pytest.approx(loss, rel=1e-6)


def test_central_and_clients_see_their_own_samples() -> None:
    module = TestOnly()
    model = BoundModel(module)
    data = federation([10, 6], holdout=0.5)
    evaluator = Evaluator(batch_size=3)

    def mean(source: TensorSource, indices: np.ndarray | slice) -> Any:
        return pytest.approx(float(source.inputs[indices].mean()), abs=1e-6)

    train, test = data.splits.train, data.splits.test
    assert isinstance(train, TensorSource)
    assert isinstance(test, TensorSource)
    assert evaluator.central(model, data)["test/mean"] == mean(test, slice(None))
    for client, held in ((0, 5), (1, 3)):
        result = evaluator.client(model, data, client)
        assert result["num_samples"] == held
        assert result["test/mean"] == mean(train, data.holdout_indices(client))
        result = evaluator.client(model, data, client, train=True)
        assert result["num_samples"] == held
        assert result["test/mean"] == mean(train, data.train_indices(client))


def test_summary_of_eleven_clients() -> None:
    """The worst tenth of eleven clients, rounded up, are two."""
    accuracies = [0.9, 0.5, 0.8, 0.1, 0.7, 0.6, 1.0, 0.3, 0.9, 0.4, 0.9]
    rows = [
        {"test/accuracy": accuracy, "test/loss": 2 * accuracy, "val/error_rate": 1 - accuracy, "num_samples": 10.0 + i}
        for i, accuracy in enumerate(accuracies)
    ]
    mean = 7.1 / 11
    weighted = sum(a * (10 + i) for i, a in enumerate(accuracies)) / 165
    std = (sum((a - mean) ** 2 for a in accuracies) / 11) ** 0.5
    # With x in ascending order the sum of (2 i - 12) x_i is 18.8, for errors too.
    gini, gini_of_errors = 18.8 / (11 * 7.1), 18.8 / (11 * 3.9)
    jain, jain_of_errors = 7.1**2 / (11 * 5.43), 3.9**2 / (11 * 2.23)
    expected = {
        "clients/accuracy_mean": mean,
        "clients/accuracy_weighted_mean": weighted,
        "clients/accuracy_std": std,
        "clients/accuracy_worst10": 0.2,  # (0.1 + 0.3) / 2
        "clients/accuracy_gini": gini,
        "clients/accuracy_jain": jain,
        "clients/error_rate_mean": 1 - mean,
        "clients/error_rate_weighted_mean": 1 - weighted,
        "clients/error_rate_std": std,
        "clients/error_rate_worst10": 0.8,  # (0.9 + 0.7) / 2
        "clients/error_rate_gini": gini_of_errors,
        "clients/error_rate_jain": jain_of_errors,
        "clients/loss_mean": 2 * mean,
        "clients/loss_weighted_mean": 2 * weighted,
        "clients/loss_std": 2 * std,
        "clients/loss_worst10": 1.9,  # (2.0 + 1.8) / 2
        "clients/loss_gini": gini,
        "clients/loss_jain": jain,
    }
    assert summarize_clients(rows, "clients") == pytest.approx(expected)


def test_equality_is_not_defined_for_negative_numbers_nor_for_nothing() -> None:
    rows = [{"test/reward": -1.0, "test/hits": 0.0, "num_samples": 1.0}, {"num_samples": 1.0}]
    assert not [name for name in summarize_clients(rows, "clients") if name.endswith(("gini", "jain"))]
    assert gini(np.array([1.0, np.inf])) is jain(np.array([np.nan])) is gini(np.array([])) is None


@pytest.mark.parametrize(("clients", "worst"), [(1, 1), (9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_the_worst_tenth_is_rounded_up(clients: int, worst: int) -> None:
    rows = [{"accuracy": float(i), "loss": float(i), "num_samples": 1.0} for i in reversed(range(clients))]
    summary = summarize_clients(rows, "clients")
    assert summary["clients/accuracy_worst10"] == (worst - 1) / 2
    assert summary["clients/loss_worst10"] == clients - 1 - (worst - 1) / 2
    assert summary["clients/accuracy_mean"] == summary["clients/accuracy_weighted_mean"] == (clients - 1) / 2


def test_the_weighted_mean_is_that_of_all_samples_together() -> None:
    data = federation([10, 30, 50], holdout=0.4)
    model = BoundModel(Linear())
    evaluator = Evaluator(batch_size=8)
    rows = [evaluator.client(model, data, client) for client in range(3)]
    everything = np.concatenate([data.holdout_indices(client) for client in range(3)])
    assert [row["num_samples"] for row in rows] == [4.0, 12.0, 20.0]
    together = evaluator.run(model, data.splits.train, everything)
    summary = summarize_clients(rows, "clients")
    assert summary["clients/loss_weighted_mean"] == pytest.approx(together["test/loss"], rel=1e-6)
    assert summary["clients/accuracy_weighted_mean"] == pytest.approx(together["test/accuracy"], rel=1e-6)


def test_metrics_of_other_names_are_kept_apart() -> None:
    """Only `test/` and `val/` are dropped."""
    rows = [{"test/top1/accuracy": 0.25, "test/top5/accuracy": 0.75, "num_samples": 1.0}]
    means = {name: value for name, value in summarize_clients(rows, "clients").items() if name.endswith("_worst10")}
    assert means == {"clients/top1/accuracy_worst10": 0.25, "clients/top5/accuracy_worst10": 0.75}


def test_no_clients_have_no_statistics() -> None:
    assert summarize_clients([], "clients") == {}


def test_a_metric_over_all_batches_is_computed_once() -> None:
    class Ranked(Linear):
        def __init__(self) -> None:
            super().__init__()
            from torchmetrics import MaxMetric

            self.highest = MaxMetric()

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.highest.update(batch[0])
            self.log("test/highest", self.highest)

    model = BoundModel(Ranked())
    source = TensorSource(torch.tensor([[1.0], [5.0], [2.0]]), torch.zeros(3))
    assert Evaluator(batch_size=1).run(model, source, np.arange(3)) == {"test/highest": 5.0}
    assert Evaluator(batch_size=1).run(model, source, np.array([0, 2])) == {"test/highest": 2.0}


def test_batches_go_through_the_modules_transfer_hooks() -> None:
    class Doubled(TestOnly):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> list[Tensor]:
            return [2 * batch[0], batch[1]]

    result = Evaluator().run(BoundModel(Doubled()), NUMBERS, np.arange(5))
    assert result["test/mean"] == 8.0


def test_a_metric_that_some_clients_lack_and_errors_by_other_names() -> None:
    rows = [{"num_samples": 1.0, "test/mse": 1.0}, {"num_samples": 3.0, "test/mse": 5.0, "test/auc": 0.5}]
    summary = summarize_clients(rows, "clients")
    assert summary["clients/mse_worst10"] == 5.0
    assert summary["clients/mse_weighted_mean"] == 4.0
    assert summary["clients/auc_mean"] == summary["clients/auc_weighted_mean"] == 0.5


class Noisy(Linear):
    """Logs random numbers: torch's, NumPy's and Python's."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log_dict({"torch": torch.rand(()), "numpy": np.random.random(), "python": random.random()})


def drawn(seed: int, batches: list[int]) -> dict[str, float]:
    """The means of what batches of these sizes draw."""
    values: dict[str, list[float]] = {"torch": [], "numpy": [], "python": []}
    for index, _ in enumerate(batches):
        with isolated_randomness(seed_for(seed, 0, SERVER, f"batch {index}"), torch.device("cpu")):
            for name, value in {
                "torch": torch.rand(()),
                "numpy": np.random.random(),
                "python": random.random(),
            }.items():
                values[name].append(float(value))
    return {name: float(np.average(found, weights=batches)) for name, found in values.items()}


def test_every_batch_has_a_seed_of_its_own() -> None:
    model, source, indices = BoundModel(Noisy()), blobs(30), np.arange(30)
    evaluator = Evaluator(batch_size=8)
    whole = evaluator.run(model, source, indices, seed=5)
    assert whole == pytest.approx(drawn(5, [8, 8, 8, 6]), rel=1e-6)
    shares = [range(2, 4), range(0, 1), range(1, 2)]
    parts = [evaluator.part(model, source, indices, share, seed=5) for share in shares]
    assert joined(parts, model.module) == whole
    assert evaluator.run(model, source, indices, seed=6) != whole


def test_every_client_is_evaluated_with_a_seed_of_its_own() -> None:
    model, data = BoundModel(Noisy()), federation([8, 8], holdout=0.5)
    first, second = (Evaluator().client(model, data, client, seed=5) for client in (0, 1))
    assert first == pytest.approx({**drawn(seed_for(5, 0, 0, "evaluation"), [4]), "num_samples": 4.0}, rel=1e-6)
    assert second == pytest.approx({**drawn(seed_for(5, 0, 1, "evaluation"), [4]), "num_samples": 4.0}, rel=1e-6)
    assert first["torch"] != second["torch"]
