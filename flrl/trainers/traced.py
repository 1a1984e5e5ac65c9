"""The eager loop with its inner part recorded once and replayed: the fastest engine for one client at a time."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as optimizers

from flrl.data.sources import Source
from flrl.layout import BoundModel
from flrl.lightning_hooks import overridden
from flrl.trainers.base import ClientHalf, LocalProblem, Trainer, isolated_randomness, seed_generators, to_device
from flrl.trainers.capture import LARGEST_DIFFERENCE, NotCapturableError, Recorded, Shape, Watched, record, with_sgd
from flrl.trainers.eager import BATCH_HOOKS, EagerTrainer, Loop
from flrl.trainers.modules import LogCollector, loss_of, replaced, step_caller
from flrl.trainers.optimizers import SchedulerStep, parse_optimizers
from flrl.trainers.plain_sgd import learning_rate
from flrl.trainers.stand_in import TrainerStandIn, attached

log = logging.getLogger(__name__)
HOOKS = (*BATCH_HOOKS, "setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_epoch_end")


class TracedTrainer(EagerTrainer):
    """Trains as the eager engine does, but replays `training_step` and its gradients from a recording.

    The recording is made of the first full batch of the training samples, so that it is the same in every process;
    batches of another shape (a smaller last one) are trained eagerly. Where the module cannot be replayed, all of the
    training is eager, and a warning says why, once.

    Args:
        compile: compile the recording with `torch.compile`, which takes seconds and a C++ compiler.
        options: as for `flrl.trainers.base.Trainer`.
    """

    def __init__(self, *, compile: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.compile = compile
        self._replay: tuple[pl.LightningModule, Replay | None] | None = None
        self._optimizer: tuple[pl.LightningModule, ReusedOptimizer | None] | None = None

    def loop(self, problem: LocalProblem, *rest: Any) -> Loop:
        """What takes the steps."""
        replay = self.replay(problem.model, problem.source, problem.task.client_id)
        return Loop(self, problem, *rest) if replay is None else _ReplayLoop(replay, self, problem, *rest)

    def configured(self, module: pl.LightningModule, stand_in: TrainerStandIn) -> tuple[Optimizer, list[SchedulerStep]]:
        """The optimizer of the last client where it can be used again, else a new one."""
        if self._optimizer is None or self._optimizer[0] is not module:
            self._optimizer = module, ReusedOptimizer.of(module)
        reused = self._optimizer[1]
        if reused is None:
            return super().configured(module, stand_in)
        stand_in.optimizers = [reused.renewed()]
        return reused.optimizer, []

    def replay(self, model: BoundModel, source: Source, client_id: int) -> "Replay | None":
        """The recorded step of a model, made when it is first asked for; None if it has none."""
        module: pl.LightningModule = model.module  # type: ignore[assignment]
        if self._replay is None or self._replay[0] is not module:
            try:
                self._replay = module, Replay(recorded_step(self, model, source), model, self.compile)
            except NotCapturableError as error:
                log.warning("trainer=traced trains %s with the eager loop: %s", type(module).__name__, error)
                self._replay = module, None
        return self._replay[1]


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
        try:
            with attached(module, Watched()):  # type: ignore[arg-type]
                optimizer, schedulers = parse_optimizers(module.configure_optimizers())
        except NotCapturableError:
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


def recorded_step(trainer: Trainer, model: BoundModel, source: Source) -> Recorded:
    """Record the step of a model's module on the first full batch of a source, and compare a replay of the last one.

    Raises:
        NotCapturableError: it cannot be replayed, and why.
    """
    module: pl.LightningModule = model.module  # type: ignore[assignment]
    hooks = [hook for hook in HOOKS if overridden(module, hook)]
    if hooks:
        raise NotCapturableError(f"{', '.join(hooks)} may change what a step does")
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in module.parameters()):
        raise NotCapturableError("a parameter has hooks")
    device, size = model.vector.device, min(trainer.batch_size, len(source))
    with isolated_randomness(0, device):
        first, last = (_batch(trainer, module, source, indices, device) for indices in _ends(len(source), size))
        if Shape.of(first)[0] != Shape.of(last)[0]:
            raise NotCapturableError("batches of one size have several shapes")
        parameters = model.trainable()
        places = {id(parameter): name for name, parameter in module.named_parameters(remove_duplicate=True)}
        names = [places[id(parameter)] for parameter in parameters]
        recorded = record(module, names, first, context=lambda: trainer.autocast(device))
        _compare(trainer, model, recorded, last)
    return recorded


def _ends(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(size), np.arange(length - size, length)


def _batch(
    trainer: Trainer, module: pl.LightningModule, source: Source, indices: np.ndarray, device: torch.device
) -> Any:
    return to_device(module, trainer.formatted(next(iter(source.batches(indices, len(indices))))), device)


def _compare(trainer: Trainer, model: BoundModel, recorded: Recorded, batch: Any) -> None:
    """Raise NotCapturableError if the module's own gradients on a batch are not those of a replay."""
    module: pl.LightningModule = model.module  # type: ignore[assignment]
    parameters, buffers = model.trainable(), list(module.buffers())
    kept = [buffer.clone() for buffer in buffers]
    seed_generators(1)
    collector = LogCollector()
    logging = replaced(module, log=collector.log, log_dict=collector.log_dict)
    with logging, attached(module, TrainerStandIn(1, 1)), trainer.autocast(model.vector.device):
        loss = loss_of(step_caller(module.training_step)(batch, 0))
    if loss is None:
        raise NotCapturableError("training_step skips some batches")
    own = [loss.detach(), *(g for g in torch.autograd.grad(loss, parameters, allow_unused=True) if g is not None)]
    for buffer, value in zip(buffers, kept, strict=True):
        buffer.copy_(value)
    seed_generators(1)
    with torch.no_grad():
        values = recorded.graph(*parameters, *(buffer.clone() for buffer in buffers), *Shape.of(batch)[1])
    replayed = [values[0], *values[1 + len(recorded.logged) :]]
    if len(own) != len(replayed):
        raise NotCapturableError("which parameters get gradients depends on the batch")
    for a, b in zip(own, replayed, strict=True):
        if not float((a - b).norm()) <= LARGEST_DIFFERENCE * float(a.norm()) + 1e-12:
            raise NotCapturableError("a replay of other samples differs from the module")


