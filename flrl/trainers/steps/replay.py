"""The recorded steps of one model, bound to it, and an optimizer that all clients can use."""

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
from flrl.trainers.steps.graphs import runnable, with_sgd
from flrl.trainers.steps.record import Adjustment, NotCapturableError, Recorded, Shape, Watched
from flrl.trainers.steps.safety import recorded_step, refuse_hooks

if TYPE_CHECKING:
    from flrl.trainers.traced import TracedTrainer

WORTH_RECORDING = 4
"""Batches of one shape that a CPU trains eagerly before the step is recorded for them."""
_NO_REPLAY = "trainer=traced cannot replay this module's steps, so fuse and compile must be false: {}"
_MOST_SHAPES = 64


class Recordings:
    """The steps of one model that have been recorded so far.

    Args:
        trainer: gives precision, and whether to compile.
        model: the model.

    Attributes:
        optimizer: one that all clients can use, if there is one.
        closed: nothing can be recorded.
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
        """The step for a batch; None while it is not worth it, or cannot be recorded.

        Args:
            shape: of the batch.
            batch: the batch itself.
            adjustment: what the strategy does to its loss.

        Raises:
            ValueError: it cannot be recorded, and replays have other bits than what would train it instead.
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
        """Record nothing any more."""
        self.closed = True
        self.trainer.say(self.module, reason)


@dataclass(frozen=True, slots=True)
class ReusedOptimizer:
    """An optimizer that is made new for a client by dropping its state.

    Attributes:
        optimizer: of torch, without schedulers, and made without a look at the Trainer.
        settings: of its parameter groups, as they were at first.
    """

    optimizer: Optimizer
    settings: list[dict[str, Any]]

    @classmethod
    def of(cls, module: pl.LightningModule) -> "ReusedOptimizer | None":
        """A module's optimizer, if it can be used again."""
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
        # Some make their state at once, and one that is not of torch may keep more than `state`.
        if schedulers or optimizer.state or not type(optimizer).__module__.startswith("torch.optim."):
            return None
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        return None if any(isinstance(v, Tensor) for s in settings for v in s.values()) else cls(optimizer, settings)

    def renewed(self) -> Optimizer:
        """The optimizer as it was made."""
        self.optimizer.state.clear()
        for group, settings in zip(self.optimizer.param_groups, self.settings, strict=True):
            group.update(settings)
        return self.optimizer


class Replay:
    """A recorded step bound to a model.

    Attributes:
        logged: name, reduction and batch size of each logged number.
        gradients: loss, logged numbers and gradients of a batch.
        with_sgd: loss and logged numbers of a batch; steps the parameters.
        tensors: the first arguments of both: parameters and buffers.
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
