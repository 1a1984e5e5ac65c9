"""What every training engine is given, and what it returns."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from flrl.data.sources import Source
from flrl.kernels import difference
from flrl.layout import BoundModel
from flrl.lightning_hooks import overridden
from flrl.seeding import generator_for, seed_for, seeded_for_client
from flrl.types import Broadcast, ClientTask, ClientUpdate, Memory


@dataclass(frozen=True, slots=True)
class LocalProblem:
    """One client's training in one round.

    Attributes:
        model: the worker's model; the trainer loads the broadcast vector into it.
        source: the training samples of all clients.
        indices: those of this client, in their fixed order.
        task: who trains, and what it remembers.
        broadcast: what the server sent.
        seed: the run's seed.
    """

    model: BoundModel
    source: Source
    indices: np.ndarray
    task: ClientTask
    broadcast: Broadcast
    seed: int

    @property
    def module(self) -> pl.LightningModule:
        """The LightningModule behind the model."""
        module = self.model.module
        assert hasattr(module, "training_step")
        return module  # type: ignore[return-value]


class ClientHalf(Protocol):
    """The part of a strategy that runs where the client is; see `flrl.strategies.base.Strategy`."""

    @property
    def adjusts_loss(self) -> bool:
        """Whether `adjust_loss` does anything."""

    @property
    def adjusts_gradient(self) -> bool:
        """Whether `adjust_gradient` does anything."""

    def adjust_loss(self, loss: Tensor, problem: LocalProblem) -> Tensor:
        """The loss to minimise, given that of the module."""

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, problem: LocalProblem) -> None:
        """Change the gradient in place."""


class Trainer(ABC):
    """Trains one client; holds how, and nothing of any client.

    Args:
        local_epochs: passes over the client's samples in a round.
        batch_size: samples of a minibatch; the last one of an epoch may be smaller.
        shuffle: draw a new order for every epoch, from (seed, round, client); otherwise the partition's order.
        lr_decay: the learning rate of round r is the module's times `lr_decay ** (r - 1)`.
        gradient_clip_val: clip gradients to this norm or value; null does not clip.
        gradient_clip_algorithm: "norm" or "value".
        precision: "32-true", or "bf16-mixed" for bfloat16 autocast.
        memory_format: "contiguous", or "channels_last" for images and the weights of convolutions.
        keep_optimizer_state: clients remember their optimizer's state (momentum) until they next take part.
    """

    def __init__(
        self,
        *,
        local_epochs: int = 1,
        batch_size: int = 64,
        shuffle: bool = False,
        lr_decay: float = 1.0,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        precision: Literal["32-true", "bf16-mixed"] = "32-true",
        memory_format: Literal["contiguous", "channels_last"] = "contiguous",
        keep_optimizer_state: bool = False,
    ) -> None:
        for name, value in (("local_epochs", local_epochs), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"trainer.{name}={value}: must be at least 1")
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
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.lr_decay = lr_decay
        self.gradient_clip_val = gradient_clip_val
        self.gradient_clip_algorithm = gradient_clip_algorithm
        self.precision = precision
        self.memory_format = memory_format
        self.keep_optimizer_state = keep_optimizer_state

    @abstractmethod
    def check(self, module: pl.LightningModule) -> None:
        """Raise ValueError, by name, for anything in the module that this engine cannot honour."""

    @abstractmethod
    def fit(self, problem: LocalProblem, half: ClientHalf) -> ClientUpdate:
        """Train the client from the broadcast vector on; the difference of parameters is its update."""

    def fit_together(self, problems: Sequence[LocalProblem], half: ClientHalf) -> list[ClientUpdate]:
        """Train several clients; an engine that trains them side by side has its own version."""
        return [self.fit(problem, half) for problem in problems]

    def groups(self, problems: Sequence[LocalProblem]) -> list[list[LocalProblem]]:
        """The clients of a stack in parts, each for one call of `fit_together`."""
        return [list(problems)]

    def clients_at_once(self, model: BoundModel, cohort: int) -> int:
        """How many clients of a cohort of so many `fit_together` is to be given."""
        return 1

    @property
    def engine(self) -> str:
        """How messages call it: trainer=eager, ..."""
        return f"trainer={type(self).__name__.removesuffix('Trainer').lower()}"

    def load(self, problem: LocalProblem) -> None:
        """Set the worker's model to the broadcast vector, in this engine's memory format."""
        problem.model.load(problem.broadcast.vector, channels_last=self.memory_format == "channels_last")

    def formatted(self, batch: Any) -> Any:
        """A batch in this engine's memory format."""
        if self.memory_format == "contiguous":
            return batch
        return tree_map_only(Tensor, _channels_last, batch)

    def lr_factor(self, problem: LocalProblem) -> float:
        """What this round's learning rates are multiplied by."""
        return float(self.lr_decay ** (problem.broadcast.round - 1))

    def epoch_indices(self, problem: LocalProblem, epoch: int) -> np.ndarray:
        """The client's samples in the order of one local epoch, counted from 0."""
        if not self.shuffle:
            return problem.indices
        task = problem.task
        rng = generator_for(problem.seed, task.round, task.client_id, f"shuffle/{epoch}")
        return rng.permutation(problem.indices)

    def batches(self, problem: LocalProblem, epoch: int) -> Iterator[tuple[Any, int]]:
        """One local epoch's batches, each with its number of samples."""
        indices = self.epoch_indices(problem, epoch)
        for start, batch in enumerate(problem.source.batches(indices, self.batch_size, again=not self.shuffle)):
            yield self.formatted(batch), min(self.batch_size, len(indices) - start * self.batch_size)

    def num_batches(self, problem: LocalProblem) -> int:
        """Batches of one local epoch."""
        return ceil(len(problem.indices) / self.batch_size)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The context that `precision` asks for."""
        if self.precision == "32-true":
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False)


def update_of(
    problem: LocalProblem, *, metrics: dict[str, float], num_steps: int, memory: Memory | None = None
) -> ClientUpdate:
    """The client's update: its model minus the broadcast one."""
    return trained(problem, problem.model.read(), metrics=metrics, num_steps=num_steps, memory=memory)


