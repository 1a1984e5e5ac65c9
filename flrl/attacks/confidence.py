"""How sure a model is of samples: class scores, log odds, losses and gradient norms, one for each sample."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from flrl.attacks.base import Observation
from flrl.data import TensorSource
from flrl.lightning.hooks import overridden
from flrl.lightning.modes import evaluating

_BATCH = 512
_BYTES = 2**26
"""Of the gradients of single samples that are held at a time."""


def needs_scores(observation: Observation) -> str | None:
    """The reason why the module gives no class scores, or None."""
    if not overridden(observation.module, "forward"):
        return f"needs class scores, and {type(observation.module).__name__} has no forward"
    if observation.inputs.num_classes is None:
        return "needs classes, and targets are none"
    if observation.layout.personal:
        return "clients keep parts of the model to themselves, so what it says of samples is not known"
    return None


def class_scores(observation: Observation, vector: Tensor, samples: TensorSource) -> Tensor:
    """The class scores that a model gives to samples, in evaluation mode.

    Args:
        observation: gives the module and its layout.
        vector: the model, `[layout.size]`.
        samples: as `flrl.attacks.samples.gathered` makes them.

    Returns:
        What `module.forward` returns, float64 `[samples, classes]`.
    """
    tensors = observation.layout.unflatten(vector)
    with torch.no_grad(), evaluating(observation.module):
        parts = [functional_call(observation.module, tensors, (x,)) for x in torch.split(samples.inputs, _BATCH)]
    return torch.cat(parts).double()


def log_odds(scores: Tensor, classes: Tensor) -> Tensor:
    """The logit of the probability of a sample's class: `log(p / (1 - p))`, which is nearly normal over models.

    Carlini et al., 2022, equation 4, computed from scores so that probabilities near 1 lose no digits.

    Args:
        scores: `[samples, classes]`.
        classes: int64 `[samples]`.

    Example:
        >>> log_odds(torch.tensor([[0.75, 0.25]], dtype=torch.float64).log(), torch.tensor([0])).exp()
        tensor([3.0000], dtype=torch.float64)
    """
    own = scores.gather(1, classes[:, None])
    others = scores.scatter(1, classes[:, None], -torch.inf)
    return own[:, 0] - torch.logsumexp(others, 1)


def losses(observation: Observation, vector: Tensor, samples: TensorSource) -> Tensor:
    """The cross-entropy of each sample, float64 `[samples]`; arguments as for `class_scores`."""
    scores = class_scores(observation, vector, samples)
    return nn.functional.cross_entropy(scores, samples.targets, reduction="none")


def gradient_norms(observation: Observation, vector: Tensor, samples: TensorSource) -> Tensor:
    """The norm of the gradient of each sample's cross-entropy, float64 `[samples]`; arguments as for `class_scores`."""
    module, layout = observation.module, observation.layout
    tensors = layout.unflatten(vector)
    names = {entry.name for entry in layout.trained}
    fixed = {name: tensor for name, tensor in tensors.items() if name not in names}

    def loss(parameters: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        scores: Any = functional_call(module, {**parameters, **fixed}, (x[None],))
        return nn.functional.cross_entropy(scores, y[None])

    def norm(x: Tensor, y: Tensor) -> Tensor:
        gradients = grad(loss)({name: tensors[name] for name in names}, x, y)
        return torch.stack([gradient.double().square().sum() for gradient in gradients.values()]).sum().sqrt()

    size = max(1, _BYTES // (4 * layout.num_trainable))
    with evaluating(module):
        parts = zip(torch.split(samples.inputs, size), torch.split(samples.targets, size), strict=True)
        return torch.cat([vmap(norm)(x, y).detach() for x, y in parts])
