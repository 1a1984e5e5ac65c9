"""Samples from gradients: what is recovered, what noise and pruning leave of it, and what each attack refuses.

The small cases are 8 x 8 digits on the LeNet of the DLG paper; the slow ones 20 images of MNIST.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flrl.attacks import Attack, Local, Observation
from flrl.attacks.cpl import CPL
from flrl.attacks.dlg import DLG
from flrl.attacks.grad_inversion import GradInversion, observed_statistics, statistics_distance, statistics_of
from flrl.attacks.gradients import Training
from flrl.attacks.idlg import IDLG
from flrl.attacks.inverting_gradients import InvertingGradients
from flrl.attacks.rgap import RGAP
from flrl.attacks.tag import TAG
from flrl.data.datasets import mnist
from flrl.models.nets import dlg_lenet, mcmahan_cnn
from tests.attacks.given import GRADIENT, Text, classifier, digits, mse, observe, quiet

FEDAVG = Local(only_gradient=False, lr=0.1, batch_size=1, epochs=2, steps=None, shuffle=False)
RECOVERED = 1e-2
SMALL: dict[str, Any] = {"input_shape": [1, 8, 8], "num_classes": 10}
MNIST: dict[str, Any] = {"input_shape": [1, 28, 28], "num_classes": 10}


def lenet(seed: int = 0, **options: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return dlg_lenet(**(SMALL | options))


def noisy(observation: Observation) -> Observation:
    """Normal noise of variance 1e-2 on the gradient, with which the DLG paper's attack fails."""
    noise = torch.randn(observation.update.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return replace(observation, update=observation.update + 0.1 * noise)


def pruned(observation: Observation) -> Observation:
    """Only the largest 1 % of each tensor, deep gradient compression's strength, a defence of the DLG paper."""
    update = torch.zeros_like(observation.update)
    for entry in observation.layout.entries:
        part = observation.update[entry.slice]
        kept = part.abs().topk(max(1, entry.size // 100)).indices
        update[entry.slice][kept] = part[kept]
    return replace(observation, update=update)


def found_by(attack: Attack, observation: Observation, images: Tensor, labels: Tensor) -> float:
    """The mean squared error; labels have to be right where it is small."""
    assert attack.objection(observation) is None
    found = attack.find(observation, quiet)
    assert found.inputs is not None
    assert found.labels is not None
    assert found.inputs.dtype == images.dtype
    assert observation.inputs.low <= found.inputs.min() <= found.inputs.max() <= observation.inputs.high
    error = mse(found, images)
    if error < RECOVERED:
        assert sorted(found.labels.tolist()) == sorted(labels.tolist())
    return error


@pytest.mark.parametrize(
    ("attack", "local", "most"),
    [
        (DLG(), GRADIENT, 1e-4),
        (DLG(), FEDAVG, 1e-3),
        (IDLG(), GRADIENT, 1e-4),
        (CPL(), GRADIENT, 1e-4),
        (CPL(start="geometric", alpha=1e-6), GRADIENT, 1e-3),
    ],
)
def test_lbfgs_recovers_a_sample_from_a_smooth_net(attack: Attack, local: Local, most: float) -> None:
    images, labels = digits(1)
    assert found_by(attack, observe(classifier(lenet()), images, labels, local=local), images, labels) < most


def test_a_seed_gives_the_same_bits_and_another_one_others() -> None:
    images, labels = digits(1)
    observation = observe(classifier(lenet()), images, labels)
    attack = InvertingGradients(iterations=3)
    first, second, third = (attack.find(replace(observation, seed=seed), quiet).inputs for seed in (0, 0, 1))
    assert first is not None
    assert second is not None
    assert third is not None
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


@pytest.mark.parametrize("hide", [noisy, pruned])
@pytest.mark.parametrize(
    ("attack", "activation"),
    [(DLG(iterations=10, restarts=1), "sigmoid"), (InvertingGradients(iterations=50), "leaky_relu")],
)
def test_noise_and_pruning_leave_nothing(attack: Attack, activation: str, hide: Callable[..., Observation]) -> None:
    images, labels = digits(1)
    net = lenet(activation=activation, init_bound=None if activation == "leaky_relu" else 0.5)
    hidden = hide(observe(classifier(net), images, labels))
    # Gray everywhere has the error of the image's variance.
    assert found_by(attack, hidden, images, labels) > 0.5 * float(images.var())


@pytest.mark.parametrize(("local", "count"), [(GRADIENT, 2), (FEDAVG, 1)])
def test_the_angle_recovers_samples_from_a_net_that_is_not_smooth(local: Local, count: int) -> None:
    images, labels = digits(count)
    net = lenet(activation="leaky_relu", init_bound=None)
    attack = InvertingGradients(iterations=200)
    assert found_by(attack, observe(classifier(net), images, labels, local=local), images, labels) < RECOVERED


def normalised() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(1024, 10)
    )


def test_the_batchs_own_statistics_are_read_from_the_update() -> None:
    images, labels = digits(4)
    net, exact = normalised(), {}
    channels = net[0](images).transpose(0, 1).flatten(1)
    exact = {"mean": channels.mean(1).detach(), "variance": channels.var(1).detach()}
    for local in (GRADIENT, replace(FEDAVG, batch_size=4, lr=1e-9)):
        mean, variance = statistics_of(observe(classifier(net), images, labels, local=local))["net.1"]
        training = Training.of(observe(classifier(net), images, labels, local=local), torch.float32)
        with observed_statistics(training) as seen:
            training.sent(images, labels)
        wanted = {"net.1": (mean, variance)}
        assert statistics_distance(seen, wanted).item() < 1e-3
        assert statistics_distance(seen, {"net.1": (mean + 1, variance)}).item() == pytest.approx(4, abs=1e-3)
        assert torch.allclose(mean, exact["mean"], atol=1e-5)
        assert torch.allclose(variance, exact["variance"], atol=1e-5)


def test_grad_inversion_recovers_a_batch() -> None:
    images, labels = digits(2)
    observation = observe(classifier(normalised()), images, labels)
    assert found_by(GradInversion(seeds=2, iterations=120), observation, images, labels) < RECOVERED
    none: dict[str, Any] = {"seeds": 2, "iterations": 8, "total_variation": 0, "norm": 0, "batch_norm": 0, "group": 0}
    weights: list[dict[str, Any]] = [{}, {"total_variation": 1}, {"norm": 1}, {"batch_norm": 1}, {"group": 1}]
    errors = [found_by(GradInversion(**(none | weight)), observation, images, labels) for weight in weights]
    assert len(set(errors)) == len(weights)  # each prior counts


def dense(activation: Callable[[], nn.Module], bias: bool) -> nn.Sequential:
    layers = nn.Linear(64, 24), activation(), nn.Linear(24, 12, bias=bias), activation()
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(12, 10, bias=bias))


RGAP_NETS: dict[str, Callable[[], nn.Sequential]] = {
    "convolutions, leaky ReLU": lambda: lenet(activation="leaky_relu", init_bound=None),
    "convolutions, sigmoid": lambda: lenet(),
    "convolutions, tanh": lambda: lenet(activation="tanh", init_bound=None),
    "convolutions, ReLU": lambda: lenet(activation="relu", init_bound=None),
    "dense, ReLU": lambda: dense(nn.ReLU, True),
    "dense, tanh, no bias": lambda: dense(nn.Tanh, False),
    "same padding": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding="same", bias=False), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(256, 10)
    ),
    "rectangles": lambda: nn.Sequential(
        nn.Conv2d(1, 8, (3, 2), padding=(1, 0), dilation=(1, 2)), nn.Tanh(), nn.Flatten(), nn.Linear(384, 10)
    ),
}


