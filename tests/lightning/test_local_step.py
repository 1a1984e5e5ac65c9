"""What a strategy's `adjust_loss` sees of a step: outputs of layers, and what they were with another vector."""

from typing import Any

import pytest
import torch
from torch import nn

from flrl.layout import ParameterLayout
from flrl.lightning.local_step import LocalStep, layer_of, observed
from tests.toys import Linear


class Logging(Linear):
    """Logs in its step, which can be done in a training only."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/own", loss)
        return loss


def test_outputs_are_those_of_the_vector_and_nothing_changes() -> None:
    torch.manual_seed(0)
    module, other = Logging(), Logging()
    layout = ParameterLayout(module)
    batch = (torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2]))
    vector = layout.flatten(other)
    kept, before = vector.clone(), layout.flatten(module).clone()
    step = LocalStep(module, layout, batch, {"last": vector}, {"net.0": torch.zeros(0), "net.2": torch.zeros(0)})
    found = step.outputs_with(step.values["last"])
    expected = other.net[0](batch[0])
    assert torch.equal(found["net.0"], expected)
    assert torch.equal(found["net.2"], other.net(batch[0]))
    assert not any(output.requires_grad for output in found.values())
    assert torch.equal(vector, kept)
    assert torch.equal(layout.flatten(module), before)
    assert "log" not in vars(module)


def test_losses_and_gradients_are_those_of_other_parameters_and_nothing_changes() -> None:
    """Statistics of BatchNorm too. Gradients flow to what is given; those that are asked for are constants."""
    torch.manual_seed(0)
    module, other = Logging(), Logging()
    layout = ParameterLayout(module)
    batch = (torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2]))
    before = layout.flatten(module).clone()
    step = LocalStep(module, layout, batch, {"last": layout.flatten(other)}, {})
    loss = nn.functional.cross_entropy(other.net(batch[0]), batch[1])
    expected = torch.autograd.grad(loss, list(other.parameters()))
    found = step.gradients_with(step.values["last"])
    assert list(found) == [name for name, _ in other.named_parameters()] == list(step.parameters)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), expected, strict=True))
    own = torch.autograd.grad(step.loss_with(step.parameters), list(module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(step.gradients_with().values(), own, strict=True))
    again = step.loss_with(dict(other.named_parameters()))
    assert torch.equal(again, loss)
    assert not any(gradient.requires_grad for gradient in found.values())
    assert torch.equal(layout.flatten(module), before)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_batch_without_a_loss_is_named() -> None:
    class Skipping(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

    module = Skipping()
    step = LocalStep(module, ParameterLayout(module), (torch.zeros(2, 5), torch.zeros(2).long()), {}, {})
    with pytest.raises(ValueError, match="the strategy needs a loss for every batch, training_step returned None"):
        step.loss_with(step.parameters)


def test_layers_are_observed_while_it_lasts() -> None:
    module = Logging()
    with observed(module, ["net.0"]) as outputs:
        result = module.net(torch.ones(2, 5))
    assert outputs["net.0"].shape == (2, 4)
    assert result.shape == (2, 3)
    first = outputs["net.0"]
    module.net(torch.zeros(2, 5))
    assert outputs["net.0"] is first


def test_a_layer_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match=r"the model has no layer 'net.9'; it has net, net.0, net.1, net.2"):
        layer_of(Logging(), "net.9")
