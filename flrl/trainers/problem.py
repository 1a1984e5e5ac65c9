"""The problem that an engine trains, and its result: values passed between strategies and engines."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from flrl.bound_model import BoundModel
from flrl.data.sources import Source
from flrl.kernels import difference
from flrl.lightning.optimizers import OPTIMIZER
from flrl.seeding import seed_for, seeded_for_client
from flrl.types import Broadcast, ClientTask, ClientUpdate, Metrics, Tensors

PERSONAL = "personal"
"""The name in client memory of the personal part of the local vector."""
POSITION = "position"
"""Likewise of where the client's batches go on."""


@dataclass(frozen=True, slots=True)
class LocalProblem:
    """One training of one client; a strategy yields it, possibly changed by `dataclasses.replace`.

    Attributes:
        model: the worker's model, into which engines load `start`; strategies must not change it.
        source: the training samples of all clients; a malicious client's own ones may be in a source of theirs.
        indices: indices of this client's samples in their fixed order, int64 `[num_samples]`.
        task: the client's task, with its memory.
        broadcast: what the server sent.
        seed: the run's seed.
        start: the local vector to start from, shape `[layout.local_size]`.
        trainable: names of the parameters that are stepped; None: all of them.
        epochs: passes over the samples; None: epochs or steps of the trainer's settings.
        steps: steps instead of epochs.
        values: tensors for `adjust_loss` and `adjust_gradient`, by name.
        only_gradient: take no steps; the difference is minus the gradient of the mean loss over all samples. If no
            parameter is `trainable`, there is that loss alone, as `train/loss`, and no backward pass.
        position: index of the batch to begin with, counted over epochs; used for steps instead of epochs.
        num_steps: steps of a round by the trainer's settings, for strategies that take them one by one.
        public: the samples that the server and all clients have; None if there are none.
        training: which training of the client in this round it is, counted from 0; set by whoever runs `local`.
    """

    model: BoundModel
    source: Source
    indices: np.ndarray
    task: ClientTask
    broadcast: Broadcast
    seed: int
    start: Tensor
    trainable: frozenset[str] | None = None
    epochs: int | None = None
    steps: int | None = None
    values: Tensors = field(default_factory=dict)
    only_gradient: bool = False
    position: int = 0
    num_steps: int = 1
    public: Source | None = None
    training: int = 0

    @classmethod
    def of(
        cls,
        model: BoundModel,
        source: Source,
        indices: np.ndarray,
        task: ClientTask,
        broadcast: Broadcast,
        seed: int,
        public: Source | None = None,
    ) -> "LocalProblem":
        """The problem without changes: all parameters are trained from the broadcast and the client's personal part.

        What strategies and transforms have the client remember is on the model's device then.
        """
        if task.memory and model.local.device.type != "cpu":
            task = replace(task, memory=_on_device(task.memory, model.local.device))
        start = model.local_vector(broadcast.vector, task.memory.get(PERSONAL))
        position = int(task.memory[POSITION]) if POSITION in task.memory else 0
        return cls(
            model, source, indices, task, broadcast, seed, start, steps=task.steps, position=position, public=public
        )

    @property
    def module(self) -> pl.LightningModule:
        """The LightningModule behind the model."""
        return self.model.module  # type: ignore[return-value]

    @property
    def num_trainable(self) -> int:
        """Number of elements of the trainable part, which comes first in all vectors."""
        return self.model.layout.num_trainable


