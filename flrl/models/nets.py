"""Nets of the federated-learning literature, for any shape of inputs and number of classes."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Literal

import torchvision
from torch import nn


def softmax_regression(*, input_shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """One linear layer: 7,850 parameters on MNIST.

    Args:
        input_shape: shape of one sample.
        num_classes: number of classes.
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), num_classes))


def regression(*, input_shape: Sequence[int], hidden: Sequence[int] = (), outputs: int = 1) -> nn.Sequential:
    """Numbers from numbers: one linear layer, after hidden ones with ReLU where there are any.

    Args:
        input_shape: shape of one sample.
        hidden: units of each hidden layer; none by default, which is linear regression.
        outputs: numbers that are predicted.

    Raises:
        ValueError: a size is below 1.
    """
    sizes = [prod(input_shape), *hidden, outputs]
    for name, value in [("outputs", outputs), *(("hidden", units) for units in hidden)]:
        if value < 1:
            raise ValueError(f"model.net.{name}={value}: must be at least 1")
    layers: list[nn.Module] = [nn.Flatten()]
    for size, units in pairwise(sizes):
        layers += [nn.Linear(size, units), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mlp_2nn(*, input_shape: Sequence[int], num_classes: int, hidden: int = 200) -> nn.Sequential:
    """The "2NN" of McMahan et al., AISTATS 2017, arXiv 1602.05629: 784-200-200-10, 199,210 parameters on MNIST.

    Args:
        input_shape: shape of one sample.
        num_classes: number of classes.
        hidden: units of each of the two hidden layers.

    Raises:
        ValueError: `hidden` is below 1.
    """
    if hidden < 1:
        raise ValueError(f"model.net.hidden={hidden}: must be at least 1")
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(input_shape), hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )


def mcmahan_cnn(*, input_shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """The CNN of McMahan et al., AISTATS 2017, arXiv 1602.05629: 1,663,370 parameters on MNIST.

    Two 5 x 5 convolutions (32 and 64 channels, same padding), each with 2 x 2 max pooling, and 512 hidden units.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of classes.

    Raises:
        ValueError: the inputs are no images of at least 4 x 4 pixels.
    """
    channels, height, width = _image(input_shape)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 4) * (width // 4), 512),
        nn.ReLU(),
        nn.Linear(512, num_classes),
    )


def niid_cnn(*, input_shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """The CNN of NIID-Bench (Li et al., ICDE 2022, arXiv 2102.02079): 44,426 parameters on MNIST.

    Two 5 x 5 convolutions (6 and 16 channels), each with ReLU and 2 x 2 max pooling, and 120 and 84 hidden units.
    Images of less than 16 pixels are padded by two before each convolution.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of classes.

    Raises:
        ValueError: the inputs are no images of at least 4 x 4 pixels.
    """
    channels, height, width = _image(input_shape)
    padding = 2 if min(height, width) < 16 else 0
    after = [((side - 4 + 2 * padding) // 2 - 4 + 2 * padding) // 2 for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * after[0] * after[1], 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def dp_cnn(*, input_shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """The CNN of the DP-SGD examples for MNIST of TensorFlow Privacy and Opacus: 26,010 parameters on MNIST.

    Convolutions 8 x 8 (16 channels) and 4 x 4 (32 channels) of stride 2, each with ReLU and 2 x 2 max pooling of stride
    1, and 32 hidden units. Images of less than 14 pixels are padded by two before the second convolution.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of classes.

    Raises:
        ValueError: the inputs are no images of at least 6 x 6 pixels.
    """
    channels, height, width = _image(input_shape)
    if min(height, width) < 6:
        raise ValueError(f"input_shape={list(input_shape)}: this net needs at least 6 x 6 pixels")
    padding = 2 if min(height, width) < 14 else 0
    after = [(side // 2 - 5 + 2 * padding) // 2 for side in (height, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, stride=2, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(32 * after[0] * after[1], 32),
        nn.ReLU(),
        nn.Linear(32, num_classes),
    )


def dlg_lenet(
    *,
    input_shape: Sequence[int],
    num_classes: int,
    activation: Literal["sigmoid", "relu", "leaky_relu", "tanh"] = "sigmoid",
    init_bound: float | None = 0.5,
) -> nn.Sequential:
    """The LeNet of Zhu et al., "Deep Leakage from Gradients", NeurIPS 2019: 13,426 parameters on MNIST.

    Three 5 x 5 convolutions of 12 channels (strides 2, 2, 1) and one dense layer, initialised evenly in +-0.5: smooth
    and without pooling, so that its gradients can be inverted.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of classes.
        activation: "sigmoid", "relu", "leaky_relu" (slope 0.2) or "tanh".
        init_bound: all parameters are drawn evenly below this magnitude; None takes torch's initialisation.

    Raises:
        ValueError: a setting is invalid, or the inputs are no images of at least 4 x 4 pixels.
    """
    channels, height, width = _image(input_shape)
    kinds: dict[str, Callable[[], nn.Module]] = {
        "sigmoid": nn.Sigmoid,
        "relu": nn.ReLU,
        "leaky_relu": lambda: nn.LeakyReLU(0.2),
        "tanh": nn.Tanh,
    }
    if activation not in kinds:
        raise ValueError(f"model.net.activation={activation!r}: must be one of {', '.join(kinds)}")
    if init_bound is not None and not 0 < init_bound < float("inf"):
        raise ValueError(f"model.net.init_bound={init_bound}: must be positive and finite, or null")
    act = kinds[activation]
    net = nn.Sequential(
        nn.Conv2d(channels, 12, 5, stride=2, padding=2),
        act(),
        nn.Conv2d(12, 12, 5, stride=2, padding=2),
        act(),
        nn.Conv2d(12, 12, 5, padding=2),
        act(),
        nn.Flatten(),
        nn.Linear(12 * -(-height // 4) * -(-width // 4), num_classes),
    )
    if init_bound is not None:
        for parameter in net.parameters():
            nn.init.uniform_(parameter, -init_bound, init_bound)
    return net


def resnet18(
    *, input_shape: Sequence[int], num_classes: int, norm: Literal["group", "batch"] = "group", groups: int = 2
) -> nn.Module:
    """Torchvision's ResNet-18 for small images: a 3 x 3 stem of stride 1 and no first max pooling.

    Group normalisation as in Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning", ICML 2020,
    arXiv 1910.00189, keeps clients' batch statistics out of the model; two groups as in Reddi et al., ICLR 2021.

    Args:
        input_shape: (channels, height, width).
        num_classes: number of classes.
        norm: "group" or "batch" normalisation.
        groups: number of groups of each group normalisation.

    Raises:
        ValueError: a setting is invalid, or the inputs are no images of at least 4 x 4 pixels.
    """
    channels, _, _ = _image(input_shape)
    if norm not in ("group", "batch"):
        raise ValueError(f"model.net.norm={norm!r}: must be 'group' or 'batch'")
    if groups < 1 or 64 % groups:
        raise ValueError(f"model.net.groups={groups}: must divide 64")
    layer = nn.BatchNorm2d if norm == "batch" else lambda width: nn.GroupNorm(groups, width)
    net: nn.Module = torchvision.models.resnet18(weights=None, num_classes=num_classes, norm_layer=layer)
    net.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def _image(input_shape: Sequence[int]) -> tuple[int, int, int]:
    if len(input_shape) != 3:
        raise ValueError(f"input_shape={list(input_shape)}: this net needs images, (channels, height, width)")
    channels, height, width = input_shape
    if min(height, width) < 4:
        raise ValueError(f"input_shape={list(input_shape)}: this net needs at least 4 x 4 pixels")
    return channels, height, width
