"""The default engine: a plain PyTorch loop that calls the hooks of an unmodified LightningModule.

It takes the same steps in the same order as `lightning.Trainer.fit` and ends in the same bits, at a fraction of the
overhead per client. It refuses modules that need anything else of a Trainer.
"""

from typing import Any

import pytorch_lightning as pl
from torch.optim import LBFGS, Optimizer

from flrl.lightning.hooks import overridden
from flrl.lightning.logs import LogCollector
from flrl.lightning.optimizers import (
    SchedulerStep,
    check_stepped,
    optimizer_tensors,
    restore_optimizer,
    scale_learning_rates,
)
from flrl.lightning.plain_sgd import not_plain_sgd
from flrl.lightning.stand_in import TrainerStandIn, attached, configure
from flrl.lightning.steps import check_automatic, replaced, require_losses
from flrl.setup import Setup
from flrl.trainers.base import Trainer
from flrl.trainers.loop import Loop
from flrl.trainers.private.loop import PrivateLoop
from flrl.trainers.problem import ClientHooks, LocalProblem, Trained, client_randomness, trained

REFUSED_HOOKS = ("backward", "optimizer_step", "configure_gradient_clipping", "configure_callbacks")


class EagerTrainer(Trainer):
    """Trains with a plain PyTorch loop; arguments as for `flrl.trainers.base.Trainer`."""

    def check(self, setup: Setup) -> None:
        """Refuse manual optimization, hooks that this loop does not call, and optimizers that it cannot step.

        Raises:
            ValueError: the module has one of them.
        """
        module, name = setup.module, self.engine
        instead = "use trainer=lightning" if self.private is None else "no engine that does has trainer.private"
        check_automatic(module)
        refused = [hook for hook in REFUSED_HOOKS if overridden(module, hook)]
        if refused:
            raise ValueError(
                f"{name} does not call {', '.join(refused)}, which {type(module).__name__} overrides: {instead}"
            )
        with attached(module, TrainerStandIn(self.local_epochs, 1, engine=self.engine)) as stand_in:
            try:
                optimizer, _ = configure(module, stand_in)
            except TypeError as error:
                raise ValueError(f"model: {type(module).__name__}.configure_optimizers: {error}") from error
        check_stepped(module, optimizer)
        if isinstance(optimizer, LBFGS):
            raise ValueError(f"{name} does not pass closures, which LBFGS needs: {instead}")
        if self.private is not None:
            self.private.check(setup)

    def fit(self, problem: LocalProblem, hooks: ClientHooks) -> Trained:
        """Train the client from `problem.start` on.

        Raises:
            ValueError: no batch had a loss, or the strategy's `adjust_gradient` is not elementwise.
        """
        self.load(problem)
        log = LogCollector()
        stand_in = TrainerStandIn(self.num_epochs(problem), self.num_batches(problem), engine=self.engine)
        logging = replaced(problem.module, log=log.log, log_dict=log.log_dict)
        with client_randomness(problem), logging, attached(problem.module, stand_in):
            loop = self._train(problem, hooks, log, stand_in)
        require_losses(log.num_losses, log.num_skipped)
        memory = optimizer_tensors(loop.optimizer) if self.keep_optimizer_state else {}
        return trained(
            problem,
            problem.model.read(),
            metrics=log.result(),
            num_steps=stand_in.global_step,
            lr_sum=loop.lr_sum,
            not_plain_sgd=not_plain_sgd(loop.optimizer),
            memory=memory | self.position(problem),
        )

    def configured(self, problem: LocalProblem, stand_in: TrainerStandIn) -> tuple[Optimizer, list[SchedulerStep]]:
        """The module's optimizer, without any state of another client, and its schedulers."""
        return configure(problem.module, stand_in)

    def loop(self, problem: LocalProblem, *rest: Any) -> Loop:
        """The loop over a client's batches; `rest` are its further arguments."""
        return (Loop if self.private is None else PrivateLoop)(self, problem, *rest)

    def _train(self, problem: LocalProblem, hooks: ClientHooks, log: Any, stand_in: TrainerStandIn) -> Loop:
        module = problem.module
        _call(module, "setup", "fit")
        _call(module, "on_fit_start")
        optimizer, schedulers = self.configured(problem, stand_in)
        scale_learning_rates(optimizer, schedulers, self.lr_factor(problem))
        restore_optimizer(optimizer, problem.task.memory)
        _call(module, "on_train_start")
        loop = self.loop(problem, hooks, log, stand_in, optimizer, schedulers)
        for epoch in range(stand_in.max_epochs):
            stand_in.current_epoch = epoch
            _call(module, "on_train_epoch_start")
            loop.epoch(epoch)
            _call(module, "on_train_epoch_end")
            log.end_epoch(reset=True)
        _call(module, "on_train_end")
        _call(module, "on_fit_end")
        _call(module, "teardown", "fit")
        return loop


def _call(module: pl.LightningModule, hook: str, *args: Any) -> None:
    if overridden(module, hook):
        getattr(module, hook)(*args)
