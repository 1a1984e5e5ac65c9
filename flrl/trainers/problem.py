"""What an engine is given to train, and what it gives back: values, of which strategies make others."""

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
    """One training of one client; a strategy yields it, changed as it likes by `dataclasses.replace`.

    Attributes:
        model: the worker's model, which engines load `start` into; strategies leave it alone.
        source: the training samples of all clients.
        indices: those of this client, in their fixed order.
        task: who trains, and what it remembers.
        broadcast: what the server sent.
        seed: the run's seed.
        start: the local vector to start from, shape `[layout.local_size]`.
        trainable: names of the parameters that are stepped; None: all of them.
        epochs: passes over the samples; None: as many epochs or steps as the trainer's settings say.
        steps: steps instead of epochs.
        values: what `adjust_loss` and `adjust_gradient` need, by name.
        only_gradient: take no steps; the difference is minus the gradient of the mean loss over all samples.
        position: batches of its fixed order that the client has trained already; only steps use it.
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

    @classmethod
    def of(
        cls, model: BoundModel, source: Source, indices: np.ndarray, task: ClientTask, broadcast: Broadcast, seed: int
    ) -> "LocalProblem":
        """The plain one: all parameters, from the broadcast vector and the client's personal part.

        What strategies and transforms have the client remember is on the model's device then.
        """
        task = replace(task, memory=_on_device(task.memory, model.local.device))
        start = model.local_vector(broadcast.vector, task.memory.get(PERSONAL))
        position = int(task.memory[POSITION]) if POSITION in task.memory else 0
        return cls(model, source, indices, task, broadcast, seed, start, position=position)

    @property
    def module(self) -> pl.LightningModule:
        """The LightningModule behind the model."""
        return self.model.module  # type: ignore[return-value]

    @property
    def num_trainable(self) -> int:
        """Elements of the trainable part of what is sent, which comes first in all vectors."""
        return self.model.layout.num_trainable


@dataclass(frozen=True, slots=True)
class Trained:
    """What one training of a client gave.

    Attributes:
        start: the local vector that it started from.
        difference: the trained local vector minus `start`, float64 `[layout.local_size]`.
        metrics: numbers to report, `train/loss` among them.
        num_steps: optimizer steps taken.
        lr_sum: the sum of their learning rates.
        not_plain_sgd: what the optimizer was, unless each step was one of plain SGD with one learning rate.
        memory: what the trainer wants the client to remember: the optimizer's state, the position in its batches.
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
        """The trained local vector."""
        return (self.start.double() + self.difference).to(self.start.dtype)

    def next(self, problem: LocalProblem, **changes: Any) -> LocalProblem:
        """A training that goes on from here: `problem` from this vector on, and what else is to change."""
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
        """The client's update: the trained model minus the broadcast one, exactly.

        Args:
            problem: the client's, as the strategy was given it.
            vectors: further vectors to be aggregated.
            memory: what the client is to remember besides the trainer's part and its personal parameters.
            payload: bytes of what is sent besides the model.
        """
        layout, task = problem.model.layout, problem.task
        update = self.difference
        if self.start is not problem.start:  # it started from another vector than what the server has
            update = _difference(self.vector, problem.start, problem.num_trainable)
        own: dict[str, Tensor] = dict(self.memory)
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
    """What a training of `problem` gave that ended in the local vector `local`; `rest` as for `Trained`."""
    return Trained(problem.start, _difference(local, problem.start, problem.num_trainable), **rest)


def _on_device(memory: Tensors, device: torch.device) -> Tensors:
    """Client memory on a device, but for what engines keep there: they move it themselves, or read it on the CPU."""
    if device.type == "cpu":
        return memory
    own = (OPTIMIZER, POSITION)
    return {name: tensor if name.startswith(own) else tensor.to(device) for name, tensor in memory.items()}


def client_randomness(problem: LocalProblem) -> contextlib.AbstractContextManager[None]:
    """Seed the global generators for this client: dropout and random transforms follow (seed, round, client)."""
    task = problem.task
    return seeded_for_client(seed_for(problem.seed, task.round, task.client_id, "train"), problem.model.local.device)


def _difference(local: Tensor, start: Tensor, num_trainable: int) -> Tensor:
    """In float64, where it is exact. What did not change differs by 0, even a buffer whose value is infinite."""
    result = difference(local, start)
    tail = slice(num_trainable, None)
    result[tail].masked_fill_(local[tail] == start[tail], 0.0)
    return result


class ClientHooks(Protocol):
    """The part of a strategy that engines call while a client trains; see `flrl.strategies.base.Strategy`."""

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
        """Change the gradient in place."""
