"""Labels from the last layer: the sign rule on 100 images; counts of batches, with and without local steps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flrl.attacks.base import Local
from flrl.attacks.labels import LabelCounts, count_labels, labels_of
from flrl.data import TensorSource
from flrl.models.nets import mlp_2nn
from tests.attacks.given import classifier, digits, observe, quiet
from tests.toys import Linear

FEDAVG = Local(only_gradient=False, lr=0.1, batch_size=8, epochs=2, steps=None, shuffle=False)


def dense(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(1)
    net = mlp_2nn(input_shape=[1, 8, 8], num_classes=10, hidden=50)
    if not bias:
        net[-1] = nn.Linear(50, 10, bias=False)
    return net


def right(counts: Tensor, labels: Tensor) -> float:
    """Share of a batch's labels that counts account for."""
    true = torch.bincount(labels, minlength=10)
    return 1 - float((counts - true).abs().sum()) / 2 / len(labels)


@pytest.mark.parametrize(("bias", "count"), [(True, 100), (False, 20)])
def test_the_sign_rule_names_the_class_of_every_image(bias: bool, count: int) -> None:
    images, labels = digits(count)
    module, attack = classifier(dense(bias)), LabelCounts()
    for index in range(count):
        observation = observe(module, images[index : index + 1], labels[index : index + 1])
        found = attack.find(observation, quiet)
        assert found.labels is not None
        assert found.labels.tolist() == [labels[index]]
        assert found.label_counts is not None
        assert found.label_counts.tolist() == nn.functional.one_hot(labels[index], 10).tolist()


@pytest.mark.parametrize(
    ("rule", "least", "after_steps"), [("llg", 0.9, 0.3), ("llg_star", 0.98, 0.9), ("llg_plus", 0.98, 0.9)]
)
def test_counts_of_batches(rule: str, least: float, after_steps: float) -> None:
    images, labels = digits(400)
    module, public, attack = classifier(dense()), TensorSource(images[300:], labels[300:]), LabelCounts(rule=rule)
    batches = [slice(start, start + 8) for start in range(0, 96, 8)]
    found = [attack.find(observe(module, images[b], labels[b], public=public), quiet).label_counts for b in batches]
    assert sum(right(counts, labels[b]) for counts, b in zip(found, batches, strict=True)) / 12 >= least
    chosen = slice(0, 32)
    observation = observe(module, images[chosen], labels[chosen], local=FEDAVG, public=public)
    assert observation.local.num_steps(32) == 8
    counts = count_labels(observation, rule)
    assert int(counts.sum()) == 32
    assert right(counts, labels[chosen]) >= after_steps


def test_a_class_twice_is_counted_twice() -> None:
    images, labels = digits(40)
    chosen = torch.cat([(labels == 3).nonzero()[:3, 0], (labels == 7).nonzero()[:1, 0]])
    observation = observe(classifier(dense()), images[chosen], labels[chosen])
    assert labels_of(observation).tolist() == [3, 3, 3, 7]


def test_noise_hides_the_labels() -> None:
    images, labels = digits(30)
    module, hits = classifier(dense()), 0
    for index in range(30):
        observation = observe(module, images[index : index + 1], labels[index : index + 1])
        noise = torch.randn(observation.update.shape, generator=torch.Generator().manual_seed(index)).double() * 10
        found = LabelCounts().find(replace(observation, update=observation.update + noise), quiet)
        hits += int(found.labels == labels[index])
    assert hits <= 9


def test_refusals() -> None:
    images, labels = digits(4)
    observation = observe(classifier(dense()), images, labels)
    assert LabelCounts().objection(observation) is None
    sign = LabelCounts(rule="sign").objection(observation)
    assert sign == "the sign rule is for one sample, and the update is of 4"
    unknown = replace(observation, local=replace(FEDAVG, lr=None))
    assert LabelCounts().objection(unknown) is None
    assert LabelCounts(rule="llg_star").objection(unknown) is not None
    assert LabelCounts(rule="llg_plus").objection(observation) == (
        "attack.rule=llg_plus needs public samples with classes"
    )
    five = observe(Linear(classes=3), torch.rand(1, 5), torch.tensor([0]), num_classes=4)
    assert LabelCounts().objection(five) == "the module has no trained nn.Linear with one output a class"
    with pytest.raises(ValueError, match=r"^attack\.rule='all': must be one of auto, sign, llg, llg_star, llg_plus$"):
        LabelCounts(rule="all")  # type: ignore[arg-type]
