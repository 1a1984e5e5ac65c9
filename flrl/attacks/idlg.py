"""Improved deep leakage from gradients: the label is read from the last layer, the image alone is searched for.

Zhao, Mopuri, Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020, arXiv 2001.02610. As there, one sample.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from flrl.attacks.base import Observation
from flrl.attacks.gradients import generator_of, num_trained
from flrl.attacks.labels import labels_of, objection_to_labels
from flrl.attacks.second_order import SecondOrder


class IDLG(SecondOrder):
    """From normal noise.

    Args:
        iterations: as for `SecondOrder`.
        restarts: likewise.
        tolerance: likewise.
        max_steps: more local steps (of the one sample) are not simulated.
    """

    source = "Zhao, Mopuri, Bilen, 2020, arXiv 2001.02610"

    def __init__(
        self, *, iterations: int = 300, restarts: int = 3, tolerance: float = 1e-8, max_steps: int = 16
    ) -> None:
        super().__init__(
            iterations=iterations, restarts=restarts, tolerance=tolerance, max_samples=1, max_steps=max_steps
        )

    def objection(self, observation: Observation) -> str | None:
        """More than one sample, no last linear layer, or as for DLG."""
        if num_trained(observation) > 1:
            return f"is for one sample, and the update is of {num_trained(observation)}: use attack=dlg"
        return super().objection(observation) or objection_to_labels(observation)

    def start(self, observation: Observation, restart: int) -> Sequence[Tensor]:
        """The sample."""
        generator = generator_of(observation, "idlg", restart)
        return [torch.randn((1, *observation.inputs.shape), generator=generator, dtype=torch.float64)]

    def known_labels(self, observation: Observation) -> Tensor:
        """By the sign rule."""
        return labels_of(observation)
