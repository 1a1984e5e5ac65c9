"""A lean training loop over the hooks of an unmodified LightningModule; the default engine.

It takes the same steps in the same order as `lightning.Trainer.fit` and ends in the same bits, at a fraction of the
overhead per client. What it does not do, it refuses by name.
"""

from typing import Any

import pytorch_lightning as pl
import torch
from torch.optim import LBFGS, Optimizer

from flrl.trainers.base import (
    ClientHalf,
    LocalProblem,
    Trainer,
    apply_adjustment,
    client_randomness,
    to_device,
    update_of,
)
from flrl.trainers.modules import LogCollector, check_automatic, loss_of, overridden, replaced, step_caller
from flrl.trainers.optimizers import (
    SchedulerStep,
    optimizer_tensors,
    parse_optimizers,
    restore_optimizer,
    scale_learning_rates,
)
from flrl.types import ClientUpdate

REFUSED_HOOKS = ("backward", "optimizer_step", "configure_gradient_clipping", "configure_callbacks")


class EagerTrainer(Trainer):
    """Trains with a plain PyTorch loop; arguments as for `flrl.trainers.base.Trainer`."""

    def check(self, module: pl.LightningModule) -> None:
        """Refuse manual optimization, the hooks this loop does not call, and optimizers it cannot step."""
        check_automatic(module)
        refused = [hook for hook in REFUSED_HOOKS if overridden(module, hook)]
        if refused:
            raise ValueError(
                f"trainer=eager does not call {', '.join(refused)}, which {type(module).__name__} overrides: "
                "use trainer=lightning"
            )
        module.trainer = TrainerStandIn(self.local_epochs, 1)  # type: ignore[assignment]
        try:
            optimizer, _ = parse_optimizers(module.configure_optimizers())
        finally:
            module.trainer = None
        if isinstance(optimizer, LBFGS):
            raise ValueError("trainer=eager does not pass closures, which LBFGS needs: use trainer=lightning")

    def fit(self, problem: LocalProblem, half: ClientHalf) -> ClientUpdate:
        """Train the client from the broadcast vector on."""
        problem.model.load(problem.broadcast.vector)
        log = LogCollector()
        stand_in = TrainerStandIn(self.local_epochs, self.num_batches(problem))
        with client_randomness(problem), replaced(problem.module, log=log.log, log_dict=log.log_dict):
            problem.module.trainer = stand_in  # type: ignore[assignment]
            try:
                optimizer = self._train(problem, half, log, stand_in)
            finally:
                problem.module.trainer = None
        memory = optimizer_tensors(optimizer) if self.keep_optimizer_state else None
        return update_of(problem, metrics=log.result(), num_steps=stand_in.global_step, memory=memory)

    def _train(
        self, problem: LocalProblem, half: ClientHalf, log: LogCollector, stand_in: "TrainerStandIn"
    ) -> Optimizer:
        module = problem.module
        _call(module, "setup", "fit")
        _call(module, "on_fit_start")
        optimizer, schedulers = parse_optimizers(module.configure_optimizers())
        scale_learning_rates(optimizer, schedulers, self.lr_factor(problem))
        restore_optimizer(optimizer, problem.task.memory)
        stand_in.optimizers, stand_in.lr_scheduler_configs = [optimizer], schedulers
        _call(module, "on_train_start")
        loop = _Loop(self, problem, half, log, stand_in, optimizer, schedulers)
        for epoch in range(self.local_epochs):
            stand_in.current_epoch = epoch
            _call(module, "on_train_epoch_start")
            loop.epoch(epoch)
            _call(module, "on_train_epoch_end")
            log.end_epoch(reset=True)
        _call(module, "on_train_end")
        _call(module, "on_fit_end")
        _call(module, "teardown", "fit")
        return optimizer


