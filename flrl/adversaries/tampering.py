"""What a malicious server makes of a model vector: an imprint in its first dense layers, or a net for one class.

Functions of vectors, so that each can be called and tested without a run.
"""

import torch
from torch import Tensor, nn

from flrl.layout import Entry, ParameterLayout


def dense_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and layer of all layers with parameters, and activations and dropouts, in the order of registration."""
    kinds = (nn.Dropout, nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.MaxPool2d)
    return [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, kinds) or next(part.parameters(recurse=False), None) is not None
    ]


def imprint_objection(module: nn.Module, layout: ParameterLayout) -> str | None:
    """The reason why a module cannot be imprinted, or None: it must begin with Linear with bias, ReLU, Linear."""
    first = dense_layers(module)[:3]
    found = ", ".join(f"{name} is a {type(part).__name__}" for name, part in first) or "it has none"
    wanted = (nn.Linear, nn.ReLU, nn.Linear)
    fits = len(first) == 3 and all(isinstance(layer[1], kind) for layer, kind in zip(first, wanted, strict=True))
    if not fits or first[0][1].bias is None:
        return f"the first layers must be a Linear with a bias, a ReLU and a Linear; {found}"
    names = [entry.name for entry in layout.entries[:3]]
    expected = [f"{first[0][0]}.weight", f"{first[0][0]}.bias", f"{first[2][0]}.weight"]
    if names != expected:
        return f"the first parameters that are sent must be {', '.join(expected)}; they are {', '.join(names)}"
    return None


def fishing_objection(module: nn.Module, layout: ParameterLayout) -> str | None:
    """The reason why a module cannot be fished with, or None: its last layer must be a Linear with bias."""
    name, last = dense_layers(module)[-1]
    if not isinstance(last, nn.Linear) or last.bias is None:
        return f"the last layer must be a Linear with a bias; {name} is a {type(last).__name__}"
    names = [entry.name for entry in layout.trained[-2:]]
    if layout.personal or names != [f"{name}.weight", f"{name}.bias"]:
        return f"the last parameters that are sent must be {name}.weight and {name}.bias"
    return None


def imprinted(vector: Tensor, layout: ParameterLayout, direction: Tensor, thresholds: Tensor, fan: Tensor) -> Tensor:
    """A model whose first layer sorts samples into bins by `direction @ x`, one bin a neuron.

    Neuron i is `relu(direction @ x - thresholds[i])`. All have the same weights into the next layer, so a sample has
    the same derivative by each neuron that it activates, and the gradients of neurons i and i + 1 differ by the samples
    between their thresholds.

    Args:
        vector: the model, `[layout.size]`.
        layout: its layout, which begins with weight `[bins, d]`, bias `[bins]` and weight `[next, bins]`, and then has
            a bias `[next]` or not.
        direction: `[d]`.
        thresholds: ascending, `[bins]`.
        fan: the weight from every neuron to each neuron of the next layer, positive and of different sizes, `[next]`.
    """
    first, bias, second, *rest = layout.entries
    tampered = vector.clone()
    _view(tampered, first).copy_(direction.expand(first.shape))
    _view(tampered, bias).copy_(-thresholds)
    _view(tampered, second).copy_(fan[:, None].expand(second.shape))
    if rest and rest[0].name == second.name.removesuffix("weight") + "bias":
        _view(tampered, rest[0]).zero_()
    return tampered


def fishing_for_class(vector: Tensor, layout: ParameterLayout, target: int, penalty: float) -> Tensor:
    """A model in which samples of one class alone have gradients by the features before the last layer.

    The class keeps its weights, the others have none, and their biases are so large that the class is never predicted.
    A sample's gradient by the features is the sum over classes j of `(p_j - [j = y]) W_j`: `-W_target` if it is of the
    target class, else `p_target W_target`, about 0.

    Args:
        vector: the model, `[layout.size]`; its last layer has a weight `[classes, features]` and a bias.
        layout: its layout.
        target: the class.
        penalty: by how much the other classes' biases exceed the target class's.
    """
    weight, bias = layout.trained[-2:]
    tampered = vector.clone()
    rows, biases = _view(tampered, weight), _view(tampered, bias)
    own = rows[target].clone()
    rows.zero_()
    rows[target] = own
    biases.fill_(penalty)
    biases[target] = 0.0
    return tampered


def fishing_for_feature(
    vector: Tensor, layout: ParameterLayout, target: int, feature: int, threshold: float, sharpness: float
) -> Tensor:
    """A model in which, of samples of one class, only those with a feature above a threshold have gradients.

    The class's score is `-sharpness * (feature - threshold)`, the others' is 0: below the threshold the class is
    certain and its gradient 0; above, the gradient by the feature is `sharpness`.

    Args:
        vector: the model, `[layout.size]`; its last layer has a weight `[classes, features]` and a bias.
        layout: its layout.
        target: the class.
        feature: index of a feature before the last layer.
        threshold: of that feature.
        sharpness: a large number: the larger, the fewer samples are in between.
    """
    weight, bias = layout.trained[-2:]
    tampered = vector.clone()
    rows, biases = _view(tampered, weight), _view(tampered, bias)
    rows.zero_()
    biases.zero_()
    rows[target, feature] = -sharpness
    biases[target] = sharpness * threshold
    return tampered


def thresholds_of(measured: Tensor, bins: int) -> Tensor:
    """Ascending thresholds `[bins]` that divide samples like these into bins of equal numbers; the lowest takes all.

    Args:
        measured: `direction @ x` of samples of the same kind, `[n]`.
        bins: number of bins.
    """
    shares = torch.arange(bins, dtype=torch.float64) / bins
    found = torch.quantile(measured.double(), shares)
    found[0] -= 10 * measured.double().std()
    return found


def _view(vector: Tensor, entry: Entry) -> Tensor:
    return vector[entry.slice].view(entry.shape)
