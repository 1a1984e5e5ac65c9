"""Regression: errors by hand, the least-squares solution, and what is no regression."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.evaluation import Evaluator
from flrl.models import Regressor
from flrl.models.nets import regression

SGD = partial(torch.optim.SGD, lr=0.1)
INPUTS = torch.tensor([[1.0], [2.0], [-1.0]])
TARGETS = torch.tensor([2.0, 2.0, 1.0])


def identity(**options: Any) -> Regressor:
    net = nn.Linear(1, 1)
    nn.init.ones_(net.weight)
    nn.init.zeros_(net.bias)
    return Regressor(net=net, **({"optimizer": SGD} | options))


@pytest.mark.parametrize("targets", [TARGETS, TARGETS[:, None]])
def test_errors_by_hand(targets: torch.Tensor) -> None:
    """Predictions 1, 2, -1 for 2, 2, 1: errors 1, 0, 2."""
    found = Evaluator(batch_size=2).run(BoundModel(identity()), TensorSource(INPUTS, targets), np.arange(3))
    assert found == {name: pytest.approx(value, rel=1e-6) for name, value in
                     (("test/loss", 5 / 3), ("test/mse", 5 / 3), ("test/mae", 1.0))}  # fmt: skip
    assert float(identity().training_step((INPUTS, targets), 0).detach()) == pytest.approx(5 / 3, rel=1e-6)


def test_another_loss_takes_its_place() -> None:
    module = identity(loss=nn.L1Loss())
    assert float(module.training_step((INPUTS, TARGETS), 0).detach()) == pytest.approx(1.0)
    found = Evaluator().run(BoundModel(module), TensorSource(INPUTS, TARGETS), np.arange(3))
    assert (found["test/loss"], found["test/mse"]) == (pytest.approx(1.0), pytest.approx(5 / 3))


def test_classes_are_no_numbers() -> None:
    with pytest.raises(ValueError, match=r"floating-point numbers, one for each prediction: it has torch\.int64 of sh"):
        identity().training_step((INPUTS, TARGETS.long()), 0)
    with pytest.raises(ValueError, match=r"of shape \[3, 2\] for predictions of shape \[3, 1\]$"):
        identity().training_step((INPUTS, torch.zeros(3, 2)), 0)


def test_the_scheduler_is_the_optimizers() -> None:
    (optimizer,), (scheduler,) = identity(
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    ).configure_optimizers()
    assert scheduler.optimizer is optimizer


def test_nets() -> None:
    assert [tuple(p.shape) for p in regression(input_shape=[2, 3]).parameters()] == [(1, 6), (1,)]
    deep = regression(input_shape=[4], hidden=[5, 6], outputs=2)
    assert [type(part).__name__ for part in deep] == ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert [part.out_features for part in deep if isinstance(part, nn.Linear)] == [5, 6, 2]
    with pytest.raises(ValueError, match=r"^model\.net\.hidden=0: must be at least 1$"):
        regression(input_shape=[4], hidden=[0])


@pytest.mark.slow
def test_linear_regression_finds_the_least_squares(cli: Any) -> None:
    """Full batches of one client that has all data: the mean squared error is that of the solution in closed form."""
    import json
    from pathlib import Path

    from flrl.data.tabular import diabetes

    done = cli("dataset=diabetes", "model=linear_regression", "partition.num_clients=1", "trainer.batch_size=354",
               "strategy.rounds=2", "trainer.local_epochs=1000", "model.optimizer.lr=0.2", "logger=none",
               "hydra.run.dir=run", "optimized_metric=test/mse")  # fmt: skip
    assert done.code == 0, done.err
    row = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    splits = diabetes()
    x, y = (splits.train.inputs.double().numpy(), splits.train.targets.double().numpy())
    solution, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    errors = np.c_[splits.test.inputs.double().numpy(), np.ones(88)] @ solution - splits.test.targets.numpy()
    assert row["test/mse"] == pytest.approx((errors**2).mean(), rel=1e-3)
    assert row["test/mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-3)
