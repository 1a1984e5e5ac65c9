"""The base class of engines: the settings of local training, and the batches that a client trains on."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from flrl.bound_model import BoundModel
from flrl.seeding import generator_for
from flrl.snapshot import Snapshot
from flrl.trainers.full_gradient import full_gradient
from flrl.trainers.private import DPSGD
from flrl.trainers.problem import POSITION, ClientHooks, LocalProblem, Trained

if TYPE_CHECKING:
    from flrl.setup import Setup

MOST_MODELS = 16
"""How many models an engine keeps recorded steps of, those of several kinds of clients."""


class Trainer(ABC):
    """Trains one client after another; holds settings, and no state of any client.

    Args:
        local_epochs: passes over the client's samples in a round, unless `local_steps` is given.
        local_steps: steps in a round instead of epochs. Without `shuffle` they continue where the client's last round
            ended, a position kept in client memory; with `shuffle` each round has its own order.
        batch_size: samples of a minibatch; the last one of an epoch may be smaller.
        shuffle: draw a new order for every epoch, from (seed, round, client); otherwise the partition's order.
        lr_decay: the learning rate of round r is the module's times `lr_decay ** (r - 1)`.
        gradient_clip_val: clip gradients to this norm or value; null does not clip.
        gradient_clip_algorithm: "norm" or "value".
        precision: "32-true", or "bf16-mixed" for bfloat16 autocast.
        memory_format: "contiguous", or "channels_last" for images and the weights of convolutions.
        keep_optimizer_state: keep the optimizer's state (momentum) in client memory until the client next takes part.
        private: take private steps; null takes those of the module.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self,
        *,
        local_epochs: int = 1,
        local_steps: int | None = None,
        batch_size: int = 64,
        shuffle: bool = False,
        lr_decay: float = 1.0,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        memory_format: Literal["contiguous", "channels_last"] = "contiguous",
        keep_optimizer_state: bool = False,
        private: DPSGD | None = None,
    ) -> None:
        for name, value in (("local_epochs", local_epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"trainer.{name}={value}: must be at least 1")
        if local_steps is not None and local_steps < 1:
            raise ValueError(f"trainer.local_steps={local_steps}: must be at least 1, or null for local_epochs")
        if not lr_decay > 0:
            raise ValueError(f"trainer.lr_decay={lr_decay}: must be positive")
        if gradient_clip_val is not None and not gradient_clip_val > 0:
            raise ValueError(f"trainer.gradient_clip_val={gradient_clip_val}: must be positive, or null")
        if gradient_clip_algorithm not in ("norm", "value"):
            raise ValueError(f"trainer.gradient_clip_algorithm={gradient_clip_algorithm!r}: must be 'norm' or 'value'")
        if precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"trainer.precision={precision!r}: must be '32-true' or 'bf16-mixed'")
        if memory_format not in ("contiguous", "channels_last"):
            raise ValueError(f"trainer.memory_format={memory_format!r}: must be 'contiguous' or 'channels_last'")
        self.local_epochs = local_epochs
        self.local_steps = local_steps
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.lr_decay = lr_decay
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.precision = precision
        self.memory_format = memory_format
        if private is not None and memory_format != "contiguous":
            raise ValueError(f"trainer.memory_format={memory_format!r}: must be 'contiguous' with trainer.private")
        self.keep_optimizer_state = keep_optimizer_state
        self.private = private

    @property
    def restored(self) -> Sequence[Snapshot]:
        """Snapshots of what this trainer puts back before each client besides the module."""
        return ()

    @abstractmethod
    def check(self, setup: "Setup") -> None:
        """Raise ValueError that names a part of the setup that this engine does not support; before any round."""

    @abstractmethod
    def fit(self, problem: LocalProblem, hooks: ClientHooks) -> Trained:
        """Train the client from `problem.start` on; problems with `only_gradient` are handled by `fit_batch`."""

    def fit_batch(self, problems: Sequence[LocalProblem], hooks: ClientHooks) -> list[Trained]:
        """Train a client batch, one client after another; an engine that trains clients at once overrides this.

        Returns:
            The trained results, in the order of the problems.
        """
        if self.private is not None and any(problem.only_gradient for problem in problems):
            raise ValueError(f"trainer.private: {type(hooks).__name__} needs whole gradients or losses, without noise")
        return [full_gradient(p, self) if p.only_gradient else self.fit(p, hooks) for p in problems]

    def groups(self, problems: Sequence[LocalProblem]) -> list[list[LocalProblem]]:
        """Divide the problems of a client batch into parts, each for one call of `fit_batch`."""
        return [list(problems)]

    def clients_at_once(self, model: BoundModel, cohort: int) -> int:
        """The size of client batches: how many clients of a cohort of size `cohort` are passed to `fit_batch`."""
        return 1

    @property
    def engine(self) -> str:
        """The engine's name in messages: trainer=eager, ..."""
        return f"trainer={type(self).__name__.removesuffix('Trainer').lower()}"

    def load(self, problem: LocalProblem) -> None:
        """Load `problem.start` into the worker's model, in this engine's memory format."""
        problem.model.load(problem.start, channels_last=self.memory_format == "channels_last")

    def formatted(self, batch: Any) -> Any:
        """A batch in this engine's memory format."""
        if self.memory_format == "contiguous":
            return batch
        return tree_map_only(Tensor, _channels_last, batch)

    def lr_factor(self, problem: LocalProblem) -> float:
        """The factor of this round's learning rates."""
        return float(self.lr_decay ** (problem.broadcast.round - 1))

    # The batches that a client trains on. Steps instead of epochs count as one epoch with that many batches.

    def num_steps(self, problem: LocalProblem) -> int | None:
        """The number of steps if the problem or the settings give one; None for whole epochs."""
        return self.local_steps if problem.steps is None and problem.epochs is None else problem.steps

    def num_epochs(self, problem: LocalProblem) -> int:
        """Number of local epochs; 1 for steps instead of epochs."""
        if self.num_steps(problem) is not None:
            return 1
        return self.local_epochs if problem.epochs is None else problem.epochs

    def num_batches(self, problem: LocalProblem) -> int:
        """Number of batches of one local epoch."""
        steps = self.num_steps(problem)
        return ceil(len(problem.indices) / self.batch_size) if steps is None else steps

    def batches(self, problem: LocalProblem, epoch: int) -> Iterator[tuple[Any, int]]:
        """The batches of one local epoch, counted from 0, each with its number of samples."""
        steps = self.num_steps(problem)
        if steps is None:
            return self._batches_of(problem, self.epoch_indices(problem, epoch), reuse=not self.shuffle)
        return self._batches_of_steps(problem, steps)

    def _batches_of_steps(self, problem: LocalProblem, steps: int) -> Iterator[tuple[Any, int]]:
        if not len(problem.indices):
            return
        epoch, first = divmod(problem.position, ceil(len(problem.indices) / self.batch_size))
        while steps > 0:
            indices = self.epoch_indices(problem, epoch)[first * self.batch_size :][: steps * self.batch_size]
            yield from self._batches_of(problem, indices, reuse=False)
            steps -= ceil(len(indices) / self.batch_size)
            epoch, first = epoch + 1, 0

    def whole(self, problem: LocalProblem) -> Iterator[tuple[Any, int]]:
        """All samples of a client once, in batches, each with its number of samples."""
        return self._batches_of(problem, self.epoch_indices(problem, 0), reuse=not self.shuffle)

    def _batches_of(self, problem: LocalProblem, indices: np.ndarray, *, reuse: bool) -> Iterator[tuple[Any, int]]:
        for number, batch in enumerate(problem.source.batches(indices, self.batch_size, reuse=reuse)):
            yield self.formatted(batch), min(self.batch_size, len(indices) - number * self.batch_size)

    def epoch_indices(self, problem: LocalProblem, epoch: int) -> np.ndarray:
        """Indices of the client's samples in the order of one local epoch, counted from 0; int64 `[num_samples]`."""
        if not self.shuffle:
            return problem.indices
        task = problem.task
        rng = generator_for(problem.seed, task.round, task.client_id, f"shuffle/{epoch}")
        return rng.permutation(problem.indices)

    def position(self, problem: LocalProblem) -> dict[str, Tensor]:
        """Client memory of where the next round's batches begin; empty if every round begins with the first sample."""
        steps = self.num_steps(problem)
        if steps is None or self.shuffle or self.private is not None or not len(problem.indices):
            return {}
        batches = ceil(len(problem.indices) / self.batch_size)
        return {POSITION: torch.tensor((problem.position + steps) % batches)}

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The autocast context of `precision`."""
        if self.precision == "32-true":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
