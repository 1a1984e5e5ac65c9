"""Shifts: what becomes of the samples of a client, whoever has which by the partition."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from flrl.seeding import SERVER, generator_for


class Shift:
    """Base class of shifts. A subclass defines `labels`, or `amounts` and `inputs`, and is a file and a yaml.

    A shift has settings alone; all that it draws is a function of the partition's seed, the client and the sample. It
    applies to the training and the held-out samples of every client, held-out clients among them; not to the central
    test samples, the server's root samples and public ones.
    """

    follows_rounds = False
    """Whether `share` depends on the round."""

    @property
    def name(self) -> str:
        """The name that error messages call it by."""
        return type(self).__name__

    def share(self, round: int) -> float:
        """The share of each client's samples that is shifted in a round, from 0 to 1."""
        return 1.0

    def labels(self, labels: np.ndarray | None, owners: np.ndarray, num_clients: int, seed: int) -> np.ndarray | None:
        """What becomes of labels; returns new ones, or the same array where there is nothing to change.

        Args:
            labels: the class of each sample, int64 `[n]`; None if samples have none.
            owners: the client of each, int64 `[n]`.
            num_clients: number of clients, held-out ones among them.
            seed: the partition's.

        Raises:
            ValueError: samples have no class, and it is needed.
        """
        return labels

    def amounts(self, num_clients: int, seed: int) -> Tensor | None:
        """How much each client's inputs change, `[num_clients]`; None for a shift that does not change inputs."""
        return None

    def inputs(self, inputs: Tensor, amounts: Tensor, generators: Iterator[np.random.Generator]) -> Tensor:
        """What becomes of inputs; returns new ones of the same shape.

        Args:
            inputs: float32 `[m, ...]`; of images in memory, pixels from 0 to 1 before normalisation.
            amounts: those of their clients, float32 `[m]`.
            generators: one for each sample.

        Raises:
            ValueError: samples have another shape than is needed.
        """
        return inputs


class FeatureShift(Shift, ABC):
    """Base class of shifts of inputs, by an amount that each client draws uniformly; a subclass defines `inputs`.

    Args:
        low: the least amount.
        high: the greatest amount.
        levels: draw one of so many evenly spaced amounts from `low` to `high`, so that clients form groups; null: any.

    Raises:
        ValueError: an amount is not allowed, `low` is above `high`, or there are no levels.
    """

    least = -np.inf
    """The least amount that is allowed."""

    def __init__(self, *, low: float, high: float, levels: int | None = None) -> None:
        if not self.least <= low < np.inf:
            at_least = "" if self.least == -np.inf else f"at least {self.least:g} and "
            raise ValueError(f"partition.shift.low={low}: must be {at_least}finite")
        if not low <= high < np.inf:
            raise ValueError(f"partition.shift.high={high}: must be at least partition.shift.low={low} and finite")
        if levels is not None and levels < 1:
            raise ValueError(f"partition.shift.levels={levels}: must be at least 1, or null")
        self.low = low
        self.high = high
        self.levels = levels

    def amounts(self, num_clients: int, seed: int) -> Tensor:
        """Draw each client's amount, which does not depend on the number of clients."""
        drawn = generator_for(seed, 0, SERVER, f"shift/{self.name}").random(num_clients)
        if self.levels is not None:
            drawn = np.floor(drawn * self.levels) / max(1, self.levels - 1)
        return torch.from_numpy(self.low + (self.high - self.low) * drawn).float()

    @abstractmethod
    def inputs(self, inputs: Tensor, amounts: Tensor, generators: Iterator[np.random.Generator]) -> Tensor:
        """What becomes of inputs, see `Shift.inputs`."""


def images(inputs: Tensor, shift: str) -> Tensor:
    """The inputs; ValueError unless they are images, `[m, channels, height, width]`."""
    if inputs.ndim != 4:
        shape = list(inputs.shape[1:])
        raise ValueError(f"partition.shift: {shift} needs images [channels, height, width], and samples are {shape}")
    return inputs
