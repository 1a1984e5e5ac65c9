"""Checks that a recorded step may replace the module's own, and that a plain SGD step may replace the optimizer's."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as optimizers

from flrl.bound_model import BoundModel
from flrl.lightning.hooks import BATCH_HOOKS, FIT_HOOKS, overridden
from flrl.lightning.local_step import LocalStep, observed
from flrl.lightning.logs import LogCollector
from flrl.lightning.plain_sgd import not_plain_sgd
from flrl.lightning.stand_in import TrainerStandIn, attached
from flrl.lightning.steps import loss_of, replaced, step_caller
from flrl.seeding import seed_generators
from flrl.snapshot import Snapshot
from flrl.trainers.steps.capturing import NotCapturableError
from flrl.trainers.steps.record import Adjustment, Recorded, Shape, record

if TYPE_CHECKING:
    from flrl.trainers.base import Trainer

_NORM_DIFFERENCE = 1e-3
OTHER_INDICES = (1, 6)
"""`batch_idx` of the module's own steps that a replay is compared with."""


def recorded_step(trainer: "Trainer", model: BoundModel, batch: Any, adjustment: Adjustment | None) -> Recorded:
    """Record the step of a model's module on a batch, and compare a replay with the module.

    Raises:
        NotCapturableError: the step cannot be replayed.
    """
    recorded = record(model, batch, context=lambda: trainer.autocast(model.local.device), adjustment=adjustment)
    _compare(trainer, model, recorded, batch, adjustment)
    return recorded


def refuse_hooks(module: pl.LightningModule) -> None:
    """Raise NotCapturableError for hooks that a replay would not call, or that may change a step's operations."""
    hooks = [hook for hook in (*BATCH_HOOKS, *FIT_HOOKS) if overridden(module, hook)]
    if hooks:
        raise NotCapturableError(f"{', '.join(hooks)} may change what a step does")
    if any(p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in module.parameters()):
        raise NotCapturableError("a parameter has hooks")


def _compare(
    trainer: "Trainer", model: BoundModel, recorded: Recorded, batch: Any, adjustment: Adjustment | None
) -> None:
    """Raise NotCapturableError if the module's own gradients are not those of a replay."""
    owns = [own_step(trainer, model, batch, index, adjustment) for index in OTHER_INDICES]
    others = [] if adjustment is None else adjustment.tensors
    copies = [tensor.detach().clone() for tensor in (*model.trainable(), *model.module.buffers())]
    with torch.no_grad():
        seed_generators(1)
        try:
            values = recorded.graph(*copies, *Shape.of(batch)[1], *others)
        except Exception as error:  # some operators cannot be called with the arguments that were recorded
            raise NotCapturableError(f"a replay fails: {str(error).splitlines()[0]}") from error
    replayed = [values[0], *values[1 + len(recorded.logged) :]]
    same = _same_bits if model.local.device.type == "cpu" else _close_enough
    if any(
        len(own) != len(replayed) or not all(same(a, b) for a, b in zip(own, replayed, strict=True)) for own in owns
    ):
        raise NotCapturableError("a replay differs from the module")


def own_step(
    trainer: "Trainer", model: BoundModel, batch: Any, batch_idx: int, adjustment: Adjustment | None = None
) -> list[Tensor]:
    """Loss and gradients of a module's own step, with generators seeded by 1; the model is not changed.

    Raises:
        NotCapturableError: the step fails, for instance because it depends on `batch_idx`.
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
        autocast = trainer.autocast(model.local.device)
        with torch.enable_grad(), logging, attached(module, TrainerStandIn(1, 1, engine=trainer.engine)), autocast:
            with observed(module, () if adjustment is None else adjustment.hooks.observes) as outputs:
                loss = loss_of(step_caller(module.training_step)(batch, batch_idx))
            if loss is None:
                raise NotCapturableError("training_step skipped a batch")
            adjusted = loss
            if adjustment is not None:
                step = LocalStep(module, model.layout, batch, adjustment.values, outputs)
                adjusted = adjustment.hooks.adjust_loss(loss, step)
            gradients = torch.autograd.grad(adjusted, parameters, allow_unused=True)
    except Exception as error:
        raise NotCapturableError(f"training_step failed when it was called a second time: {error}") from error
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


def steps_plainly(optimizer: Optimizer, parameters: Sequence[Tensor]) -> bool:
    """Whether an optimizer's step is `p -= lr * p.grad` for exactly these parameters, without hooks."""
    if not_plain_sgd(optimizer):
        return False
    stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    numbers = all(isinstance(group["lr"], float | int) for group in optimizer.param_groups)
    own = type(optimizer) is SGD and "step" not in vars(optimizer)
    return own and numbers and not optimizer_is_watched(optimizer) and stepped == {id(p) for p in parameters}


def optimizer_is_watched(optimizer: Optimizer) -> bool:
    """Whether an optimizer has hooks, or a `step` replaced by anything but a scheduler."""
    hooks: list[Any] = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    hooks += [optimizers._global_optimizer_pre_hooks, optimizers._global_optimizer_post_hooks]
    replaced = "step" in vars(optimizer) and not getattr(optimizer.step, "_wrapped_by_lr_sched", False)
    return replaced or any(hooks)
