"""The eager loop with its inner part recorded once and replayed: the same bits, without the cost of autograd."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as optimizers

from flrl.layout import BoundModel
from flrl.lightning_hooks import overridden
from flrl.seeding import isolated_randomness, seed_generators
from flrl.snapshot import Snapshot
from flrl.trainers.base import TRANSFER_HOOKS, ClientHalf, LocalProblem, Trainer
from flrl.trainers.capture import (
    NotCapturableError,
    Recorded,
    Shape,
    Watched,
    record,
)
from flrl.trainers.eager import BATCH_HOOKS, EagerTrainer, Loop
from flrl.trainers.graphs import runnable, with_sgd
from flrl.trainers.modules import LogCollector, loss_of, replaced, step_caller
from flrl.trainers.optimizers import SchedulerStep, parse_optimizers
from flrl.trainers.plain_sgd import learning_rate
from flrl.trainers.stand_in import TrainerStandIn, attached

log = logging.getLogger(__name__)
HOOKS = (
    *BATCH_HOOKS,
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "teardown",
)
WORTH_RECORDING = 4
"""Batches of one shape that are trained eagerly before the step is recorded for them."""
_NO_REPLAY = "trainer=traced cannot replay this module's steps, so fuse and compile must be false: {}"
_MOST_SHAPES = 64
_NORM_DIFFERENCE = 1e-3
OTHER_INDICES = (1, 6)
"""`batch_idx` of the steps that a replay is compared with; it was recorded with a 0."""


class TracedTrainer(EagerTrainer):
    """Trains as the eager engine does and to the same bits, but replays `training_step` and its gradients.

    A step is recorded for each shape of batches. The first replay of each is compared with the module itself: on a CPU
    to the bit. Where a module cannot be replayed it is trained eagerly, and the log says why, once.

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
        # Then which steps are replayed must not depend on what this process has trained before.
        self.own_bits = fuse or compile
        self._recordings: Recordings | None = None
        self._said: set[str] = set()

    def configured(self, problem: LocalProblem, stand_in: TrainerStandIn) -> tuple[Optimizer, list[SchedulerStep]]:
        """The optimizer of the last client where it can be used again, else a new one."""
        reused = self.recordings(problem.model).optimizer
        if reused is None:
            return super().configured(problem, stand_in)
        stand_in.optimizers = [reused.renewed()]
        return reused.optimizer, []

    def loop(self, problem: LocalProblem, half: ClientHalf, *rest: Any) -> Loop:
        """What takes the steps."""
        recordings = self.recordings(problem.model)
        if recordings.closed:
            return Loop(self, problem, half, *rest)
        if recordings.optimizer is None and (changed := problem.model.changed()):
            self.say(problem.module, f"configure_optimizers changes {', '.join(changed[:3])}")
            return Loop(self, problem, half, *rest)
        loop = _ReplayLoop(recordings, self, problem, half, *rest)
        # From here on, code of the module runs only where a batch is not replayed.
        problem.model.touched = loop.watches or half.adjusts_gradient or recordings.optimizer is None
        return loop

    def recordings(self, model: BoundModel) -> "Recordings":
        """The recorded steps of a model; they hold as long as it does, since it is put back before each client."""
        if self._recordings is None or self._recordings.model is not model:
            self._recordings = Recordings(self, model)
        return self._recordings

    def say(self, module: pl.LightningModule, reason: str) -> None:
        """Log, once, why a module is trained eagerly."""
        if reason not in self._said:
            log.warning("trainer=traced trains %s with the eager loop: %s", type(module).__name__, reason)
        self._said.add(reason)


