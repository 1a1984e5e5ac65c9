"""The eager loop with recorded training steps that are replayed: the same bits, without the cost of autograd."""

import logging
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from flrl.bound_model import BoundModel
from flrl.lightning.hooks import overridden
from flrl.lightning.optimizers import SchedulerStep
from flrl.lightning.stand_in import TrainerStandIn
from flrl.lightning.transfer import TRANSFER_HOOKS
from flrl.trainers.base import MOST_MODELS
from flrl.trainers.eager import EagerTrainer
from flrl.trainers.loop import Loop
from flrl.trainers.private.recorded import PrivateRecordings, RecordedPrivateLoop
from flrl.trainers.problem import ClientHooks, LocalProblem
from flrl.trainers.steps.record import Adjustment, Shape
from flrl.trainers.steps.replay import Recordings, Replay
from flrl.trainers.steps.safety import steps_plainly

log = logging.getLogger(__name__)


class TracedTrainer(EagerTrainer):
    """Trains as the eager engine does, with the same bits, but replays `training_step` and its gradients.

    A step is recorded for each shape of batches. The first replay of each is compared with the module itself, on a CPU
    to the bit. A module that cannot be replayed is trained eagerly, and the reason is logged once.

    Args:
        fuse: where a plain SGD step adds a matrix product to a parameter, do both at once, without storing the
            gradient; faster for large dense layers and small batches, and gives other bits.
        compile: compile the recordings with `torch.compile`, which takes seconds and a C++ compiler and gives other
            bits.
        options: as for `flrl.trainers.base.Trainer`.
    """

    def __init__(self, *, fuse: bool = False, compile: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.fuse = fuse
        self.compile = compile
        # With bits of its own, which steps are replayed must not depend on what this process has trained before.
        self.own_bits = fuse or compile
        self._recordings: dict[BoundModel, Recordings] = {}  # of each kind of client
        self._private: dict[BoundModel, PrivateRecordings] = {}
        self._logged: set[str] = set()
        if self.private is not None and self.own_bits:
            raise ValueError("trainer.private: trainer.fuse and trainer.compile must be false")

    def configured(self, problem: LocalProblem, stand_in: TrainerStandIn) -> tuple[Optimizer, list[SchedulerStep]]:
        """The optimizer of the last client with its state dropped, where it can be reused, else a new one."""
        reused = self.recordings(problem.model).optimizer
        if reused is None:
            return super().configured(problem, stand_in)
        stand_in.optimizers = [reused.renewed()]
        return reused.optimizer, []

    def loop(self, problem: LocalProblem, hooks: ClientHooks, *rest: Any) -> Loop:
        """The loop that replays steps; the eager loop where nothing can be replayed."""
        if self.private is not None:
            return RecordedPrivateLoop(self._private_recordings(problem.model), self, problem, hooks, *rest)
        recordings = self.recordings(problem.model)
        if recordings.closed:
            return Loop(self, problem, hooks, *rest)
        if recordings.optimizer is None and (changed := problem.model.changed()):
            self.warn_once(problem.module, f"configure_optimizers changes {', '.join(changed[:3])}")
            return Loop(self, problem, hooks, *rest)
        loop = _ReplayLoop(recordings, self, problem, hooks, *rest)
        # From here on, code of the module runs only where a batch is not replayed.
        problem.model.touched = loop.watches or recordings.optimizer is None
        return loop

    def recordings(self, model: BoundModel) -> Recordings:
        """The recorded steps of a model; they stay valid, since the module is restored before each client."""
        if model not in self._recordings:
            if len(self._recordings) >= MOST_MODELS:
                self._recordings.clear()
            self._recordings[model] = Recordings(self, model)
        return self._recordings[model]

    def _private_recordings(self, model: BoundModel) -> PrivateRecordings:
        if model not in self._private:
            if len(self._private) >= MOST_MODELS:
                self._private.clear()
            self._private[model] = PrivateRecordings()
        return self._private[model]

    def warn_once(self, module: pl.LightningModule, reason: str) -> None:
        """Log why a module is trained eagerly, each reason once."""
        if reason not in self._logged:
            log.warning("trainer=traced trains %s with the eager loop: %s", type(module).__name__, reason)
        self._logged.add(reason)


class _ReplayLoop(Loop):
    """The eager loop with replays in place of training steps that are recorded."""

    def __init__(self, recordings: Recordings, *rest: Any) -> None:
        super().__init__(*rest)
        self.recordings = recordings
        clips = self.trainer.gradient_clip_val is not None
        self.watches = any(overridden(self.module, hook) for hook in TRANSFER_HOOKS)
        alone = not (self.schedulers or self.adjusts_gradient or clips) and self.problem.trainable is None
        self.steps_plainly = alone and steps_plainly(self.optimizer, self.parameters)
        self.adjustment = Adjustment(self.hooks, self.problem.values) if self.adjusts_loss else None
        self.values: Sequence[Tensor] = () if self.adjustment is None else self.adjustment.tensors

    def batch(self, batch: Any, batch_idx: int, epoch: int) -> Any:
        """Take one optimizer step; returns None after a replay, as the module has no hooks that get the output."""
        shape, tensors = Shape.of(batch)
        eagerly = self.watches and bool(self.problem.model.changed())
        step = None if eagerly else self.recordings.step(shape, batch, self.adjustment)
        if step is None:
            self.recordings.model.touched = True
            return super().batch(batch, batch_idx, epoch)
        if self.steps_plainly:
            with torch.inference_mode():
                rate = self.optimizer.param_groups[0]["lr"]
                values = step.with_sgd(*step.tensors, *tensors, *self.values, -rate)
            self.lr_sum += rate
            self._note(step, values)
        else:
            with torch.no_grad():
                values = step.gradients(*step.tensors, *tensors, *self.values)
            self._note(step, values)
            self.zero_grad(epoch, batch_idx)
            for parameter, gradient in zip(step.stepped, values[1 + len(step.logged) :], strict=True):
                parameter.grad = gradient
            self.step_along_gradients()
        self.stand_in.global_step += 1
        return None

    def _note(self, step: Replay, values: Sequence[Tensor]) -> None:
        self.log.add_loss(values[0])
        for (name, reduce, batch_size), value in zip(step.logged, values[1:], strict=False):
            self.log.log(name, value, reduce_fx=reduce, batch_size=batch_size)
