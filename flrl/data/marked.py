"""Datasets of which some samples have a property that is not their class: a mark in a corner of an image."""

from dataclasses import replace

import torch
from torch import Tensor

from flrl.data.sources import Splits, TensorSource


class Mark:
    """A white square in the lower right corner of images.

    Args:
        size: its side in pixels.
        value: the value of its pixels as they are stored, before normalisation; null: 255 for bytes, else 1.

    Raises:
        ValueError: `size` is below 1.
    """

    def __init__(self, *, size: int = 2, value: float | None = None) -> None:
        if size < 1:
            raise ValueError(f"size={size}: must be at least 1")
        self.size = size
        self.value = value

    def __call__(self, source: TensorSource) -> TensorSource:
        """The source with all its images marked.

        Raises:
            ValueError: samples are no images with room for the mark.
        """
        shape = source.inputs.shape
        if len(shape) != 4 or min(shape[2:]) < self.size:
            raise ValueError(f"size={self.size}: samples of shape {tuple(shape[1:])} have no corner of that size")
        marked = source.subset(torch.arange(len(source)).numpy())
        marked.inputs[:, :, -self.size :, -self.size :] = self._white(marked.inputs)
        return marked

    def _white(self, inputs: Tensor) -> float:
        if self.value is not None:
            return self.value
        return 1.0 if inputs.dtype.is_floating_point else 255.0


def marked(*, dataset: Splits, mark: Mark, share: float) -> Splits:
    """A dataset whose last training samples are marked; test samples are as they were.

    With `flrl.data.partitions.blocks` and the same share, the last clients have all marked samples and no others.

    Args:
        dataset: the dataset, of images in memory.
        mark: makes the mark.
        share: share of the training samples that are marked, in (0, 1).

    Raises:
        ValueError: the share is invalid, or samples are no images in memory.
    """
    if not 0 < share < 1:
        raise ValueError(f"dataset.share={share}: must be above 0 and below 1")
    train = dataset.train
    if not isinstance(train, TensorSource):
        raise ValueError(f"dataset.dataset: needs samples in memory, and has a {type(train).__name__}")
    first = round((1 - share) * len(train))
    both = mark(train)
    both.inputs[:first] = train.inputs[:first]
    return replace(dataset, train=both)