@pytest.mark.parametrize("name", RGAP_NETS)
def test_rgap_is_exact(name: str) -> None:
    torch.manual_seed(3)
    images, labels = digits(1)
    observation, attack = observe(classifier(RGAP_NETS[name]()), images, labels), RGAP()
    assert attack.objection(observation) is None
    found = attack.find(observation, quiet)
    assert found.inputs is not None
    assert found.numbers["rank_missing"] == 0
    assert float((found.inputs - images).abs().max()) < 1e-3
    assert found.labels is not None
    assert found.labels.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("net", "changes", "message"),
    [
        (lambda: mcmahan_cnn(**SMALL), {}, "MaxPool2d has no inverse"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10)), {}, "Dropout has no inverse"),
        (
            lambda: nn.Sequential(nn.Sequential(nn.Flatten()), nn.Linear(64, 10)),
            {},
            "the module's parameters are not all in one nn.Sequential of single layers",
        ),
        (lambda: lenet(), {"num_samples": 2}, "is for one sample, and the update is of 2"),
        (lambda: lenet(), {"local": FEDAVG}, "the client takes 2 local steps, more than 1"),
    ],
)
def test_what_rgap_cannot_solve_is_refused(net: Any, changes: dict[str, Any], message: str) -> None:
    images, labels = digits(1)
    assert RGAP().objection(replace(observe(classifier(net()), images, labels), **changes)) == message


