"""A module's test_step is tried before the first round, and nothing of it stays."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from flrl.data import FederatedData, Splits, TensorSource
from flrl.evaluation import Evaluator
from flrl.process_setup import prepare
from tests.toys import Linear, blobs, blocks

SEEN: list[Any] = []  # outside of the module, where nothing is put back


@pytest.fixture(autouse=True)
def unseen() -> None:
    SEEN.clear()


class Keeping(Linear):
    """Changes buffers, draws random numbers, counts, and has hooks around the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy, self.mean = MulticlassAccuracy(3), MeanMetric()
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.sizes: list[int] = []

    def on_test_epoch_start(self) -> None:
        SEEN.append("start")

    def on_test_epoch_end(self) -> None:
        SEEN.append("end")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.average += torch.rand(2) + np.random.rand()
        self.steps += 1
        self.sizes.append(len(batch[0]))
        SEEN.append(len(batch[0]))
        self.accuracy.update(self.net(batch[0]), batch[1])
        self.mean.update(self.net(batch[0]).mean())
        self.log("test/accuracy", self.accuracy)


def tried(module: Linear, evaluator: Evaluator, *, test: TensorSource) -> Any:
    data = FederatedData(Splits(blobs(90), test), blocks((20, 30, 40)), seed=0)
    model = prepare(module, threads=1, device="cpu")
    evaluator.try_out(model, data, seed=0)
    return model


def test_nothing_of_it_stays() -> None:
    module = Keeping()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()
    model = tried(module, Evaluator(), test=blobs(100))
    assert SEEN == ["start", 64, "end"]
    assert module.sizes == []
    after = module.state_dict()
    assert {name: tensor.tolist() for name, tensor in after.items()} == {n: t.tolist() for n, t in before.items()}
    assert model.vector.tolist() == model.layout.flatten(module).tolist()
    assert [module.accuracy.update_count, module.mean.update_count] == [0, 0]
    assert module.training
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]


@pytest.mark.parametrize(("options", "seen"), [({"batch_size": 7}, ["start", 7, "end"]), ({"try_first": False}, [])])
def test_how_many_samples(options: dict[str, Any], seen: list[Any]) -> None:
    tried(Keeping(), Evaluator(**options), test=blobs(100))
    assert SEEN == seen


def test_a_failure_is_raised_as_it_is_and_leaves_nothing_either() -> None:
    class Failing(Keeping):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            super().test_step(batch, batch_idx)
            raise KeyError("test_step")

    module = Failing()
    with pytest.raises(KeyError, match="test_step"):
        tried(module, Evaluator(), test=blobs(100))
    assert (module.average.tolist(), module.steps.item(), module.training) == ([0.0, 0.0], 0, True)


def test_an_empty_test_set(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tried(Keeping(), Evaluator(), test=blobs(100).subset(np.empty(0, np.int64)))
    assert [record.message for record in caplog.records] == ["the test set is empty: no round is evaluated on it"]
