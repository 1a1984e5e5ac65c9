"""Datasets of which some samples have a property that is not their class: a mark in a corner of an image."""

from dataclasses import replace

import numpy as np

from flrl.data.sources import Splits, TensorSource


class Mark:
    """A white square in the lower right corner of images.

    Args:
        size: its side in pixels.
        value: the value of its pixels as they are stored, before normalisation; null: the largest of all images.

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
        marked = source.subset(np.arange(len(source)))
        white = marked.inputs.max() if self.value is None else self.value
        marked.inputs[:, :, -self.size :, -self.size :] = white
        return marked


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
