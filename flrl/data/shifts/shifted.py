"""A source of clients' shifted samples."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flrl.data.changing import with_input, with_label
from flrl.data.shifts.base import Shift
from flrl.data.sources import DatasetSource, Source, TensorSource
from flrl.seeding import generator_for

NOBODY = -1
"""The owner of samples that are not shifted."""
_AT_ONCE = 1024


def shifted(source: Source, shift: Shift, owners: np.ndarray, num_clients: int, seed: int) -> Source:
    """A source of the samples of another one, shifted, in their order.

    Samples in memory are changed once, and pixels stay whole numbers from 0 to 255; others are changed as they are
    read. If the shift follows rounds, there are twice as many: all samples as they are, then all of them shifted.

    Args:
        source: the training samples.
        shift: what becomes of them.
        owners: the client of each, int64 `[n]`; `NOBODY`'s stay as they are.
        num_clients: number of clients.
        seed: the partition's.

    Raises:
        ValueError: samples of this kind cannot be shifted so.
    """
    there = np.flatnonzero(owners != NOBODY)
    labels = source.labels
    if not len(there):
        return source
    own = None if labels is None else labels[there]
    new = shift.labels(own, owners[there], num_clients, seed)
    if labels is not None and new is not None:
        labels = labels.copy()
        labels[there] = new
    before = np.arange(len(source)) if shift.follows_rounds else np.empty(0, np.int64)
    if labels is not None and source.labels is not None:
        labels = np.concatenate([source.labels[before], labels])
    change = _Change(shift, owners, shift.amounts(num_clients, seed), seed, len(before), relabels=new is not own)
    if isinstance(source, TensorSource):
        return _in_memory(source, np.concatenate([before, np.arange(len(source))]), labels, change, there)
    if isinstance(source, DatasetSource):
        read = _Shifted(source.dataset, labels if change.relabels else None, change)
        read[int(there[0]) + len(before)]  # an error is raised before the first round
        return source.of(read, labels)
    raise ValueError(
        f"partition.shift: samples in a {type(source).__name__} cannot be shifted, must be in a TensorSource or a "
        "DatasetSource"
    )


class _Change:
    """Changes inputs of samples, given by their indices in the dataset.

    Attributes:
        owners: the client of each sample.
        amounts: by client; None if inputs do not change.
        first: place of the first shifted sample in the new source.
        relabels: whether labels change.
    """

    def __init__(
        self, shift: Shift, owners: np.ndarray, amounts: Tensor | None, seed: int, first: int, *, relabels: bool
    ) -> None:
        self.owners, self.amounts, self.first, self.relabels = owners, amounts, first, relabels
        self._shift, self._seed = shift, seed
        self.who = f"partition.shift: {shift.name}"

    def __call__(self, inputs: Tensor, indices: np.ndarray) -> Tensor:
        assert self.amounts is not None
        if not (inputs.dtype == torch.uint8 or inputs.is_floating_point()):
            raise ValueError(
                f"partition.shift: {self._shift.name} needs inputs of numbers, and samples are {inputs.dtype}"
            )
        pixels, amounts = inputs.dtype == torch.uint8, self.amounts[self.owners[indices].tolist()]
        values = inputs.float() / 255 if pixels else inputs.float()
        values = self._shift.inputs(values, amounts, self._generators(indices))
        return (values.clamp(0, 1) * 255).round().to(torch.uint8) if pixels else values.to(inputs.dtype)

    def _generators(self, indices: np.ndarray) -> Iterator[np.random.Generator]:
        for index in indices.tolist():
            yield generator_for(self._seed, 0, int(self.owners[index]), f"shift/{self._shift.name}/{index}")


def _in_memory(
    source: TensorSource, places: np.ndarray, labels: np.ndarray | None, change: _Change, there: np.ndarray
) -> TensorSource:
    own = source.subset(places)
    if change.relabels and labels is not None:
        own.labels = labels
        own.targets = torch.from_numpy(labels.copy())
    for start in range(0, len(there) if change.amounts is not None else 0, _AT_ONCE):
        indices = there[start : start + _AT_ONCE]
        at = torch.from_numpy(indices + change.first)
        own.inputs[at] = change(own.inputs[at], indices)
    return own


class _Shifted(Dataset[Any]):
    """Samples of a dataset, shifted when they are read; where that follows rounds, after all samples as they are."""

    def __init__(self, dataset: Dataset[Any], labels: np.ndarray | None, change: _Change) -> None:
        self.dataset, self.labels, self.change = dataset, labels, change

    def __len__(self) -> int:
        return self.change.first + len(self.change.owners)

    def __getitem__(self, place: int) -> Any:
        index = place - self.change.first
        if index < 0:
            return self.dataset[place]
        sample = self.dataset[index]
        if self.change.owners[index] == NOBODY:
            return sample
        if self.change.amounts is not None:
            sample = with_input(sample, partial(self.change, indices=np.array([index])), who=self.change.who)
        return with_label(sample, int(self.labels[place])) if self.labels is not None else sample
