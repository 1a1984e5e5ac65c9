"""The recorded steps of one model, and an optimizer that is reused for all clients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from flrl.bound_model import BoundModel
from flrl.lightning.optimizers import parse_optimizers
from flrl.lightning.stand_in import attached
from flrl.seeding import isolated_randomness
from flrl.snapshot import Snapshot
from flrl.trainers.steps.capturing import NotCapturableError
from flrl.trainers.steps.graphs import runnable, with_sgd
from flrl.trainers.steps.record import Adjustment, Recorded, Shape, Watched
from flrl.trainers.steps.safety import recorded_step, refuse_hooks

if TYPE_CHECKING:
    from flrl.trainers.traced import TracedTrainer

WORTH_RECORDING = 4
"""The number of the batch of one shape at which a CPU records its step; earlier ones are trained eagerly."""
_NO_REPLAY = "trainer=traced cannot replay this module's steps, so fuse and compile must be false: {}"
_MOST_SHAPES = 64


class Recordings:
    """The steps of one model that have been recorded so far.

    Args:
        trainer: gives precision, and whether to fuse or compile.
        model: the model.

    Attributes:
        optimizer: the module's optimizer if it can be reused for all clients, else None.
        closed: the module's steps cannot be replayed, so nothing more is recorded.
    """

    def __init__(self, trainer: "TracedTrainer", model: BoundModel) -> None:
        self.trainer, self.model = trainer, model
        self.module: pl.LightningModule = model.module  # type: ignore[assignment]
        self.closed = False
        self.optimizer: ReusedOptimizer | None = None
        self._steps: dict[Any, Replay] = {}
        self._counts: dict[Any, int] = {}
        try:
            refuse_hooks(self.module)
        except NotCapturableError as error:
            self.close(str(error))
        else:
            self.optimizer = ReusedOptimizer.of(self.module)

    def step(self, shape: Shape | None, batch: Any, adjustment: Adjustment | None) -> "Replay | None":
        """The replay for a batch; None if it is one of the first of its shape or not replayable: train it eagerly.

        Args:
            shape: the batch's shape; None if it holds more than tensors.
            batch: the batch itself.
            adjustment: the strategy's change of the loss.

        Raises:
            ValueError: the step cannot be recorded, and fused or compiled replays would have other bits than eager.
        """
        key = shape if adjustment is None else (shape, adjustment.key)
        if key in self._steps:
            return self._steps[key]
        if self.trainer.own_bits and shape is None:
            raise ValueError(_NO_REPLAY.format("its batches hold more than tensors"))
        if shape is None:
            return None
        count = self._counts[key] = self._counts.get(key, 0) + 1
        # A GPU's replay may have other bits: which steps are replayed must not depend on what was trained before.
        worth = WORTH_RECORDING if self.model.local.device.type == "cpu" else 1
        soon = self.closed or count < worth or len(self._steps) >= _MOST_SHAPES
        if soon and not self.trainer.own_bits:
            return None
        try:
            with isolated_randomness(0, self.model.local.device):
                recorded = recorded_step(self.trainer, self.model, batch, adjustment)
                replay = Replay(recorded, self.model, self.trainer)
        except NotCapturableError as error:
            if self.trainer.own_bits:
                raise ValueError(_NO_REPLAY.format(error)) from error
            self.close(str(error))
            return None
        self._steps[key] = replay
        return replay

    def close(self, reason: str) -> None:
        """Record no more steps, and log the reason."""
        self.closed = True
        self.trainer.warn_once(self.module, reason)


@dataclass(frozen=True, slots=True)
class ReusedOptimizer:
    """An optimizer that is reused for each client by dropping its state.

    Attributes:
        optimizer: an optimizer of torch, without schedulers, that was made without reading the Trainer.
        settings: the initial settings of its parameter groups.
    """

    optimizer: Optimizer
    settings: list[dict[str, Any]]

    @classmethod
    def of(cls, module: pl.LightningModule) -> "ReusedOptimizer | None":
        """A module's optimizer, if it can be reused, else None."""
        before = Snapshot(module, "module", spared=[*module.parameters(), *module.buffers()])
        try:
            with attached(module, Watched()):  # type: ignore[arg-type]
                optimizer, schedulers = parse_optimizers(module.configure_optimizers())
        except NotCapturableError:
            return None
        finally:
            changed = before.changed()
            before.restore()
        if changed:
            return None
        # Some make their state before the first step, and others than torch's may keep more than `state`.
        if schedulers or optimizer.state or not type(optimizer).__module__.startswith("torch.optim."):
            return None
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return None if any(isinstance(v, Tensor) for s in settings for v in s.values()) else cls(optimizer, settings)

    def renewed(self) -> Optimizer:
        """The optimizer without state, with its initial settings."""
        self.optimizer.state.clear()
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            group.update(settings)
        return self.optimizer


class Replay:
    """A recorded step bound to a model.

    Attributes:
        logged: name, reduction and batch size of each logged number.
        gradients: returns loss, logged numbers and gradients of a batch.
        with_sgd: steps the parameters by plain SGD, and returns loss and logged numbers of a batch.
        tensors: the first arguments of both functions: parameters and buffers.
        stepped: the parameters that get gradients.
    """

    def __init__(self, recorded: Recorded, model: BoundModel, trainer: "TracedTrainer") -> None:
        def made(graph: torch.fx.GraphModule) -> Callable[..., Any]:
            return torch.compile(graph, dynamic=False) if trainer.compile else runnable(graph)

        parameters: list[Tensor] = list(model.trainable())
        self.logged = recorded.logged
        self.gradients = made(recorded.graph)
        stepped = [place for place in range(len(parameters)) if place not in recorded.unused]
        self.with_sgd = made(with_sgd(recorded.graph, stepped, fuse=trainer.fuse))
        self.tensors = [*parameters, *model.module.buffers()]
        self.stepped = [parameters[place] for place in stepped]
