"""Recursive gradient attack on privacy: the input of each layer in turn, from the last to the first, by linear systems.

Zhu, Blaschko, "R-GAP: Recursive Gradient Attack on Privacy", ICLR 2021, arXiv 2010.07733. For a layer with output z and
dL/dz = k, its input x fulfils W x + b = z (weight constraints) and the weight's gradient is linear in x (gradient
constraints). z comes from inverting the activation, k from the chain rule. The paper's binary loss is replaced by
cross-entropy of any number of classes: k is the last bias's gradient; without a bias it is known up to a factor, for
which softmax(W x) - onehot = k is one equation.
"""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import Training, num_trained, objection_to, target_of
from flrl.attacks.labels import labels_of
from flrl.attacks.matching import boxed, check_at_least

RESHAPING = (nn.Flatten, nn.Unflatten, nn.Identity)
ACTIVATIONS = (nn.LeakyReLU, nn.ReLU, nn.Sigmoid, nn.Tanh)
LINEAR = (nn.Linear, nn.Conv2d)


@dataclass(frozen=True, slots=True)
class State:
    """What is known between two layers.

    Attributes:
        value: of the activations there, `[1, ...]`.
        change: the loss's derivative in them.
        known: where `value` is known.
        missing: most unknowns of a layer so far that no constraint fixes.
    """

    value: Tensor
    change: Tensor
    known: Tensor
    missing: int = 0


class RGAP(Attack):
    """Solves for the one sample of a gradient; no search. Exact as far as float32 gradients and ranks allow.

    Nets are `nn.Sequential`s of Linear, Conv2d, LeakyReLU, ReLU, tanh, sigmoid and Flatten. ReLU gives no weight
    constraints for its zeros. Refused are pooling, normalisation and dropout, which have no inverse, and residual nets.

    Args:
        max_unknowns: largest input of a convolution, since the linear system is dense.
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, and one sample's gradient."
    source = "Zhu, Blaschko, ICLR 2021, arXiv 2010.07733"
    on_sums = True

    def __init__(self, *, max_unknowns: int = 4096) -> None:
        check_at_least("max_unknowns", max_unknowns, 1)
        self.max_unknowns = max_unknowns

    def objection(self, observation: Observation) -> str | None:
        """More than one sample or step, a net that is not sequential, a layer without an inverse, another loss."""
        if num_trained(observation) > 1:
            return f"is for one sample, and the update is of {num_trained(observation)}"
        found = objection_to(observation, max_samples=1)
        if found:
            return found
        net = sequence_of(observation.module)
        if net is None:
            return "the module's parameters are not all in one nn.Sequential of single layers"
        for layer in net:
            if not isinstance(layer, (*RESHAPING, *ACTIVATIONS, *LINEAR)):
                return f"{type(layer).__name__} has no inverse"
            if isinstance(layer, nn.Conv2d) and (layer.groups != 1 or layer.padding_mode != "zeros"):
                return "convolutions with groups or with another padding than zeros are not solved"
        if not isinstance(net[-1], nn.Linear):
            return "the last layer is no nn.Linear"
        training = Training.of(observation, torch.float64)
        guess = torch.zeros(1, *observation.inputs.shape, dtype=torch.float64)
        for layer, shape in zip(net, shapes_of(copy.deepcopy(net).double(), guess), strict=True):
            if isinstance(layer, nn.Conv2d) and shape.numel() > self.max_unknowns:
                return f"a convolution has {shape.numel()} inputs, more than attack.max_unknowns={self.max_unknowns}"
        label = torch.zeros(1, dtype=torch.int64)
        expected = nn.functional.cross_entropy(training.outputs(guess), label)
        if not torch.isclose(training.loss(training.start, guess, label), expected):
            return "the loss is no cross-entropy of the net's output"
        return None

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """The sample and its label; `rank_missing` is the number of unknowns of a layer that no constraint fixes."""
        module, label = Training.of(observation, torch.float64).user_module, labels_of(observation)
        net = sequence_of(module)
        assert net is not None
        names_sent = observation.parts(observation.sent)
        gradients = dict(zip(names_sent, target_of(observation, torch.float64), strict=True))
        names = {parameter: name for name, parameter in module.named_parameters()}
        shapes = shapes_of(net, torch.zeros(1, *observation.inputs.shape, dtype=torch.float64))
        state: State | None = None
        for depth in reversed(range(len(net))):
            layer, shape = net[depth], shapes[depth]
            gradient = {part: gradients[names[parameter]] for part, parameter in layer.named_parameters()}
            with torch.no_grad():
                state = _below(layer, gradient, shape, state, int(label))
            progress(1 - depth / len(net), f"layer {depth}")
        assert state is not None
        samples = boxed(state.value, observation.inputs).to(observation.inputs.dtype)
        return Finding(inputs=samples, labels=label, numbers={"rank_missing": float(state.missing)})


def sequence_of(module: nn.Module) -> nn.Sequential | None:
    """The `nn.Sequential` of layers without parts that has all of a module's parameters, or None."""
    everything = set(module.parameters())
    for part in module.modules():
        if isinstance(part, nn.Sequential) and set(part.parameters()) == everything:
            return part if len(part) and not any(list(layer.children()) for layer in part) else None
    return None


def shapes_of(net: nn.Sequential, inputs: Tensor) -> list[torch.Size]:
    """The shape of each layer's input."""
    shapes = []
    with torch.no_grad():
        for layer in net:
            shapes.append(inputs.shape)
            inputs = layer(inputs)
    return shapes