def test_other_refusals() -> None:
    images, labels = digits(2)
    observation = observe(classifier(lenet()), images, labels)
    assert IDLG().objection(observation) == "is for one sample, and the update is of 2: use attack=dlg"
    too_large = "a convolution has 192 inputs, more than attack.max_unknowns=100"
    assert RGAP(max_unknowns=100).objection(observe(classifier(lenet()), images[:1], labels[:1])) == too_large
    assert TAG().objection(observation) == "inputs are no tokens"


@pytest.mark.parametrize(
    ("attack", "options", "message"),
    [
        (DLG, {"iterations": 0}, r"attack\.iterations=0: must be at least 1"),
        (DLG, {"tolerance": 0}, r"attack\.tolerance=0: must be positive and finite"),
        (CPL, {"start": "zero"}, r"attack\.start='zero': must be one of patch, geometric, constant, noise"),
        (InvertingGradients, {"total_variation": -1}, r"attack\.total_variation=-1: must be at least 0"),
        (GradInversion, {"seeds": 0}, r"attack\.seeds=0: must be at least 1"),
        (TAG, {"decay": float("inf")}, r"attack\.decay=inf: must be positive and finite"),
        (RGAP, {"max_unknowns": 0}, r"attack\.max_unknowns=0: must be at least 1"),
    ],
)
def test_wrong_settings(attack: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        attack(**options)


def text(kind: str, seed: int, **options: Any) -> tuple[Observation, Tensor]:
    torch.manual_seed(seed)
    module, tokens = Text(kind, **options), torch.randint(0, 50, (1, 6))
    return observe(module, tokens, torch.tensor([seed % 2]), num_classes=2), tokens


@pytest.mark.parametrize(("kind", "seed", "rows"), [("lstm", 1, False), ("transformer", 2, True)])
def test_tag_recovers_the_tokens(kind: str, seed: int, rows: bool) -> None:
    observation, tokens = text(kind, seed)
    attack = TAG(iterations=250, restarts=1, rows=rows)
    assert attack.objection(observation) is None
    found = attack.find(observation, quiet)
    assert found.inputs is not None
    assert found.inputs.tolist() == tokens.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("lstm", 0.95), ("transformer", 0.75)])
def test_token_accuracy_over_ten_texts(kind: str, least: float) -> None:
    right = 0.0
    for seed in range(10):
        observation, tokens = text(kind, seed)
        found = TAG().find(observation, quiet).inputs
        assert found is not None
        right += float((found == tokens).float().mean()) / 10
    assert right >= least


def mnist_images(count: int) -> tuple[Tensor, Tensor]:
    source = mnist(data_dir=str(Path(__file__).parents[2] / "data"), mean=[0.0], std=[1.0]).train
    images, labels = next(iter(source.batches(torch.arange(count).numpy(), count)))
    return images, labels


def rate(attack: Attack, net: nn.Module, count: int, hide: Callable[..., Observation] | None = None) -> float:
    """Share of images of MNIST that is recovered, one at a time."""
    images, labels = mnist_images(count)
    module, recovered = classifier(net), 0
    for index in range(count):
        one = slice(index, index + 1)
        observation = observe(module, images[one], labels[one], seed=index)
        found = found_by(attack, observation if hide is None else hide(observation), images[one], labels[one])
        recovered += found < RECOVERED
    return recovered / count


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dlg_recovers_images_of_mnist_from_the_sigmoid_net() -> None:
    assert rate(DLG(), lenet(**MNIST), 20) >= 0.7
    for hide in (noisy, pruned):
        assert rate(DLG(iterations=30, restarts=1), lenet(**MNIST), 20, hide) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_angle_beats_dlg_without_sigmoids() -> None:
    net = lenet(**MNIST, activation="relu", init_bound=None)
    angle = rate(InvertingGradients(), net, 20)
    assert angle >= max(rate(DLG(iterations=60, restarts=1), net, 20), 0.7)
    for hide in (noisy, pruned):
        assert rate(InvertingGradients(iterations=300), net, 20, hide) == 0
