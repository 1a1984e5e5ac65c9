"""Feature shifts: the inputs of each client are changed by an amount of its own, labels stay.

Rotations and contrasts as in the domains of Ghosh et al., "An Efficient Framework for Clustered Federated Learning",
NeurIPS 2020, arXiv 2006.04088, noise as in Li et al., "Federated Learning on Non-IID Data Silos", ICDE 2022, arXiv
2102.02079. What is computed is elementwise, so that threads do not matter.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from flrl.data.shifts.base import FeatureShift, images


class Rotation(FeatureShift):
    """Images are turned about their middle, anticlockwise by an angle in degrees; what was outside is 0.

    Values are interpolated bilinearly. Arguments as for `FeatureShift`: the angles.
    """

    def inputs(self, inputs: Tensor, amounts: Tensor, generators: Iterator[np.random.Generator]) -> Tensor:
        """The images, turned."""
        height, width = images(inputs, "Rotation").shape[2:]
        angle = torch.deg2rad(amounts)[:, None, None]
        y = (torch.arange(height) - (height - 1) / 2)[None, :, None]
        x = (torch.arange(width) - (width - 1) / 2)[None, None, :]
        from_x = torch.cos(angle) * x - torch.sin(angle) * y
        from_y = torch.sin(angle) * x + torch.cos(angle) * y
        grid = torch.stack([2 * from_x / max(1, width - 1), 2 * from_y / max(1, height - 1)], dim=-1)
        return nn.functional.grid_sample(inputs, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Noise(FeatureShift):
    """Gaussian noise with a standard deviation of the client's own, drawn once for each sample.

    Arguments as for `FeatureShift`: standard deviations, where pixels go from 0 to 1.
    """

    least = 0.0

    def inputs(self, inputs: Tensor, amounts: Tensor, generators: Iterator[np.random.Generator]) -> Tensor:
        """The inputs with noise added."""
        drawn = [rng.standard_normal(inputs.shape[1:], np.float32) for rng, _ in zip(generators, inputs, strict=False)]
        return inputs + torch.from_numpy(np.stack(drawn)) * amounts.view(-1, *(1,) * (inputs.ndim - 1))


class Blur(FeatureShift):
    """Images are blurred by a Gaussian, whose standard deviation in pixels is the client's own; edges are repeated.

    Arguments as for `FeatureShift`: standard deviations, 0 for none, at most the images' longer side.
    """

    least = 0.0

    def inputs(self, inputs: Tensor, amounts: Tensor, generators: Iterator[np.random.Generator]) -> Tensor:
        """The images, blurred."""
        blurred = images(inputs, "Blur")
        longer = max(blurred.shape[2:])
        if self.high > longer:
            raise ValueError(
                f"partition.shift.high={self.high}: must be at most {longer}, the longer side of images "
                f"[{', '.join(map(str, blurred.shape[1:]))}]"
            )
        radius = int(np.ceil(3 * self.high))
        at = torch.arange(-radius, radius + 1)
        weights = torch.exp(-0.5 * (at / amounts.clamp(min=1e-3)[:, None]) ** 2)
        weights = (weights / weights.sum(dim=1, keepdim=True))[:, :, None, None, None]
        for dim, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
            padded, size = nn.functional.pad(blurred, pad, mode="replicate"), inputs.shape[dim]
            blurred = torch.zeros_like(inputs)
            for place in range(2 * radius + 1):
                blurred += weights[:, place] * padded.narrow(dim, place, size)
        return blurred


class Contrast(FeatureShift):
    """The distance of each value from its sample's mean is multiplied by a factor of the client's own.

    Arguments as for `FeatureShift`: factors; 1 changes nothing, 0 leaves the mean alone.
    """

    least = 0.0

    def inputs(self, inputs: Tensor, amounts: Tensor, generators: Iterator[np.random.Generator]) -> Tensor:
        """The inputs with another contrast."""
        ones = (1,) * (inputs.ndim - 1)
        mean = inputs.flatten(1).double().mean(dim=1).float().view(-1, *ones)
        return mean + amounts.view(-1, *ones) * (inputs - mean)