@dataclass(frozen=True, slots=True)
class Trained:
    """The result of one training of a client.

    Attributes:
        start: the local vector that it started from, `[layout.local_size]`.
        difference: the trained local vector minus `start`, float64 `[layout.local_size]`.
        metrics: numbers to report, `train/loss` among them.
        num_steps: optimizer steps taken.
        lr_sum: the sum of their learning rates.
        not_plain_sgd: a description of the optimizer, unless it was plain SGD with one learning rate; else empty.
        memory: the trainer's part of client memory: the optimizer's state, the position in the batches.
    """

    start: Tensor
    difference: Tensor
    metrics: Metrics
    num_steps: int
    lr_sum: float = 0.0
    not_plain_sgd: str = ""
    memory: Tensors = field(default_factory=dict)

    @property
    def vector(self) -> Tensor:
        """The trained local vector, `[layout.local_size]`."""
        return (self.start.double() + self.difference).to(self.start.dtype)

    def next(self, problem: LocalProblem, **changes: Any) -> LocalProblem:
        """A problem that continues from this result: `problem` with its vector, memory and position, and `changes`."""
        task = replace(problem.task, memory={**problem.task.memory, **self.memory})
        position = int(self.memory.get(POSITION, problem.position))
        return replace(problem, task=task, start=self.vector, position=position, **changes)

    def update(
        self,
        problem: LocalProblem,
        *,
        vectors: Tensors | None = None,
        memory: Tensors | None = None,
        payload: Mapping[str, int] | None = None,
    ) -> ClientUpdate:
        """The client's update: the trained model minus the broadcast one, in float64.

        Args:
            problem: the client's problem as `Strategy.local` got it.
            vectors: further vectors to aggregate, by name.
            memory: client memory besides the trainer's part and the personal part, by name.
            payload: bytes sent besides the model, by name.
        """
        layout, task = problem.model.layout, problem.task
        update = self.difference
        if self.start is not problem.start:  # the training started from another vector than the server's
            update = _difference(self.vector, problem.start, problem.num_trainable)
        own: dict[str, Tensor] = dict(self.memory)
        taken = [
            name
            for name in memory or {}
            if name in own or name.startswith(("transforms/", "adversary/")) or name == PERSONAL
        ]
        if taken:
            raise ValueError(f"memory {taken[0]!r}: this name is taken by what flrl has clients remember")
        if layout.personal:
            update, own[PERSONAL] = update[: layout.size], self.vector[layout.size :].cpu()
        return ClientUpdate(
            client_id=task.client_id,
            weight=task.weight,
            vectors={"update": update, **(vectors or {})},
            metrics=self.metrics,
            num_steps=self.num_steps,
            payload={"update": layout.nbytes, **(payload or {})},
            memory={**own, **(memory or {})},
        )


def trained(problem: LocalProblem, local: Tensor, **rest: Any) -> Trained:
    """The result of a training of `problem` that ended in the local vector `local`; `rest` as for `Trained`."""
    return Trained(problem.start, _difference(local, problem.start, problem.num_trainable), **rest)


def _on_device(memory: Tensors, device: torch.device) -> Tensors:
    """Client memory on a device, but for what engines keep there: they move it themselves, or read it on the CPU."""
    own = (OPTIMIZER, POSITION)
    return {name: tensor if name.startswith(own) else tensor.to(device) for name, tensor in memory.items()}


def client_randomness(problem: LocalProblem) -> contextlib.AbstractContextManager[None]:
    """Seed the global generators for this client: dropout and random transforms depend on (seed, round, client)."""
    task = problem.task
    return seeded_for_client(seed_for(problem.seed, task.round, task.client_id, "train"), problem.model.local.device)


def _difference(local: Tensor, start: Tensor, num_trainable: int) -> Tensor:
    """`local - start` in float64; 0 for elements that did not change, even infinite ones of buffers."""
    result = difference(local, start)
    if num_trainable < len(result):
        tail = slice(num_trainable, None)
        result[tail].masked_fill_(local[tail] == start[tail], 0.0)
    return result


class ClientHooks(Protocol):
    """The methods of a strategy that engines call while a client trains; see `flrl.strategies.base.Strategy`.

    Attributes:
        observes: names of the module's layers whose outputs `adjust_loss` needs.
    """

    observes: Any

    @property
    def adjusts_loss(self) -> bool:
        """Whether `adjust_loss` does anything."""

    @property
    def adjusts_gradient(self) -> bool:
        """Whether `adjust_gradient` does anything."""

    def adjust_loss(self, loss: Tensor, step: Any) -> Tensor:
        """The loss to minimise, given that of the module; `step` is a `flrl.lightning.local_step.LocalStep`."""

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Change the gradient in place, elementwise; shapes `[d]`, or `[clients, d]` for a client batch."""


class NoHooks:
    """Hooks of a training with the module's own loss and gradient."""

    observes: Any = ()
    adjusts_loss = adjusts_gradient = False

    def adjust_loss(self, loss: Tensor, step: Any) -> Tensor:
        """The module's own loss."""
        return loss

    def adjust_gradient(self, gradient: Tensor, parameters: Tensor, values: Tensors) -> None:
        """Change nothing."""
