"""The classes of a client's samples, from the gradient of the last layer.

One sample: Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020, arXiv 2001.02610: the gradient of
the last bias is softmax minus one-hot, negative for the sample's class alone; without a bias the rows of the weight's
gradient are multiples of it.

Batches: Wainakh et al., "User-Level Label Leakage from Gradients in Federated Learning", PoPETs 2022, arXiv 2105.09369,
algorithm 1. Each sample takes an impact m < 0 off the sum g_i of its class's row, and misclassified samples of other
classes add an offset s_i. "llg" estimates m from the negative rows alone; "llg_star" measures m and s with the model
that was sent on noise, "llg_plus" on public samples. Of several local steps the mean gradient is taken for the first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from flrl.attacks.base import Attack, Finding, Observation, Progress
from flrl.attacks.gradients import Training, generator_of, num_steps, num_trained

Rule = Literal["sign", "llg", "llg_star", "llg_plus"]
RULES = ("sign", "llg", "llg_star", "llg_plus")
REPEATS = 4
"""Batches of a class that are measured."""


@dataclass(frozen=True, slots=True)
class LastLayer:
    """Names of the parameters of the layer that gives the class scores; `bias` may be None."""

    weight: str
    bias: str | None


def last_layer(observation: Observation) -> LastLayer | None:
    """The last trained `nn.Linear` with one output a class, or None."""
    trained = observation.parts(observation.sent)
    classes = observation.inputs.num_classes
    found = [
        LastLayer(f"{name}.weight", f"{name}.bias" if layer.bias is not None else None)
        for name, layer in observation.module.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == classes and f"{name}.weight" in trained
    ]
    return found[-1] if found else None


def objection_to_labels(observation: Observation, rule: Rule = "llg") -> str | None:
    """Why labels cannot be read from the last layer, or None."""
    if observation.inputs.num_classes is None:
        return "targets are no classes"
    if last_layer(observation) is None:
        return "the module has no trained nn.Linear with one output a class"
    if rule == "sign" and num_trained(observation) > 1:
        return f"the sign rule is for one sample, and the update is of {num_trained(observation)}"
    if rule in ("llg_star", "llg_plus") and not observation.local.only_gradient and observation.local.lr is None:
        return f"attack.rule={rule} needs the learning rate of plain SGD; llg does not"
    if rule == "llg_plus" and (observation.public is None or observation.public.labels is None):
        return "attack.rule=llg_plus needs public samples with classes"
    return None


def sign_rule(bias_gradient: Tensor) -> Tensor:
    """The class of one sample: the only one whose score's bias has a negative gradient (iDLG, arXiv 2001.02610).

    Args:
        bias_gradient: of the cross-entropy, with respect to the bias of the class scores, `[num_classes]`.

    Returns:
        int64 `[1]`.
    """
    return torch.argmin(bias_gradient).view(1)


def labels_of(observation: Observation) -> Tensor:
    """The most likely classes of all trained samples in ascending order, int64 `[n]`."""
    counts = count_labels(observation, "sign" if num_trained(observation) == 1 else "llg_star")
    return torch.arange(len(counts)).repeat_interleave(counts)


def count_labels(observation: Observation, rule: Rule) -> Tensor:
    """Samples of each class, int64 `[num_classes]`."""
    layer, steps = last_layer(observation), num_steps(observation)
    lr = 1.0 if observation.local.only_gradient else observation.local.lr or 1.0
    assert layer is not None
    assert observation.inputs.num_classes is not None
    gradient = observation.parts(-observation.update / (lr * steps))
    classes = observation.inputs.num_classes
    if rule == "sign":
        scores = gradient[layer.weight].sum(1) if layer.bias is None else gradient[layer.bias]
        return nn.functional.one_hot(sign_rule(scores), classes)[0]
    return _by_impact(gradient[layer.weight].sum(1), observation, layer, rule)


def _by_impact(rows: Tensor, observation: Observation, layer: LastLayer, rule: Rule) -> Tensor:
    """Algorithm 1 of the paper."""
    samples, classes = num_trained(observation), len(rows)
    negative = rows < 0
    if rule == "llg":
        impact = rows[negative].sum() / samples * (1 + 1 / classes)
        offsets = torch.zeros_like(rows)
    else:
        impact, offsets = _measured(observation, layer, rule)
    counts = torch.zeros(classes, dtype=torch.int64)
    rest = rows.clone()
    if int(negative.sum()) <= samples:
        counts[negative] = 1
        rest[negative] -= impact
    rest -= offsets
    while int(counts.sum()) < samples:
        most = int(rest.argmin())
        counts[most] += 1
        rest[most] -= impact
    return counts


def _measured(observation: Observation, layer: LastLayer, rule: Rule) -> tuple[Tensor, Tensor]:
    """Impact of a sample, and offsets `[num_classes]`, of batches of one class each."""
    training = Training.of(observation, torch.float64)
    parameters, samples = training.start, num_trained(observation)
    place = list(parameters).index(layer.weight)
    own: list[Tensor] = []
    others: dict[int, list[Tensor]] = {label: [] for label in range(observation.inputs.num_classes or 0)}
    for label, inputs in _batches(observation, rule, min(samples, 8)):
        labels = torch.full((len(inputs),), label)
        rows = training.gradient(parameters, inputs, labels)[place].detach().sum(1)
        own.append(rows[label])
        for other, found in others.items():
            if other != label:
                found.append(rows[other])
    impact = torch.stack(own).mean() / samples * (1 + 1 / len(others))
    offsets = torch.stack([torch.stack(found).mean() if found else impact * 0 for found in others.values()])
    return impact, offsets


def _batches(observation: Observation, rule: Rule, size: int) -> Iterator[tuple[int, Tensor]]:
    """Batches of one class each, with it."""
    inputs, public = observation.inputs, observation.public
    for label in range(inputs.num_classes or 0):
        if rule == "llg_plus" and public is not None and public.labels is not None:
            chosen = np.flatnonzero(public.labels == label)[: REPEATS * size]
            for batch in public.batches(chosen, size) if len(chosen) else ():
                yield label, batch[0].double()
        else:
            generator = generator_of(observation, "labels", label)
            for _ in range(REPEATS):
                noise = torch.rand((size, *inputs.shape), generator=generator, dtype=torch.float64)
                if inputs.dtype.is_floating_point:
                    yield label, noise * (inputs.high - inputs.low) + inputs.low
                else:
                    yield label, (noise * (inputs.high - inputs.low + 1) + inputs.low).floor().to(inputs.dtype)


class LabelCounts(Attack):
    """Counts the samples of each class.

    Args:
        rule: "auto" (sign for one sample, else llg_star, or llg without a learning rate), "sign", "llg", "llg_star" or
            "llg_plus".
    """

    knows = "An honest but curious server, or an eavesdropper: the model that was sent, and the update's last layer."
    source = "Zhao et al. 2020, arXiv 2001.02610; Wainakh et al., PoPETs 2022, arXiv 2105.09369"
    on_sums = True

    def __init__(self, *, rule: Literal["auto", "sign", "llg", "llg_star", "llg_plus"] = "auto") -> None:
        if rule not in ("auto", *RULES):
            raise ValueError(f"attack.rule={rule!r}: must be one of auto, {', '.join(RULES)}")
        self.rule = rule

    def objection(self, observation: Observation) -> str | None:
        """No last linear layer, or what the rule needs is not known."""
        return objection_to_labels(observation, self._rule(observation))

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Counts, and for one sample its label."""
        counts = count_labels(observation, self._rule(observation))
        labels = torch.arange(len(counts)).repeat_interleave(counts) if num_trained(observation) == 1 else None
        return Finding(labels=labels, label_counts=counts)

    def _rule(self, observation: Observation) -> Rule:
        if self.rule != "auto":
            return self.rule
        if num_trained(observation) == 1:
            return "sign"
        known = observation.local.only_gradient or observation.local.lr is not None
        return "llg_star" if known and observation.inputs.dtype.is_floating_point else "llg"