def trained(
    problem: LocalProblem, local: Tensor, *, metrics: dict[str, float], num_steps: int, memory: Memory | None = None
) -> ClientUpdate:
    """The client's update: the given vector minus the broadcast one, in float64, where that difference is exact.

    A buffer that did not change has the update 0, even where its value is infinite.
    """
    broadcast = problem.broadcast.vector
    update = difference(local, broadcast)
    tail = slice(problem.model.layout.num_trainable, None)
    update[tail].masked_fill_(local[tail] == broadcast[tail], 0.0)
    return ClientUpdate(
        client_id=problem.task.client_id,
        weight=problem.task.weight,
        vectors={"update": update},
        metrics=metrics,
        num_steps=num_steps,
        up_bytes=problem.model.layout.nbytes,
        memory={} if memory is None else memory,
    )


def apply_adjustment(problem: LocalProblem, half: ClientHalf) -> None:
    """Let the strategy change the gradients, gathered into one vector in the layout's order."""
    parameters = problem.model.trainable()
    gradient = torch.cat([_gradient_of(parameter).reshape(-1) for parameter in parameters])
    half.adjust_gradient(gradient, problem.model.read()[: problem.model.layout.num_trainable], problem)
    for parameter, part in zip(parameters, torch.split(gradient, [p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)


def _gradient_of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def client_randomness(problem: LocalProblem) -> contextlib.AbstractContextManager[None]:
    """Seed the global generators for this client: dropout and random transforms follow (seed, round, client)."""
    task = problem.task
    return seeded_for_client(seed_for(problem.seed, task.round, task.client_id, "train"), problem.model.vector.device)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def transfers(module: pl.LightningModule, device: torch.device) -> bool:
    """Whether `to_device` would do anything."""
    return device.type != "cpu" or any(overridden(module, hook) for hook in TRANSFER_HOOKS)


def to_device(module: pl.LightningModule, batch: Any, device: torch.device) -> Any:
    """Move a batch as the module's own transfer hooks say."""
    if overridden(module, "on_before_batch_transfer"):
        batch = module.on_before_batch_transfer(batch, 0)
    if device.type != "cpu" or overridden(module, "transfer_batch_to_device"):
        batch = module.transfer_batch_to_device(batch, device, 0)
    if overridden(module, "on_after_batch_transfer"):
        batch = module.on_after_batch_transfer(batch, 0)
    return batch
