"""Nets: the parameter counts the literature states, shapes, and refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from flrl.models.nets import dlg_lenet, dp_cnn, mcmahan_cnn, mlp_2nn, niid_cnn, resnet18, softmax_regression

MNIST: dict[str, Any] = {"input_shape": [1, 28, 28], "num_classes": 10}
CIFAR: dict[str, Any] = {"input_shape": [3, 32, 32], "num_classes": 10}


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def kinds(net: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in net.modules())


@pytest.mark.parametrize(
    ("make", "options", "parameters"),
    [
        (softmax_regression, MNIST, 7_850),
        (softmax_regression, CIFAR, 30_730),
        (softmax_regression, {"input_shape": [20], "num_classes": 5}, 105),
        (mlp_2nn, MNIST, 199_210),
        (mlp_2nn, MNIST | {"hidden": 3}, 784 * 3 + 3 + 3 * 3 + 3 + 3 * 10 + 10),
        (mcmahan_cnn, MNIST, 1_663_370),
        (niid_cnn, MNIST, 44_426),
        (dp_cnn, MNIST, 26_010),
        (niid_cnn, {"input_shape": [1, 8, 8], "num_classes": 10}, 156 + 2416 + 65 * 120 + 121 * 84 + 850),
        (mcmahan_cnn, CIFAR, 75 * 32 + 32 + 800 * 64 + 64 + 4096 * 512 + 512 + 5_130),
        (dlg_lenet, MNIST, 13_426),
        (resnet18, MNIST, 11_172_810),
        (resnet18, CIFAR, 11_173_962),
        (resnet18, MNIST | {"norm": "batch"}, 11_172_810),
        (resnet18, CIFAR | {"norm": "batch"}, 11_173_962),
        (resnet18, CIFAR | {"num_classes": 100}, 11_173_962 + 90 * 513),
    ],
)
def test_parameter_counts(make: Callable[..., nn.Module], options: dict[str, Any], parameters: int) -> None:
    assert count(make(**options)) == parameters


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (softmax_regression, {"input_shape": [7]}),
        (mlp_2nn, {"input_shape": [2, 3]}),
        (mcmahan_cnn, {"input_shape": [1, 28, 28]}),
        (mcmahan_cnn, {"input_shape": [2, 4, 11]}),
        (dlg_lenet, {"input_shape": [2, 5, 11]}),
        (dp_cnn, {"input_shape": [2, 14, 17]}),
        (dp_cnn, {"input_shape": [1, 6, 15]}),
        (resnet18, {"input_shape": [1, 28, 28]}),
        (resnet18, {"input_shape": [3, 8, 4]}),
        (resnet18, {"input_shape": [3, 8, 8], "norm": "batch"}),
    ],
)
def test_scores_are_one_a_class(make: Callable[..., nn.Module], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = make(num_classes=6, **options).eval()
    inputs = torch.randn(3, *options["input_shape"])
    with torch.no_grad():
        scores = net(inputs)
        alone = net(inputs[1:2])
    assert scores.shape == (3, 6)
    assert torch.allclose(alone[0], scores[1], atol=1e-5)
    assert scores.std() > 0


def test_softmax_regression_is_linear() -> None:
    net = softmax_regression(input_shape=[1, 1, 2], num_classes=2)
    net.load_state_dict({"1.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "1.bias": torch.tensor([0.5, -0.5])})
    assert net(torch.tensor([[[[1.0, 10.0]]]])).tolist() == [[21.5, 42.5]]


def test_the_2nn_by_hand() -> None:
    net = mlp_2nn(input_shape=[1], num_classes=1, hidden=2)
    state = {
        "1.weight": torch.tensor([[2.0], [-1.0]]), "1.bias": torch.tensor([0.0, 1.0]),
        "3.weight": torch.tensor([[1.0, 1.0], [1.0, -1.0]]), "3.bias": torch.tensor([0.0, -10.0]),
        "5.weight": torch.tensor([[3.0, 100.0]]), "5.bias": torch.tensor([0.25]),
    }  # fmt: skip
    net.load_state_dict(state)
    # 2 -> relu(4, -1) = (4, 0) -> relu(4, -6) = (4, 0) -> 12.25
    assert net(torch.tensor([[2.0]])).tolist() == [[12.25]]


def test_the_cnn_has_the_papers_layers() -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in mcmahan_cnn(**MNIST).named_parameters()}
    assert [shape for name, shape in shapes.items() if name.endswith("weight")] == [
        (32, 1, 5, 5),
        (64, 32, 5, 5),
        (512, 3136),
        (10, 512),
    ]


@pytest.mark.parametrize("options", [MNIST, CIFAR])
def test_resnet_has_one_kind_of_normalisation(options: dict[str, Any]) -> None:
    group, batch = resnet18(**options), resnet18(**options, norm="batch")
    assert (kinds(group, nn.GroupNorm), kinds(group, nn.BatchNorm2d)) == (20, 0)
    assert (kinds(batch, nn.GroupNorm), kinds(batch, nn.BatchNorm2d)) == (0, 20)
    assert list(group.buffers()) == []
    assert {part.num_groups for part in group.modules() if isinstance(part, nn.GroupNorm)} == {2}
    four = resnet18(**options, groups=4)
    assert {part.num_groups for part in four.modules() if isinstance(part, nn.GroupNorm)} == {4}


def test_resnet_has_the_stem_for_small_images() -> None:
    net = resnet18(**CIFAR)
    assert isinstance(net.conv1, nn.Conv2d)
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert net.conv1.bias is None
    assert kinds(net, nn.MaxPool2d) == 0
    sizes = []
    net.layer4.register_forward_hook(lambda part, args, output: sizes.append(tuple(output.shape)))
    net.eval()(torch.zeros(1, 3, 32, 32))
    assert sizes == [(1, 512, 4, 4)]


def test_initial_weights_are_a_function_of_the_seed() -> None:
    for make in (softmax_regression, mlp_2nn, mcmahan_cnn, resnet18):
        vectors = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            vectors.append(nn.utils.parameters_to_vector(make(input_shape=[1, 8, 8], num_classes=3).parameters()))
        assert torch.equal(vectors[0], vectors[1])
        assert not torch.equal(vectors[0], vectors[2])


@pytest.mark.parametrize("make", [mcmahan_cnn, resnet18])
def test_convolutions_need_images(make: Callable[..., nn.Module]) -> None:
    message = r"^input_shape=\[20\]: this net needs images, \(channels, height, width\)$"
    with pytest.raises(ValueError, match=message):
        make(input_shape=[20], num_classes=5)
    with pytest.raises(ValueError, match=r"^input_shape=\[1, 3, 28\]: this net needs at least 4 x 4 pixels$"):
        make(input_shape=[1, 3, 28], num_classes=5)


@pytest.mark.parametrize("groups", [0, -2, 3, 128])
def test_groups_divide_the_channels(groups: int) -> None:
    with pytest.raises(ValueError, match=rf"^model\.net\.groups={groups}: must divide 64$"):
        resnet18(**MNIST, groups=groups)


def test_an_unknown_normalisation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model\.net\.norm='layer': must be 'group' or 'batch'$"):
        resnet18(**MNIST, norm="layer")  # type: ignore[arg-type]


@pytest.mark.parametrize("hidden", [0, -1])
def test_hidden_layers_need_units(hidden: int) -> None:
    with pytest.raises(ValueError, match=rf"^model\.net\.hidden={hidden}: must be at least 1$"):
        mlp_2nn(**MNIST, hidden=hidden)


def test_the_lenet_of_dlg_is_initialised_evenly() -> None:
    torch.manual_seed(0)
    vector = nn.utils.parameters_to_vector(dlg_lenet(**MNIST).parameters()).detach()
    assert 0.49 < float(vector.abs().max()) <= 0.5
    assert float(vector.std()) == pytest.approx(12**-0.5, rel=0.02)
    assert kinds(dlg_lenet(**MNIST), nn.Sigmoid) == 3
    assert kinds(dlg_lenet(**MNIST, activation="relu"), nn.ReLU) == 3
    with pytest.raises(
        ValueError, match=r"^model\.net\.activation='gelu': must be one of sigmoid, relu, leaky_relu, tanh$"
    ):
        dlg_lenet(**MNIST, activation="gelu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^model\.net\.init_bound=0: must be positive and finite, or null$"):
        dlg_lenet(**MNIST, init_bound=0)