class _Loop:
    """The batches of one client: everything that does not change from batch to batch is looked up once."""

    def __init__(
        self,
        trainer: Trainer,
        problem: LocalProblem,
        half: ClientHalf,
        log: LogCollector,
        stand_in: "TrainerStandIn",
        optimizer: Optimizer,
        schedulers: list[SchedulerStep],
    ) -> None:
        self.trainer, self.problem, self.half, self.log = trainer, problem, half, log
        self.stand_in, self.optimizer, self.schedulers = stand_in, optimizer, schedulers
        self.module = problem.module
        self.device = problem.model.vector.device
        self.step = step_caller(self.module.training_step)
        self.parameters = problem.model.trainable()
        names = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "optimizer_zero_grad")
        names += ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "lr_scheduler_step")
        self.hooks = {name for name in names if overridden(self.module, name)}

    def epoch(self, epoch: int) -> None:
        """Train one pass over the client's batches."""
        last = self.stand_in.num_training_batches - 1
        for batch_idx, (batch, size) in enumerate(self.trainer.batches(self.problem, epoch)):
            batch = to_device(self.module, batch, self.device)
            self.log.batch_size = size
            if "on_train_batch_start" in self.hooks and self.module.on_train_batch_start(batch, batch_idx) == -1:
                break
            output = self.batch(batch, batch_idx, epoch)
            self.step_schedulers(batch_idx, is_last=batch_idx == last)
            if "on_train_batch_end" in self.hooks:
                outputs = output if isinstance(output, dict) else {"loss": output}
                self.module.on_train_batch_end(outputs, batch, batch_idx)

    def batch(self, batch: Any, batch_idx: int, epoch: int) -> Any:
        """One optimizer step; what `training_step` returned."""
        with self.trainer.autocast(self.device):
            output = self.step(batch, batch_idx)
        loss = loss_of(output)
        self._zero_grad(epoch, batch_idx)
        if loss is None:
            return None
        self.log.add_loss(loss)
        if self.half.adjusts_loss:
            loss = self.half.adjust_loss(loss, self.problem)
        if "on_before_backward" in self.hooks:
            self.module.on_before_backward(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        if "on_after_backward" in self.hooks:
            self.module.on_after_backward()
        if self.half.adjusts_gradient:
            apply_adjustment(self.problem, self.half)
        if "on_before_optimizer_step" in self.hooks:
            self.module.on_before_optimizer_step(self.optimizer)
        self._clip()
        self.optimizer.step()
        self.stand_in.global_step += 1
        return output

    def step_schedulers(self, batch_idx: int, *, is_last: bool) -> None:
        """Step those whose interval ends with this batch."""
        for config in self.schedulers:
            if config.interval == "epoch" and not is_last:
                continue
            count = batch_idx if config.interval == "step" else self.stand_in.current_epoch
            if (count + 1) % config.frequency == 0:
                if "lr_scheduler_step" in self.hooks:
                    self.module.lr_scheduler_step(config.scheduler, None)
                else:
                    config.scheduler.step()

    def _zero_grad(self, epoch: int, batch_idx: int) -> None:
        if "on_before_zero_grad" in self.hooks:
            self.module.on_before_zero_grad(self.optimizer)
        if "optimizer_zero_grad" in self.hooks:
            self.module.optimizer_zero_grad(epoch, batch_idx, self.optimizer)
        else:
            self.optimizer.zero_grad()

    def _clip(self) -> None:
        limit = self.trainer.gradient_clip_val
        if limit is None:
            return
        if self.trainer.gradient_clip_algorithm == "norm":
            torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        else:
            torch.nn.utils.clip_grad_value_(self.parameters, limit)


def _call(module: pl.LightningModule, hook: str, *args: Any) -> None:
    if overridden(module, hook):
        getattr(module, hook)(*args)


class TrainerStandIn:
    """What `self.trainer` is while the eager loop runs: counters, the optimizer, and a clear no to all else."""

    def __init__(self, max_epochs: int, num_training_batches: int) -> None:
        self.max_epochs = max_epochs
        self.num_training_batches = num_training_batches
        self.estimated_stepping_batches = max_epochs * num_training_batches
        self.current_epoch = 0
        self.global_step = 0
        self.optimizers: list[Optimizer] = []
        self.lr_scheduler_configs: list[SchedulerStep] = []
        self.loggers: list[Any] = []
        self.logger = None
        self.training = True
        self.validating = self.testing = self.predicting = self.sanity_checking = False
        self.is_global_zero = True
        self.world_size = 1
        self.global_rank = self.local_rank = 0

    def __getattr__(self, name: str) -> Any:
        """Anything that only a real Trainer has."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError(f"trainer=eager has no Trainer.{name}: use trainer=lightning")