class Recordings:
    """The steps of one model that have been recorded so far.

    Args:
        trainer: gives precision, and whether to compile.
        model: the model.

    Attributes:
        optimizer: one that all clients can use, if there is one.
        closed: nothing can be recorded.
    """

    def __init__(self, trainer: TracedTrainer, model: BoundModel) -> None:
        self.trainer, self.model = trainer, model
        self.module: pl.LightningModule = model.module  # type: ignore[assignment]
        self.closed = False
        self.optimizer: ReusedOptimizer | None = None
        self._steps: dict[Shape, Replay] = {}
        self._counts: dict[Shape, int] = {}
        try:
            refuse_hooks(self.module)
        except NotCapturableError as error:
            self.close(str(error))
        else:
            self.optimizer = ReusedOptimizer.of(self.module)

    def step(self, shape: Shape | None, batch: Any) -> "Replay | None":
        """The step for a batch; None while it is not worth it, or cannot be recorded.

        Raises:
            ValueError: it cannot be recorded, and replays have other bits than what would train it instead.
        """
        if shape in self._steps:
            return self._steps[shape]
        if self.trainer.own_bits and shape is None:
            raise ValueError(_NO_REPLAY.format("its batches hold more than tensors"))
        if shape is None:
            return None
        count = self._counts[shape] = self._counts.get(shape, 0) + 1
        soon = self.closed or count < WORTH_RECORDING or len(self._steps) >= _MOST_SHAPES
        if soon and not self.trainer.own_bits:
            return None
        try:
            with isolated_randomness(0, self.model.vector.device):
                replay = Replay(recorded_step(self.trainer, self.model, batch), self.model, self.trainer)
        except NotCapturableError as error:
            if self.trainer.own_bits:
                raise ValueError(_NO_REPLAY.format(error)) from error
            self.close(str(error))
            return None
        self._steps[shape] = replay
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


def recorded_step(trainer: Trainer, model: BoundModel, batch: Any) -> Recorded:
    """Record the step of a model's module on a batch, and compare a replay with the module.

    Raises:
        NotCapturableError: it cannot be replayed, and why.
    """
    recorded = record(model, batch, context=lambda: trainer.autocast(model.vector.device))
    _compare(trainer, model, recorded, batch)
    return recorded


def refuse_hooks(module: pl.LightningModule) -> None:
    """Raise NotCapturableError for hooks that a replay would not call, or that may change what a step does."""
    hooks = [hook for hook in HOOKS if overridden(module, hook)]
    if hooks:
        raise NotCapturableError(f"{', '.join(hooks)} may change what a step does")
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in module.parameters()):
        raise NotCapturableError("a parameter has hooks")


def _compare(trainer: Trainer, model: BoundModel, recorded: Recorded, batch: Any) -> None:
    """Raise NotCapturableError if the module's own gradients are not those of a replay."""
    owns = [own_step(trainer, model, batch, index) for index in OTHER_INDICES]
    copies = [tensor.detach().clone() for tensor in (*model.trainable(), *model.module.buffers())]
    with torch.no_grad():
        seed_generators(1)
        try:
            values = recorded.graph(*copies, *Shape.of(batch)[1])
        except Exception as error:  # operators that cannot be called as they were recorded
            raise NotCapturableError(f"a replay fails: {str(error).splitlines()[0]}") from error
    replayed = [values[0], *values[1 + len(recorded.logged) :]]
    same = _same_bits if model.vector.device.type == "cpu" else _close_enough
    if any(
        len(own) != len(replayed) or not all(same(a, b) for a, b in zip(own, replayed, strict=True)) for own in owns
    ):
        raise NotCapturableError("a replay differs from the module")


def own_step(trainer: Trainer, model: BoundModel, batch: Any, batch_idx: int) -> list[Tensor]:
    """Loss and gradients of a module's own step, with generators seeded by 1; the model stays as it is.

    Raises:
        NotCapturableError: the step fails, as it may when it needs to know which batch this is.
    """
    module: pl.LightningModule = model.module  # type: ignore[assignment]
    parameters = model.trainable()
    live = [*parameters, *module.buffers()]
    kept = [tensor.detach().clone() for tensor in live]
    collector = LogCollector()
    logging = replaced(module, log=collector.log, log_dict=collector.log_dict)
    before = Snapshot(module, "module", spared=live)
    seed_generators(1)
    try:
        autocast = trainer.autocast(model.vector.device)
        with torch.enable_grad(), logging, attached(module, TrainerStandIn(1, 1, engine=trainer.engine)), autocast:
            loss = loss_of(step_caller(module.training_step)(batch, batch_idx))
            if loss is None:
                raise NotCapturableError("training_step skipped a batch")
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    except Exception as error:
        raise NotCapturableError(f"training_step failed when it was called again: {error}") from error
    finally:
        with torch.no_grad():
            for tensor, value in zip(live, kept, strict=True):
                tensor.copy_(value)
        before.restore()
    return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def _close_enough(a: Tensor, b: Tensor) -> bool:
    return float((a - b).norm()) <= _NORM_DIFFERENCE * float(a.norm()) + 1e-12


