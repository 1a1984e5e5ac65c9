"""Data poisoning: a malicious client's own samples with other labels, or with a trigger in their inputs."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flrl.adversaries.base import Adversary, AdversaryContext
from flrl.data.changing import with_input, with_label
from flrl.data.sources import DatasetSource, Source, TensorSource

Stamp = Callable[[Tensor], Tensor]
"""Puts a trigger into inputs `[n, ...]`, as they are in the source; returns new ones."""


@dataclass(frozen=True, slots=True)
class Poison:
    """What becomes of some samples.

    Attributes:
        labels: their classes from now on, int64 `[n]`; None leaves them.
        stamped: bool `[n]`, the samples that get the trigger; None for none.
        stamp: the trigger.
    """

    labels: np.ndarray | None = None
    stamped: np.ndarray | None = None
    stamp: Stamp | None = None


class DataPoison(Adversary):
    """Base class of adversaries whose clients train honestly on poisoned samples; a subclass defines `poison`."""

    @abstractmethod
    def poison(self, labels: np.ndarray | None, context: AdversaryContext) -> Poison:
        """What becomes of a malicious client's samples.

        Args:
            labels: their classes, int64 `[n]`; None if samples have no class.
            context: the round; the same samples should be poisoned in every round, so draw by `context.seed` alone.
        """

    def check_samples(self, source: Source, num_samples: int) -> None:
        """Refuse samples without a class.

        Raises:
            ValueError: they have none.
        """
        if source.labels is None:
            raise ValueError(f"adversary: {type(self).__name__} needs samples with a class, and the dataset has none")

    def samples(self, source: Source, indices: np.ndarray, context: AdversaryContext) -> tuple[Source, np.ndarray]:
        """The client's samples, poisoned."""
        labels = None if source.labels is None else source.labels[indices]
        return poisoned(source, indices, self.poison(labels, context)), np.arange(len(indices))


def poisoned(source: Source, indices: np.ndarray, poison: Poison) -> Source:
    """A source of some samples of another one, poisoned, in the order of `indices`.

    Raises:
        ValueError: samples of the source's kind cannot be poisoned.
    """
    if isinstance(source, TensorSource):
        own = source.subset(indices)
        if poison.labels is not None:
            own.targets = torch.from_numpy(np.array(poison.labels)).to(own.targets)
            own.labels = np.array(poison.labels)
        if poison.stamped is not None and poison.stamp is not None and poison.stamped.any():
            places = torch.from_numpy(np.flatnonzero(poison.stamped)).to(own.inputs.device)
            own.inputs[places] = poison.stamp(own.inputs[places])
        return own
    if isinstance(source, DatasetSource):
        labels = poison.labels
        if labels is None and source.labels is not None:
            labels = source.labels[indices]
        return source.of(_Poisoned(source.dataset, indices, poison), labels)
    raise ValueError(f"adversary: samples in a {type(source).__name__} cannot be poisoned, must be a TensorSource")


class _Poisoned(Dataset[Any]):
    """Some samples of a dataset, poisoned when they are read."""

    def __init__(self, dataset: Dataset[Any], indices: np.ndarray, poison: Poison) -> None:
        self.dataset, self.indices, self.poison = dataset, indices, poison

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Any:
        sample, poison = self.dataset[int(self.indices[place])], self.poison
        if poison.stamped is not None and poison.stamp is not None and poison.stamped[place]:
            sample = with_input(sample, poison.stamp, who="adversary: a trigger")
        return sample if poison.labels is None else with_label(sample, int(poison.labels[place]))
