"""The closed form: exact for one sample, mixtures for more."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from flrl.attack import main
from flrl.attacks import Local
from flrl.attacks.analytic import Analytic, inverted
from flrl.attacks.labels import sign_rule
from flrl.data.datasets import digits
from flrl.models.nets import mlp_2nn
from tests.attacks.conftest import Finished
from tests.attacks.seen import observation


def test_a_mixture_is_weighted_by_the_neurons_gradients() -> None:
    inputs, outer = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[3.0, 0.0, 0.0], [1.0, -2.0, 0.0]])
    found = inverted(outer.T @ inputs, outer.sum(0), most=3)
    assert found.tolist() == [[0.75, 0.25], [0.0, 1.0]]


def test_image_and_label_of_each_of_100_gradients() -> None:
    torch.manual_seed(0)
    net, source = mlp_2nn(input_shape=(1, 8, 8), num_classes=10), digits().train
    errors, right = [], 0
    for inputs, classes in source.batches(np.arange(100), 1):
        loss = nn.functional.cross_entropy(net(inputs), classes)
        weight, bias, *_, last = torch.autograd.grad(loss, list(net.parameters()))
        errors.append(float((inverted(weight, bias)[0] - inputs.flatten()).abs().max()))
        right += int(sign_rule(last)) == int(classes)
    assert max(errors) < 1e-4
    assert right == 100


@pytest.mark.parametrize("name", ["fedsgd", "fedavg"])
def test_the_image_of_a_client_with_one_sample(cli: Any, finished: Finished, name: str) -> None:
    folder = finished(name)
    done = cli(f"run={folder}", "attack=analytic", main=main)
    assert (done.code, done.err) == (0, "")
    result = json.loads((folder / "attacks/analytic/result.json").read_text())
    assert result["max_abs_error"] < 1e-4
    assert (result["label_accuracy"], result["num_samples"], result["reconstructed"]) == (1.0, 1, 1)
    assert result["psnr"] > 80


def test_of_a_batch_only_mixtures_are_found(cli: Any, finished: Finished) -> None:
    folder = finished("fedsgd")
    assert cli(f"run={folder}", "attack=analytic", "client=all", "round=1", main=main).code == 0
    result = json.loads((folder / "attacks/analytic/result.json").read_text())
    assert result["client"] == "all"
    assert (len(result["clients"]), result["samples"]) == (3, 3)
    assert result["reconstructed"] > 3
    assert "label_accuracy" not in result


IMAGES = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2]))
DENSE = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
REFUSED = {
    "needs a first layer that is dense and has a bias; 0 is a Conv2d": nn.Sequential(
        nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(36, 10)
    ),
    "needs a first layer that is dense and has a bias; 1 is a Linear": nn.Sequential(
        nn.Flatten(), nn.Linear(64, 10, bias=False)
    ),
    "needs a first layer that sees the inputs: 2 takes 16 numbers, not 64": nn.Sequential(
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 10)
    ),
    None: DENSE,
}


@pytest.mark.parametrize(("reason", "net"), REFUSED.items(), ids=map(str, REFUSED))
def test_where_it_does_not_apply(reason: str | None, net: nn.Module) -> None:
    assert Analytic().objection(observation(net, IMAGES)) == reason


def test_a_personal_layer_is_not_seen() -> None:
    deep = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 10))
    seen = observation(deep, IMAGES, personal=["1.*"])
    assert [*seen.parts(seen.update)] == ["2.weight", "2.bias"]
    reason = "needs the first layer's gradients, and 1 is personal: it is not sent"
    assert Analytic().objection(seen) == reason


def test_one_step_of_sgd_is_a_gradient_too() -> None:
    seen, local = observation(DENSE, IMAGES), Local(False, 0.5, 64, 2, None, False)
    assert torch.equal(seen.gradient, -seen.update)
    assert replace(seen, local=local).gradient is None  # two epochs are two steps
    one = replace(seen, local=replace(local, epochs=1))
    assert torch.equal(one.gradient, -seen.update / 0.5)
    assert replace(one, local=replace(local, epochs=1, lr=None)).gradient is None
    assert replace(one, clients=(0, 1)).gradient is None
