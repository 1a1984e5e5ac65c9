"""Closed-form inversion of a first dense layer with bias: its input is a quotient of gradients, without any search.

Phong, Aono, Hayashi, Wang, Moriai, "Privacy-Preserving Deep Learning via Additively Homomorphic Encryption", IEEE TIFS
2018, section 3; Geiping et al., NeurIPS 2020, arXiv 2003.14053, proposition 3.1. For `y = W x + b` each neuron i has
`dL/dW[i] = dL/dy[i] x` and `dL/db[i] = dL/dy[i]`, so `x = dL/dW[i] / dL/db[i]`: exact for one sample. For a batch the
quotient is the mean of the batch's inputs, weighted by the neuron's `dL/dy`: a mixture, which is one sample alone only
if no other one activates the neuron.
"""

import torch
from torch import Tensor, nn

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import num_trained
from flrl.attacks.labels import sign_rule


class Analytic(Attack):
    """Divides the gradients of the first dense layer's weights by those of its bias, neuron by neuron.

    Args:
        max_mixtures: of the neurons with the largest gradients of their bias, at most so many give an input each.

    Raises:
        ValueError: a setting is invalid.
    """

    knows = "An honest-but-curious server, or an eavesdropper, sees the update of one client; it searches for nothing."
    source = "Phong et al., IEEE TIFS 2018; Geiping et al., NeurIPS 2020, arXiv 2003.14053, proposition 3.1"
    on_sums = True

    def __init__(self, *, max_mixtures: int = 100) -> None:
        if max_mixtures < 1:
            raise ValueError(f"attack.max_mixtures={max_mixtures}: must be at least 1")
        self.max_mixtures = max_mixtures

    def objection(self, observation: Observation) -> str | None:
        """The module's first layer must be dense, with a bias, and see the inputs themselves."""
        return super().objection(observation) or _objection(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """One input for one sample, else the neurons' mixtures; the class of one sample by the sign rule."""
        gradients, (name, _) = observation.parts(-observation.update), _first_layer(observation.module)
        weights, bias = gradients[f"{name}.weight"], gradients[f"{name}.bias"]
        single = num_trained(observation) == 1
        found = inverted(weights, bias, 1 if single else self.max_mixtures).view(-1, *observation.inputs.shape)
        progress(1.0, "")
        last = _last_bias(observation)
        labels = sign_rule(gradients[last]) if single and last is not None else None
        return Finding(
            inputs=found.to(observation.inputs.dtype) if len(found) else None,
            labels=labels,
            numbers={"silent_neurons": float((bias == 0).sum())},
        )


def _first_layer(module: nn.Module) -> tuple[str, nn.Module]:
    """Name and layer of the first layer that has parameters."""
    for name, part in module.named_modules():
        if any(True for _ in part.parameters(recurse=False)):
            return name, part
    return "", module


def _objection(observation: Observation) -> str | None:
    name, layer = _first_layer(observation.module)
    size = int(torch.Size(observation.inputs.shape).numel())
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return f"needs a first layer that is dense and has a bias; {name} is a {type(layer).__name__}"
    if layer.in_features != size:
        return f"needs a first layer that sees the inputs: {name} takes {layer.in_features} numbers, not {size}"
    sent = {entry.name for entry in observation.layout.entries}
    if not {f"{name}.weight", f"{name}.bias"} <= sent:
        return f"needs the first layer's gradients, and {name} is personal: it is not sent"
    return None


def _last_bias(observation: Observation) -> str | None:
    """The name of the bias of the class scores, if the last parameter is one."""
    name = observation.layout.trained[-1].name
    shape = observation.layout.trained[-1].shape
    return name if name.endswith("bias") and shape == (observation.inputs.num_classes,) else None


def inverted(weight_gradient: Tensor, bias_gradient: Tensor, most: int = 1) -> Tensor:
    """The inputs that the neurons of a dense layer give, those with the largest gradients of their bias first.

    Args:
        weight_gradient: `[out, in]`.
        bias_gradient: `[out]`.
        most: number of neurons at most; those without any gradient are left out.

    Returns:
        `[n, in]`: for one sample its input, else a mixture of the batch's inputs for each neuron.

    Example:
        >>> inverted(torch.tensor([[0.0, 0.0], [2.0, -4.0]]), torch.tensor([0.0, 2.0]))
        tensor([[ 1., -2.]])
    """
    chosen = bias_gradient.abs().argsort(descending=True, stable=True)[:most]
    chosen = chosen[bias_gradient[chosen] != 0]
    return weight_gradient[chosen] / bias_gradient[chosen, None]
