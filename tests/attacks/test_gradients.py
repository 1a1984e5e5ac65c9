"""Guessed training: gradients and unrolled steps are those that a client sends; what cannot be attacked is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flrl.attacks.base import Local
from flrl.attacks.gradients import (
    Training,
    batches_of,
    cosine_distance,
    generator_of,
    num_trained,
    objection_to,
    squared_distance,
    target_of,
)
from flrl.models.nets import mlp_2nn
from tests.attacks.given import GRADIENT, Text, classifier, digits, observe

FEDAVG = Local(only_gradient=False, lr=0.1, batch_size=2, epochs=2, steps=None, shuffle=False)
NETS = {
    "dense": lambda: mlp_2nn(input_shape=[1, 8, 8], num_classes=10, hidden=6),
    "batch norm": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10)
    ),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("local", "count"),
    [
        (GRADIENT, 3),
        (FEDAVG, 2),
        (FEDAVG, 3),
        (FEDAVG, 5),
        (replace(FEDAVG, epochs=None, steps=5), 4),
        (replace(FEDAVG, epochs=None, steps=1), 4),
    ],
)
def test_the_true_samples_give_what_was_sent(net: str, local: Local, count: int) -> None:
    torch.manual_seed(0)
    images, labels = digits(count)
    observation = observe(classifier(NETS[net]()), images, labels, local=local)
    training, target = Training.of(observation, torch.float64), target_of(observation, torch.float64)
    used = num_trained(observation)
    assert used == (2 if local.steps == 1 else count)
    classes = labels[:used]
    for guess in (classes, nn.functional.one_hot(classes, 10).double()):
        found = training.sent(images[:used].double(), guess)
        scale = squared_distance(target, [0 * part for part in target])
        assert float((squared_distance(found, target) / scale).detach()) < 1e-9
    wrong = training.sent(images[:used].double(), (labels[:used] + 1) % 10)
    assert float(cosine_distance(wrong, target).detach()) > 0.1


def test_unrolled_steps_can_be_differentiated() -> None:
    torch.manual_seed(0)
    images, labels = digits(3)
    training = Training.of(observe(classifier(NETS["dense"]()), images, labels, local=FEDAVG), torch.float64)
    weights = [torch.randn_like(value) for value in training.start.values()]

    def total(inputs: Tensor) -> Tensor:
        return torch.stack([(a * b).sum() for a, b in zip(training.sent(inputs, labels), weights, strict=True)]).sum()

    inputs = images.double().requires_grad_()
    (slope,) = torch.autograd.grad(total(inputs), inputs)
    direction = torch.randn_like(slope)
    finite = (total(inputs + 1e-6 * direction) - total(inputs - 1e-6 * direction)) / 2e-6
    assert float(finite.detach()) == pytest.approx(float((slope * direction).sum()), rel=1e-5)


def test_dropout_is_off() -> None:
    torch.manual_seed(0)
    module = Text("transformer")
    module.body.self_attn.dropout, module.body.dropout.p, module.body.dropout1.p = 0.5, 0.5, 0.5
    tokens = torch.zeros(1, 6, dtype=torch.int64)
    observation = observe(module, tokens, torch.tensor([1]), num_classes=2)
    training = Training.of(observation, torch.float64)
    losses = [training.loss(training.start, tokens, torch.tensor([1])).item() for _ in range(2)]
    assert losses[0] == losses[1] == pytest.approx(-training.outputs(tokens).log_softmax(1)[0, 1].item())


def test_batches_of_several_passes() -> None:
    assert batches_of(FEDAVG, 3) == [slice(0, 2), slice(2, 3)] * 2
    assert batches_of(replace(FEDAVG, steps=3), 3) == [slice(0, 2), slice(2, 3), slice(0, 2)]
    assert batches_of(GRADIENT, 3) == [slice(0, 3)]


def test_a_loss_that_takes_no_probabilities_is_replaced() -> None:
    module = classifier(NETS["dense"]())
    module.loss = nn.NLLLoss()
    module.net.append(nn.LogSoftmax(1))
    images, labels = digits(2)
    training = Training.of(observe(module, images, labels), torch.float64)
    assert not training.soft
    soft = training.loss(training.start, images.double(), nn.functional.one_hot(labels, 10).double())
    hard = training.loss(training.start, images.double(), labels)
    assert soft.item() == pytest.approx(hard.item(), rel=1e-9)
    assert Training.of(observe(classifier(NETS["dense"]()), images, labels), torch.float64).soft


def test_distances_by_hand() -> None:
    a, b = [torch.tensor([3.0, 0.0]), torch.tensor([[0.0]])], [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])]
    assert float(squared_distance(a, b)) == 26
    assert float(cosine_distance(a, b)) == 1
    assert float(cosine_distance(a, [2 * part for part in a])) == pytest.approx(0, abs=1e-7)


def test_draws_follow_seed_round_client_purpose_and_number() -> None:
    images, labels = digits(1)
    first = observe(classifier(NETS["dense"]()), images, labels)
    others = [(replace(first, seed=1), "a", 0), (replace(first, round=2), "a", 0), (first, "b", 0), (first, "a", 1)]
    seeds = [generator_of(*given).initial_seed() for given in [(first, "a", 0), *others]]
    assert len(set(seeds)) == 5
    assert seeds[0] == generator_of(first, "a").initial_seed()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": (0, 1), "local": FEDAVG}, "needs the update of one client or a gradient, and only a mean over"),
        ({"local": replace(FEDAVG, lr=None)}, "clients do not train by plain SGD"),
        ({"num_samples": 9}, "the update is of 9 samples, more than attack.max_samples=8"),
        ({"local": replace(FEDAVG, epochs=9)}, "the client takes 9 local steps, more than attack.max_steps=4"),
        ({"clients": (0, 1)}, None),
        ({"local": FEDAVG}, None),
    ],
)
def test_objections(changes: dict[str, Any], message: str | None) -> None:
    images, labels = digits(2)
    observation = replace(observe(classifier(NETS["dense"]()), images, labels), **changes)
    found = objection_to(observation, max_samples=8, max_steps=4)
    assert found is None if message is None else found is not None and found.startswith(message)


def test_tokens_and_images_are_told_apart() -> None:
    images, labels = digits(1)
    image = observe(classifier(NETS["dense"]()), images, labels)
    text = observe(Text("lstm"), torch.zeros(1, 6, dtype=torch.int64), torch.tensor([1]), num_classes=2)
    assert objection_to(image, max_samples=1, tokens=True) == "inputs are no tokens"
    assert objection_to(text, max_samples=1) == "inputs are torch.int64: attack=tag is for tokens"
    unknown = replace(image, inputs=replace(image.inputs, num_classes=None))
    assert objection_to(unknown, max_samples=1) == "targets are no classes"