class Replay:
    """A recorded step bound to a model.

    Attributes:
        logged: name, reduction and batch size of each logged number.
        gradients: loss, logged numbers and gradients of a batch.
        with_sgd: loss and logged numbers of a batch; steps the parameters.
        tensors: the first arguments of both: parameters and buffers.
        stepped: the parameters that get gradients.
    """

    def __init__(self, recorded: Recorded, model: BoundModel, trainer: TracedTrainer) -> None:
        def made(graph: torch.fx.GraphModule) -> Callable[..., Any]:
            return torch.compile(graph, dynamic=False) if trainer.compile else runnable(graph)

        parameters: list[Tensor] = list(model.trainable())
        self.logged = recorded.logged
        self.gradients = made(recorded.graph)
        stepped = [place for place in range(len(parameters)) if place not in recorded.unused]
        self.with_sgd = made(with_sgd(recorded.graph, stepped, fuse=trainer.fuse))
        self.tensors = [*parameters, *model.module.buffers()]
        self.stepped = [parameters[place] for place in stepped]


class _ReplayLoop(Loop):
    """Replays what has been recorded."""

    def __init__(self, recordings: Recordings, *rest: Any) -> None:
        super().__init__(*rest)
        self.recordings = recordings
        clips = self.trainer.gradient_clip_val is not None
        self.watches = any(overridden(self.module, hook) for hook in TRANSFER_HOOKS)
        alone = not (self.schedulers or self.adjusts_gradient or clips)
        self.steps_plainly = alone and steps_plainly(self.optimizer, self.parameters)

    def batch(self, batch: Any, batch_idx: int, epoch: int) -> Any:
        """One optimizer step; nobody looks at what `training_step` returned, since the module has no hooks."""
        shape, tensors = Shape.of(batch)
        eagerly = self.adjusts_loss or (self.watches and bool(self.problem.model.changed()))
        step = None if eagerly else self.recordings.step(shape, batch)
        if step is None:
            self.recordings.model.touched = True
            return super().batch(batch, batch_idx, epoch)
        if self.steps_plainly:
            with torch.inference_mode():
                values = step.with_sgd(*step.tensors, *tensors, -self.optimizer.param_groups[0]["lr"])
            self._note(step, values)
        else:
            with torch.no_grad():
                values = step.gradients(*step.tensors, *tensors)
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


def steps_plainly(optimizer: Optimizer, parameters: Sequence[Tensor]) -> bool:
    """Whether an optimizer's step is `p -= lr * p.grad` for exactly these parameters, and nobody watches it."""
    try:
        learning_rate(optimizer)
    except ValueError:
        return False
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    numbers = all(isinstance(group["lr"], float | int) for group in optimizer.param_groups)
    own = type(optimizer) is SGD and "step" not in vars(optimizer)
    return own and numbers and not optimizer_is_watched(optimizer) and stepped == {id(p) for p in parameters}


def optimizer_is_watched(optimizer: Optimizer) -> bool:
    """Whether an optimizer has hooks, or a `step` of its own that is no scheduler's."""
    hooks: list[Any] = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    hooks += [optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks]
    replaced = "step" in vars(optimizer) and not getattr(optimizer.step, "_wrapped_by_lr_sched", False)
    return replaced or any(hooks)
