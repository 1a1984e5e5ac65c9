"""The loop of the eager engine over one client's batches."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flrl.lightning.hooks import BATCH_HOOKS, overridden
from flrl.lightning.local_step import LocalStep, observed
from flrl.lightning.logs import LogCollector
from flrl.lightning.optimizers import SchedulerStep
from flrl.lightning.stand_in import TrainerStandIn
from flrl.lightning.steps import loss_of, step_caller
from flrl.lightning.transfer import to_device, transfers
from flrl.trainers.adjusting import adjust_gradients, drop_frozen
from flrl.trainers.base import Trainer
from flrl.trainers.problem import ClientHooks, LocalProblem


class Loop:
    """The loop over one client's batches; attributes that do not change from batch to batch are looked up once.

    Args:
        trainer: the engine.
        problem: the client's problem.
        hooks: the strategy.
        log: collects what the module logs.
        stand_in: the module's `self.trainer`.
        optimizer: the module's optimizer.
        schedulers: the module's schedulers.

    Attributes:
        lr_sum: the sum of the learning rates of all steps taken.
    """

    def __init__(
        self,
        trainer: Trainer,
        problem: LocalProblem,
        hooks: ClientHooks,
        log: LogCollector,
        stand_in: TrainerStandIn,
        optimizer: Optimizer,
        schedulers: list[SchedulerStep],
    ) -> None:
        self.trainer, self.problem, self.hooks, self.log = trainer, problem, hooks, log
        self.stand_in, self.optimizer, self.schedulers = stand_in, optimizer, schedulers
        self.module = problem.module
        self.device = problem.model.local.device
        self.lr_sum = 0.0
        self.step = step_caller(self.module.training_step)
        self.parameters = problem.model.trainable()
        self.overridden = {name for name in BATCH_HOOKS if overridden(self.module, name)}
        self.transfers = transfers(self.module, self.device)
        self.adjusts_loss, self.adjusts_gradient = hooks.adjusts_loss, hooks.adjusts_gradient
        self.plain_zero_grad = type(optimizer).zero_grad is Optimizer.zero_grad

    def epoch(self, epoch: int) -> None:
        """Train one pass over the client's batches."""
        last = self.stand_in.num_training_batches - 1
        for batch_idx, (batch, size) in enumerate(self.trainer.batches(self.problem, epoch)):
            if self.transfers:
                batch = to_device(self.module, batch, self.device)
            self.log.batch_size = size
            if "on_train_batch_start" in self.overridden and self.module.on_train_batch_start(batch, batch_idx) == -1:
                break
            output = self.batch(batch, batch_idx, epoch)
            self.step_schedulers(batch_idx, is_last=batch_idx == last)
            if "on_train_batch_end" in self.overridden:
                self.module.on_train_batch_end(_outputs(output), batch, batch_idx)

    def batch(self, batch: Any, batch_idx: int, epoch: int) -> Any:
        """Take one optimizer step; returns what `training_step` returned, or None for a skipped batch."""
        with self.trainer.autocast(self.device), self._observed() as outputs:
            output = self.step(batch, batch_idx)
        loss = loss_of(output)
        self.zero_grad(epoch, batch_idx)
        if loss is None:
            self.log.num_skipped += 1
            return None
        self.log.add_loss(loss)
        if self.adjusts_loss:
            with self.trainer.autocast(self.device):
                step = LocalStep(self.module, self.problem.model.layout, batch, self.problem.values, outputs)
                loss = self.hooks.adjust_loss(loss, step)
        if "on_before_backward" in self.overridden:
            self.module.on_before_backward(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        if "on_after_backward" in self.overridden:
            self.module.on_after_backward()
        self.step_along_gradients()
        self.stand_in.global_step += 1
        return output

    def _observed(self) -> AbstractContextManager[dict[str, Tensor]]:
        """A context that records the outputs of the layers that `adjust_loss` needs."""
        return observed(self.module, self.hooks.observes) if self.adjusts_loss else nullcontext({})

    def step_along_gradients(self) -> None:
        """Call `adjust_gradient`, clip the gradients, and step the optimizer."""
        if self.adjusts_gradient:
            adjust_gradients(self.problem, self.hooks)
        if self.problem.trainable is not None:
            drop_frozen(self.problem)
        if "on_before_optimizer_step" in self.overridden:
            self.module.on_before_optimizer_step(self.optimizer)
        self._clip()
        self.lr_sum += float(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()

    def step_schedulers(self, batch_idx: int, *, is_last: bool) -> None:
        """Step the schedulers whose interval ends with this batch."""
        for config in self.schedulers:
            if config.interval == "epoch" and not is_last:
                continue
            count = batch_idx if config.interval == "step" else self.stand_in.current_epoch
            if (count + 1) % config.frequency == 0:
                if "lr_scheduler_step" in self.overridden:
                    self.module.lr_scheduler_step(config.scheduler, None)
                else:
                    config.scheduler.step()

    def zero_grad(self, epoch: int, batch_idx: int) -> None:
        """Set the gradients of the last batch to None."""
        if "on_before_zero_grad" in self.overridden:
            self.module.on_before_zero_grad(self.optimizer)
        if "optimizer_zero_grad" in self.overridden:
            self.module.optimizer_zero_grad(epoch, batch_idx, self.optimizer)
        elif self.plain_zero_grad:  # the same without the profiler's ranges, which take longer than the work
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            self.optimizer.zero_grad()

    def _clip(self) -> None:
        limit = self.trainer.gradient_clip_val
        if limit is None:
            return
        stepped = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.trainer.gradient_clip_algorithm == "norm":
            torch.nn.utils.clip_grad_norm_(stepped, limit)
        else:
            torch.nn.utils.clip_grad_value_(stepped, limit)


def _outputs(output: Any) -> Any:
    """What Lightning passes to `on_train_batch_end`: a dict with the loss detached; None for a skipped batch."""
    loss = loss_of(output)
    if loss is None:
        return None
    return {**output, "loss": loss.detach()} if isinstance(output, dict) else {"loss": loss.detach()}