@dataclass
class Replay:
    """A recorded step bound to a model.

    Attributes:
        recorded: the step.
        gradients: loss, logged numbers and gradients of a batch.
        with_sgd: loss and logged numbers of a batch; steps the parameters along the gradients.
        parameters: the model's trainable parameters.
        buffers: all buffers of its module.
    """

    recorded: Recorded
    gradients: Callable[..., Any]
    with_sgd: Callable[..., Any]
    parameters: list[Tensor]
    buffers: list[Tensor]

    def __init__(self, recorded: Recorded, model: BoundModel, compile: bool) -> None:
        self.recorded = recorded
        self.parameters, self.buffers = list(model.trainable()), list(model.module.buffers())
        graphs = [recorded.graph, with_sgd(recorded, len(self.parameters))]
        compiled = [torch.compile(graph, dynamic=False) if compile else graph.forward for graph in graphs]
        self.gradients, self.with_sgd = compiled


class _ReplayLoop(Loop):
    """Replays full batches."""

    def __init__(self, replay: Replay, *rest: Any) -> None:
        super().__init__(*rest)
        self.replay = replay
        self.shape, self.logged = replay.recorded.shape, replay.recorded.logged
        self.tensors = [*replay.parameters, *replay.buffers]
        self.stepped = [p for index, p in enumerate(replay.parameters) if index not in replay.recorded.unused]
        clips = self.trainer.gradient_clip_val is not None
        simple = not (self.schedulers or self.adjusts_gradient or self.adjusts_loss or clips)
        self.fused = simple and steps_plainly(self.optimizer, self.parameters)

    def batch(self, batch: Any, batch_idx: int, epoch: int) -> Any:
        """One optimizer step; what it returns is never used, since the module has no hooks."""
        shape, tensors = Shape.of(batch)
        if shape != self.shape or self.adjusts_loss:
            return super().batch(batch, batch_idx, epoch)
        with torch.inference_mode():
            if self.fused:
                values = self.replay.with_sgd(*self.tensors, *tensors, -self.optimizer.param_groups[0]["lr"])
            else:
                values = self.replay.gradients(*self.tensors, *tensors)
        self._note(values)
        if not self.fused:
            self._step(values[1 + len(self.logged) :], epoch, batch_idx)
        self.stand_in.global_step += 1
        return None

    def _note(self, values: Sequence[Tensor]) -> None:
        self.log.add_loss(values[0])
        for (name, reduce, batch_size), value in zip(self.logged, values[1:], strict=False):
            self.log.log(name, value, reduce_fx=reduce, batch_size=batch_size)

    def _step(self, gradients: Sequence[Tensor], epoch: int, batch_idx: int) -> None:
        self.zero_grad(epoch, batch_idx)
        for parameter, gradient in zip(self.stepped, gradients, strict=True):
            parameter.grad = gradient
        self.step_along_gradients()


def steps_plainly(optimizer: Optimizer, parameters: Sequence[Tensor]) -> bool:
    """Whether an optimizer's step is `p -= lr * p.grad` for exactly these parameters, and nobody watches it."""
    try:
        learning_rate(optimizer)
    except ValueError:
        return False
    hooks: list[Any] = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    hooks += [optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks]
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    own = type(optimizer) is SGD and "step" not in vars(optimizer)
    numbers = all(isinstance(group["lr"], float | int) for group in optimizer.param_groups)
    return own and numbers and not any(hooks) and stepped == {id(p) for p in parameters}