def _below(layer: nn.Module, gradient: dict[str, Tensor], shape: torch.Size, above: State | None, label: int) -> State:
    """What is known of a layer's input, of what is known of its output; None is the loss."""
    if isinstance(layer, nn.Linear):
        return _below_linear(layer, gradient, shape, above, label)
    assert above is not None
    if isinstance(layer, nn.Conv2d):
        return _below_convolution(layer, gradient["weight"], shape, above)
    if isinstance(layer, ACTIVATIONS):
        return _below_activation(layer, above)
    return State(above.value.view(shape), above.change.view(shape), above.known.view(shape), above.missing)


def _below_linear(
    layer: nn.Linear, gradient: dict[str, Tensor], shape: torch.Size, above: State | None, label: int
) -> State:
    """The weight's gradient is k x^T, so k fixes x alone; where there is a bias, k is its gradient."""
    if "bias" in gradient:
        k = gradient["bias"]
    else:
        k = _last_change(layer.weight, gradient["weight"], label) if above is None else above.change.flatten()
    value = (k @ gradient["weight"] / k.square().sum().clamp(min=1e-300)).view(shape)
    missing = 0 if above is None else above.missing
    return State(value, (k @ layer.weight).view(shape), torch.ones(shape, dtype=torch.bool), missing)


def _last_change(weight: Tensor, gradient: Tensor, label: int) -> Tensor:
    """The loss's derivative in the scores, c u, where the weight's gradient is u v^T: softmax(W v / c) - onehot = c u.

    Several c may fulfil the label's equation (the paper's "twin data"); the one that fulfils the others best is it.
    """
    left, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
    u, v = left[:, 0], right[0] * sizes[0]
    u, v = (u, v) if u[label] < 0 else (-u, -v)
    wanted = nn.functional.one_hot(torch.tensor(label), len(u)).to(u.dtype)

    def rest(c: Tensor) -> Tensor:
        found: Tensor = (weight @ v / c).softmax(0) - wanted - c * u
        return found

    grid = torch.logspace(-8, 1, 400, dtype=u.dtype)
    signs = torch.stack([rest(c)[label] for c in grid]).sign()
    roots = []
    for place in (signs[1:] != signs[:-1]).nonzero().flatten().tolist():
        low, high = grid[place], grid[place + 1]
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if rest(middle)[label].sign() == signs[place] else (low, middle)
        roots.append(low)
    best: Tensor = min(roots or list(grid), key=lambda c: float(rest(c).norm())) * u
    return best


def _below_activation(layer: nn.Module, above: State) -> State:
    """The activation's inverse and derivative, as functions of its output."""
    value, known = above.value, above.known
    if isinstance(layer, nn.Sigmoid):
        value = value.clamp(1e-12, 1 - 1e-12)
        return State(value.logit(), above.change * value * (1 - value), known, above.missing)
    if isinstance(layer, nn.Tanh):
        value = value.clamp(-1 + 1e-12, 1 - 1e-12)
        return State(value.atanh(), above.change * (1 - value.square()), known, above.missing)
    if isinstance(layer, nn.LeakyReLU):
        slope = torch.where(value < 0, layer.negative_slope, 1.0)
        return State(value / slope, above.change * slope, known, above.missing)
    on = value > 1e-6 * value.abs().max()
    return State(value, above.change * on, known & on, above.missing)


def _below_convolution(layer: nn.Conv2d, gradient: Tensor, shape: torch.Size, above: State) -> State:
    """The least-squares solution of weight and gradient constraints, each scaled to rows of unit mean square."""
    size = shape.numel()
    unit = torch.eye(size, dtype=torch.float64).view(size, *shape[1:])
    weights = layer._conv_forward(unit, layer.weight, None).flatten(1).T
    outputs = above.value if layer.bias is None else above.value - layer.bias[:, None, None]
    known = above.known.flatten()
    change = above.change.flatten()
    # A channel's part of the gradient is that of a convolution with one channel, and the same for all of them.
    channels, pixels = shape[1], shape[2] * shape[3]
    one = torch.eye(pixels, dtype=torch.float64).view(pixels, 1, *shape[2:])
    patches = nn.functional.unfold(
        nn.functional.pad(one, _padding(layer)), layer.kernel_size, dilation=layer.dilation, stride=layer.stride
    )  # [pixels, kernel, places]
    block = torch.einsum("pkl,ol->okp", patches, change.view(layer.out_channels, -1)).flatten(0, 1)
    constraints = torch.kron(torch.eye(channels, dtype=torch.float64), block)
    wanted = gradient.transpose(0, 1).flatten()
    rows, right = [], []
    for matrix, side in ((weights[known], outputs.flatten()[known]), (constraints, wanted)):
        scale = matrix.square().sum(1).mean().sqrt() if len(matrix) else torch.zeros(())
        if scale > 0:
            rows.append(matrix / scale)
            right.append(side / scale)
    if not rows:
        return State(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64), known, size)
    solved = torch.linalg.lstsq(torch.cat(rows), torch.cat(right)[:, None], driver="gelsy", rcond=1e-10)
    below = (change @ weights).view(shape)
    missing = max(above.missing, size - int(solved.rank))
    return State(solved.solution.view(shape), below, torch.ones(shape, dtype=torch.bool), missing)


def _padding(layer: nn.Conv2d) -> list[int]:
    """Left, right, above, below."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    if isinstance(layer.padding, str):
        return list(layer._reversed_padding_repeated_twice)
    down, across = layer.padding
    return [across, across, down, down]
