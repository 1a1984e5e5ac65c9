"""What is recorded of a training step, and what is refused."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flrl.bound_model import BoundModel
from flrl.trainers.steps.capturing import NotCapturableError
from flrl.trainers.steps.record import Shape, record
from tests.trainers.nets import MODULES, Net, mlp


def test_a_recording_is_valid_for_batches_of_one_shape() -> None:
    a = (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    assert Shape.of(a)[0] == Shape.of((torch.ones(2, 3), torch.ones(2, dtype=torch.int64)))[0]
    turned = torch.zeros(3, 2).t()
    others: list[Any] = [(a[0][:1], a[1][:1]), (a[0].double(), a[1]), list(a), {"x": a[0], "y": a[1]}, (turned, a[1])]
    shapes = [Shape.of(other)[0] for other in [a, *others]]
    assert len(set(shapes)) == len(shapes)
    assert [Shape.of(other)[0] for other in [(*a, 1), (*a, "id"), (*a, np.zeros(2))]] == [None, None, None]


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
