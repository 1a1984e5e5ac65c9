"""The client privacy leakage attack: a patterned start, the label from the last layer, and a label regulariser.

Wei et al., "A Framework for Evaluating Gradient Leakage Attacks in Federated Learning", ESORICS 2020, arXiv 2004.10397,
algorithm 1: L-BFGS on the squared distance of gradients plus alpha times that of the output to the label.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flrl.attacks.base import Observation
from flrl.attacks.gradients import Training, generator_of, num_trained
from flrl.attacks.labels import labels_of, objection_to_labels
from flrl.attacks.matching import check_at_least
from flrl.attacks.second_order import SecondOrder

STARTS = ("patch", "geometric", "constant", "noise")


class CPL(SecondOrder):
    """From a pattern, with the labels from the last layer.

    Args:
        start: "patch" (a small random patch repeated over the image), "geometric" (the same in vertical stripes),
            "constant" (one random level) or "noise"; inputs that are no images start at noise unless it is constant.
        patches: number of patches along each edge.
        alpha: weight of the squared distance between the softmax of the output and the label.
        options: as for `SecondOrder`.
    """

    source = "Wei et al., ESORICS 2020, arXiv 2004.10397"

    def __init__(
        self,
        *,
        start: Literal["patch", "geometric", "constant", "noise"] = "patch",
        patches: int = 4,
        alpha: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if start not in STARTS:
            raise ValueError(f"attack.start={start!r}: must be one of {', '.join(STARTS)}")
        check_at_least("patches", patches, 1)
        check_at_least("alpha", alpha, 0)
        self.pattern, self.patches, self.alpha = start, patches, alpha

    def objection(self, observation: Observation) -> str | None:
        """As for `InvertingGradients`."""
        return super().objection(observation) or objection_to_labels(observation)

    def known_labels(self, observation: Observation) -> Tensor:
        """From the last layer."""
        return labels_of(observation)

    def regulariser(self, training: Training, tensors: Sequence[Tensor], known: Tensor | None) -> Tensor | None:
        """How far the outputs are from the labels."""
        if self.alpha == 0 or known is None:
            return None
        scores = training.outputs(tensors[0]).softmax(1)
        return self.alpha * (scores - nn.functional.one_hot(known, scores.shape[1])).square().sum()

    def start(self, observation: Observation, restart: int) -> Sequence[Tensor]:
        """The first guess."""
        return [self._pattern(observation, restart)]

    def _pattern(self, observation: Observation, restart: int) -> Tensor:
        """The first guess, `[n, *shape]`."""
        shape = (num_trained(observation), *observation.inputs.shape)
        generator = generator_of(observation, "cpl", restart)
        if self.pattern == "constant":
            return torch.rand((shape[0],) + (1,) * (len(shape) - 1), generator=generator).double().expand(shape).clone()
        if self.pattern == "noise" or len(shape) != 4:
            return torch.randn(shape, generator=generator, dtype=torch.float64)
        samples, channels, height, width = shape
        down, across = -(-height // self.patches), -(-width // self.patches)
        patch = torch.rand(samples, channels, down, across, generator=generator, dtype=torch.float64)
        if self.pattern == "geometric":
            patch = patch[:, :, :1, :].expand(-1, -1, down, -1)
        return patch.repeat(1, 1, self.patches, self.patches)[:, :, :height, :width].clone()
