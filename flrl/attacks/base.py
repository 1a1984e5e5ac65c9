"""What an observer of a finished run knows, and what an attack makes of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from flrl.data.sources import Source
from flrl.layout import ParameterLayout
from flrl.strategies import Strategy
from flrl.trainers import Trainer
from flrl.types import Tensors

Progress = Callable[[float, str], None]
"""Called with the share of the work that is done, in [0, 1], and what to show beside it."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What samples of the run's dataset look like, which everybody in the federation knows.

    Attributes:
        shape: of one sample's inputs, without a batch dimension.
        dtype: of the inputs that the module is given.
        low: the smallest value that an input can have, after normalisation; `[channels, 1, ...]` or a scalar tensor.
        high: likewise the largest one.
        num_classes: number of classes; None where targets are no classes.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: Tensor
    high: Tensor
    num_classes: int | None


@dataclass(frozen=True, slots=True)
class Local:
    """How clients train, which everybody in the federation knows too.

    Attributes:
        only_gradient: clients take no step and send minus the gradient of their mean loss (FedSGD).
        lr: learning rate of plain SGD; None where the optimizer is another one.
        batch_size: samples of a step.
        epochs: passes over a client's samples; None where steps are counted.
        steps: steps instead of epochs.
        shuffle: whether each pass has an order of its own; else the batches are in the client's fixed order.
    """

    only_gradient: bool
    lr: float | None
    batch_size: int
    epochs: int | None
    steps: int | None
    shuffle: bool

    def num_steps(self, num_samples: int) -> int:
        """Steps that a client with so many samples takes; 1 for a gradient."""
        if self.only_gradient:
            return 1
        return self.steps if self.steps is not None else (self.epochs or 1) * -(-num_samples // self.batch_size)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Samples of which some are in the observed training set: which ones is what membership attacks are to find out.

    Attributes:
        source: has the samples.
        indices: int64 `[n]`, into `source`.
    """

    source: Source
    indices: np.ndarray


@dataclass(frozen=True, slots=True)
class Observation:
    """All that an attack is given: what was on the wire and what is public. No client's samples are reachable from it.

    Attributes:
        round: the observed round, counted from 1.
        clients: the observed client; or all of a cohort, of whose updates only the weighted mean is seen.
        module: the run's module, a copy of the attack's own with `sent` loaded, on the CPU.
        layout: the layout of the vectors.
        sent: the vector that the client was sent, `[layout.size]`.
        update: what it sent back after its transforms (local minus global model, or minus a gradient), float64
            `[layout.size]`.
        vectors: further vectors that it sent, by name.
        num_samples: the weight that came with the update.
        local: how clients train.
        inputs: what samples look like.
        public: samples of the same kind that are no client's; the attack may learn from them.
        candidates: for membership attacks.
        model_before: the global model before a round (1 is the initial one), `[layout.size]`; rounds up to `round + 1`.
        update_in: the update of the same client in another round (None where it took no part, or was not seen).
        device: where the attack may compute; all tensors that it is given are on the CPU.
        extras: what an attack of one kind needs besides, by name.
        seed: of all that the attack draws.
        trainer: the run's engine with all its settings, which everybody knows; None: what `local` says of it.
        strategy: the run's algorithm, likewise; None: plain averaging.
    """

    round: int
    clients: Sequence[int]
    module: pl.LightningModule
    layout: ParameterLayout
    sent: Tensor
    update: Tensor
    num_samples: int
    local: Local
    inputs: Inputs
    seed: int
    vectors: Tensors = field(default_factory=dict)
    public: Source | None = None
    candidates: Candidates | None = None
    model_before: Callable[[int], Tensor] | None = None
    update_in: Callable[[int], Tensor | None] | None = None
    device: str = "cpu"
    extras: Mapping[str, Any] = field(default_factory=dict)
    trainer: Trainer | None = None
    strategy: Strategy | None = None

    @property
    def gradient(self) -> Tensor | None:
        """The mean gradient, float64 `[layout.num_trainable]`; None unless it was one step of plain SGD, or FedSGD."""
        local, change = self.local, -self.update[: self.layout.num_trainable]
        if local.only_gradient:
            return change
        if local.lr is None or local.num_steps(self.num_samples) != 1 or len(self.clients) > 1:
            return None
        return change / local.lr

    def parts(self, vector: Tensor) -> dict[str, Tensor]:
        """The trainable part of a vector as views in the parameters' shapes, by name; personal ones are not sent."""
        trained = (entry for entry in self.layout.entries if entry.kind == "trainable")
        return {entry.name: vector[entry.slice].view(entry.shape) for entry in trained}


@dataclass(frozen=True, slots=True)
class Finding:
    """What an attack has found; what it does not try to find is None.

    Attributes:
        inputs: reconstructed samples `[n, *inputs.shape]`, as the module is given them.
        labels: their classes, int64 `[n]`.
        label_counts: samples of each class, `[num_classes]`.
        scores: for each candidate, higher for those that seem to be members, float64 `[n]`.
        numbers: further numbers for `result.json`, by name.
        pictures: further pictures, `[n, ...]` by name, for `<name>.png`.
    """

    inputs: Tensor | None = None
    labels: Tensor | None = None
    label_counts: Tensor | None = None
    scores: Tensor | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    pictures: Mapping[str, Tensor] = field(default_factory=dict)


class Attack(ABC):
    """Base class of attacks: offline functions of an `Observation`. A subclass defines `find`, `knows` and `source`."""

    knows: str = ""
    """The threat model in a sentence: who attacks, what it sees, what it knows."""
    source: str = ""
    """The paper."""
    on_sums = False
    """Whether the attack makes sense of the mean over a cohort."""

    def objection(self, observation: Observation) -> str | None:
        """The reason why the attack does not apply to an observation, or None."""
        if len(observation.clients) > 1 and not self.on_sums:
            return "needs the update of one client, and only a mean over the cohort was seen"
        return None

    @abstractmethod
    def find(self, observation: Observation, progress: Progress) -> Finding:
        """Attack.

        Args:
            observation: what is known.
            progress: to be called now and then.
        """
