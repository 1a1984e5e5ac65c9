"""Deep leakage from gradients: inputs and soft labels are varied together until their gradient is the observed one.

Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, with a line search in L-BFGS.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flrl.attacks.base import Observation
from flrl.attacks.gradients import generator_of, num_trained
from flrl.attacks.second_order import SecondOrder


class DLG(SecondOrder):
    """From normal noise for samples and labels; arguments as for `SecondOrder`."""

    source = "Zhu, Liu, Han, NeurIPS 2019, arXiv 1906.08935"

    def start(self, observation: Observation, restart: int) -> Sequence[Tensor]:
        """Samples, and logits of their labels."""
        assert observation.inputs.num_classes is not None
        generator, count = generator_of(observation, "dlg", restart), num_trained(observation)
        shapes = ((count, *observation.inputs.shape), (count, observation.inputs.num_classes))
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def labels(self, tensors: Sequence[Tensor], known: Tensor | None) -> Tensor:
        """Probabilities of the classes, `[n, num_classes]`."""
        return tensors[1].softmax(1)
