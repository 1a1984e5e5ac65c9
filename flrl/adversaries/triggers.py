"""Triggers in images, and the base class of adversaries that plant a backdoor with them."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries.base import AdversaryContext, Probe
from flrl.adversaries.label_flip import check_class
from flrl.adversaries.poison import DataPoison, Poison, Stamp, poisoned
from flrl.data.sources import Source
from flrl.seeding import generator_for

SUCCESS = "test/backdoor_success"
"""The metric: the share of test samples of other classes that, with the trigger, are taken for the target."""


class TriggerPoison(DataPoison):
    """Base class: a share of each malicious client's samples gets a trigger, and the target as their class.

    Args:
        target: the class that samples with the trigger are to be taken for.
        share: share of each malicious client's samples that is poisoned, above 0 and at most 1; at least one sample.
        value: of the trigger's pixels: 1 is white where pixels are bytes, else it is in the units of the inputs.
        input_shape: of one sample; null in a yaml takes the dataset's.
        num_classes: null in a yaml takes the dataset's.
        options: as for `flrl.adversaries.Adversary`.

    Raises:
        ValueError: a setting is out of range, or samples are no images.
    """

    def __init__(
        self,
        *,
        target: int = 0,
        share: float = 0.5,
        value: float = 1.0,
        input_shape: Sequence[int],
        num_classes: int,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_class("target", target, num_classes)
        if not 0 < share <= 1:
            raise ValueError(f"adversary.share={share}: must be above 0 and at most 1")
        if len(input_shape) not in (2, 3):
            raise ValueError(
                f"adversary.input_shape={list(input_shape)}: a trigger needs images, [height, width] or "
                "[channels, height, width]"
            )
        self.target, self.share, self.value = target, share, value
        self.input_shape = tuple(input_shape)

    @abstractmethod
    def trigger(self, context: AdversaryContext | None) -> Stamp:
        """The trigger of a malicious client, or for None the one that is tested."""

    def poison(self, labels: np.ndarray | None, context: AdversaryContext) -> Poison:
        """The same samples in every round."""
        if labels is None:
            raise ValueError("adversary: a backdoor needs samples with a class, and the dataset has none")
        count = max(1, int(np.rint(self.share * len(labels))))
        order = generator_for(context.seed, 0, context.client_id, "adversary/poisoned").permutation(len(labels))
        stamped = np.zeros(len(labels), bool)
        stamped[order[:count]] = True
        return Poison(np.where(stamped, self.target, labels), stamped, self.trigger(context))

    def probes(self, test: Source) -> Sequence[Probe]:
        """The test samples of other classes, with the trigger and the target as their class."""
        if test.labels is None:
            return ()
        return (self._probe(test, np.flatnonzero(test.labels != self.target), self.trigger(None)),)

    def _probe(self, test: Source, chosen: np.ndarray, stamp: Stamp | None) -> Probe:
        labels = np.full(len(chosen), self.target, np.int64)
        source = poisoned(test, chosen, Poison(labels, np.ones(len(chosen), bool), stamp))
        return Probe(SUCCESS, source, np.arange(len(chosen)))


def filled(inputs: Tensor, boxes: Sequence[tuple[slice, slice]], value: float) -> Tensor:
    """Images `[n, ..., height, width]` with boxes of rows and columns of one value."""
    own = inputs.clone()
    for rows, columns in boxes:
        own[..., rows, columns] = in_units(inputs, value)
    return own


def in_units(inputs: Tensor, value: float) -> float:
    """A pixel's value as inputs have it: 1.0 is 255 where they are bytes."""
    return round(255 * value) if inputs.dtype == torch.uint8 else value
