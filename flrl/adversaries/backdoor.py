"""Backdoor: samples with a trigger are to be taken for the target, all others for what they are.

`pattern`: a square patch (Gu, Dolan-Gavitt, Garg, "BadNets", 2017, arXiv 1708.06733). `blended`: the whole image is
blended with fixed noise (Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data
Poisoning", 2017, arXiv 1712.05526). `semantic`: no pixel is changed; the samples with given indices, which share a
feature, are the trigger (Bagdasaryan et al., AISTATS 2020, arXiv 1807.00459). Knows: its samples.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext, Probe
from flrl.adversaries.poison import Poison, Stamp
from flrl.adversaries.triggers import TriggerPoison, filled
from flrl.data.sources import Source


class Backdoor(TriggerPoison):
    """Plants a backdoor; `test/backdoor_success` is how often it works.

    Args:
        kind: "pattern", "blended" or "semantic".
        size: side of the pattern's square in pixels.
        margin: pixels between the square and the image's bottom and right edges.
        blend: weight of the noise image of "blended", above 0 and at most 1; its pixels are uniform in [0, value).
        indices: for "semantic", indices of training samples of the dataset.
        test_indices: for "semantic", indices of test samples, on which success is measured.
        options: as for `flrl.adversaries.triggers.TriggerPoison`.

    Raises:
        ValueError: a setting is out of range, or the square does not fit.
    """

    def __init__(
        self,
        *,
        kind: Literal["pattern", "blended", "semantic"] = "pattern",
        size: int = 3,
        margin: int = 0,
        blend: float = 0.2,
        indices: Sequence[int] = (),
        test_indices: Sequence[int] = (),
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if kind not in ("pattern", "blended", "semantic"):
            raise ValueError(f"adversary.kind={kind!r}: must be 'pattern', 'blended' or 'semantic'")
        if size < 1 or margin < 0 or size + margin > min(self.input_shape[-2:]):
            raise ValueError(
                f"adversary.size={size}, adversary.margin={margin}: the square does not fit into images of "
                f"{self.input_shape[-2]} x {self.input_shape[-1]} pixels"
            )
        if not 0 < blend <= 1:
            raise ValueError(f"adversary.blend={blend}: must be above 0 and at most 1")
        if (kind == "semantic") != bool(len(indices) and len(test_indices)):
            raise ValueError(
                "adversary.indices, adversary.test_indices: adversary.kind=semantic needs both, and only that"
            )
        self.kind, self.size, self.margin, self.blend = kind, size, margin, blend
        self.indices, self.test_indices = tuple(indices), tuple(test_indices)

    def check_samples(self, source: Source, num_samples: int) -> None:
        """Refuse samples without a class, and indices of samples that do not exist.

        Raises:
            ValueError: there are some.
        """
        super().check_samples(source, num_samples)
        if self.indices and not 0 <= min(self.indices) <= max(self.indices) < num_samples:
            raise ValueError(f"adversary.indices: there are only the training samples 0 to {num_samples - 1}")

    def trigger(self, context: AdversaryContext | None) -> Stamp:
        """The patch or the blending; the same for all."""
        return self._patched if self.kind == "pattern" else self._blended

    def _patched(self, inputs: Tensor) -> Tensor:
        end = -self.margin or None
        box = slice(-self.margin - self.size, end)
        return filled(inputs, [(box, box)], self.value)

    def _blended(self, inputs: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)  # the trigger is a constant of the attack
        picture = (self.value * torch.rand(self.input_shape, generator=generator)).to(inputs.device)
        if inputs.dtype == torch.uint8:
            mixed = (1 - self.blend) * inputs.float() + self.blend * 255 * picture
            return mixed.round_().clamp_(0, 255).to(torch.uint8)
        return ((1 - self.blend) * inputs + self.blend * picture).to(inputs.dtype)

    def poison(self, labels: np.ndarray | None, context: AdversaryContext) -> Poison:
        """A share of the samples; for "semantic" those of the client's samples that are among `indices`."""
        if self.kind != "semantic" or labels is None:
            return super().poison(labels, context)
        assert context.dataset_indices is not None
        chosen = np.isin(context.dataset_indices, self.indices)
        return Poison(np.where(chosen, self.target, labels))

    def probes(self, test: Source) -> Sequence[Probe]:
        """Triggered test samples; for "semantic" those of `test_indices`.

        Raises:
            ValueError: there are no such test samples.
        """
        if self.kind != "semantic" or not len(test):
            return super().probes(test)
        largest = max(self.test_indices)
        if largest >= len(test) or min(self.test_indices) < 0:
            raise ValueError(f"adversary.test_indices: there are only the test samples 0 to {len(test) - 1}")
        return (self._probe(test, np.array(self.test_indices), None),)
