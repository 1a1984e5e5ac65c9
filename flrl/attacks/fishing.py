"""Reads the one sample out of an update in which a malicious server has had one sample alone leave a gradient.

Wen, Geiping, Fowl, Goldblum, Goldstein, "Fishing for User Data in Large-Batch Federated Learning via Gradient
Magnification", ICML 2022, arXiv 2202.00580. `adversary=server_fishing` makes the model. What is left of a batch are the
gradients of the target class's samples by all layers but the last: of one sample, its inputs follow from those of the
first dense layer as for `attack=analytic`; of several, a mixture does. The paper inverts the gradients of convolutional
nets, by optimisation.
"""

import torch
from torch import Tensor

from flrl.attacks.analytic import Analytic, inverted
from flrl.attacks.base import Finding, Observation, Progress


class Fishing(Analytic):
    """Divides the gradients of one neuron of the first dense layer, the one that the sample moves most."""

    knows = "A malicious server has sent a model in which one class alone leaves gradients, and sees a client's update."
    source = "Wen et al., ICML 2022, arXiv 2202.00580"

    def __init__(self) -> None:
        super().__init__(max_mixtures=1)

    def objection(self, observation: Observation) -> str | None:
        """What was sent must be a net for one class, and the first layer dense as for the closed form."""
        if target_of(observation) is None:
            return "the model that was sent fishes for no class: the run needs adversary=server_fishing"
        return super().objection(observation)

    def find(self, observation: Observation, progress: Progress) -> Finding:
        """One input of the target class; none where no sample left a gradient."""
        change, (weight, bias) = -observation.update, observation.layout.entries[:2]
        found = inverted(change[weight.slice].view(weight.shape), change[bias.slice])
        progress(1.0, "")
        if not len(found):
            return Finding(numbers={"caught": 0.0})
        return Finding(
            inputs=found.view(-1, *observation.inputs.shape).to(observation.inputs.dtype),
            labels=torch.tensor([target_of(observation)]),
            numbers={"caught": 1.0},
        )


def target_of(observation: Observation) -> int | None:
    """The class whose scores alone depend on the inputs in the model that was sent; None if there is no such one."""
    weight: Tensor = observation.parts(observation.sent)[observation.layout.trained[-2].name]
    classes = weight.any(dim=1).nonzero().flatten().tolist() if weight.ndim == 2 else []
    return int(classes[0]) if len(classes) == 1 and len(weight) > 1 else None
