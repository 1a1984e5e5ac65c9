"""A real `Trainer.fit` per client: every hook and callback of Lightning works, at tens of milliseconds per client."""

import contextlib
import functools
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch

from flrl.lightning.local_step import LocalStep, observed
from flrl.lightning.logs import LogCollector
from flrl.lightning.optimizers import (
    check_stepped,
    optimizer_tensors,
    parse_optimizers,
    restore_optimizer,
    scale_learning_rates,
)
from flrl.lightning.plain_sgd import not_plain_sgd
from flrl.lightning.stand_in import OnlyRealTrainerError, TrainerStandIn, attached, configure
from flrl.lightning.steps import check_automatic, loss_of, replaced, require_losses
from flrl.setup import Setup
from flrl.snapshot import Snapshot
from flrl.trainers.adjusting import adjust_gradients, drop_frozen
from flrl.trainers.base import Trainer
from flrl.trainers.problem import ClientHooks, LocalProblem, Trained, client_randomness, trained


class LightningTrainer(Trainer):
    """Trains with `pytorch_lightning.Trainer` (or that of `lightning.pytorch`, where the module comes from there).

    Args:
        callbacks: Lightning callbacks; each client's Trainer gets the same objects, restored to their initial state.
        trainer_options: further arguments of the Trainer, by name.
        options: as for `flrl.trainers.base.Trainer`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self, *, callbacks: list[Any] | None = None, trainer_options: dict[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.callbacks = list(callbacks or [])
        self.trainer_options = dict(trainer_options or {})
        self._before = Snapshot([self.callbacks, self.trainer_options], "trainer.callbacks")

    @property
    def restored(self) -> Sequence[Snapshot]:
        """The callbacks and options."""
        return (self._before,)

    def check(self, setup: Setup) -> None:
        """Refuse manual optimization, and callbacks that cannot be restored; everything else is left to Lightning.

        Raises:
            ValueError: the module or a callback is refused.
        """
        module = setup.module
        check_automatic(module)
        if self.private is not None:
            raise ValueError("trainer.private: trainer=lightning does not take private steps: use trainer=traced")
        stand_in = TrainerStandIn(self.local_epochs, 1, engine=self.engine)
        with attached(module, stand_in), contextlib.suppress(OnlyRealTrainerError):
            check_stepped(module, configure(module, stand_in)[0])
        if self._before.stuck:
            raise ValueError(f"what cannot be put back between clients: {', '.join(self._before.stuck)}")

    def fit(self, problem: LocalProblem, hooks: ClientHooks) -> Trained:
        """Train the client from `problem.start` on.

        Raises:
            ValueError: no batch had a loss, or the strategy's `adjust_gradient` is not elementwise.
        """
        self.load(problem)
        self._before.restore()
        module = problem.module
        bridge = _Bridge(self, problem, hooks, LogCollector())
        loader = _Loader(self, problem, bridge.sizes)
        with client_randomness(problem), replaced(module, **bridge.replacements()), _quiet():
            trainer = self._trainer(problem, bridge)
            trainer.fit(module, train_dataloaders=loader)
            if trainer.interrupted:
                raise KeyboardInterrupt
        require_losses(bridge.collected.num_losses, bridge.collected.num_skipped)
        memory = optimizer_tensors(bridge.optimizer) if self.keep_optimizer_state else {}
        return trained(
            problem,
            problem.model.read(),
            metrics=bridge.collected.result(),
            num_steps=trainer.global_step,
            lr_sum=bridge.lr_sum,
            not_plain_sgd=not_plain_sgd(bridge.optimizer),
            memory=memory | self.position(problem),
        )

    def _trainer(self, problem: LocalProblem, bridge: "_Bridge") -> Any:
        bases = {base.__module__.split(".")[0] for base in type(problem.module).__mro__}
        package = "lightning.pytorch" if "lightning" in bases else "pytorch_lightning"
        device = problem.model.local.device
        options: dict[str, Any] = {
            "max_epochs": self.num_epochs(problem),
            "accelerator": "gpu" if device.type == "cuda" else device.type,
            "devices": [device.index or 0] if device.type == "cuda" else 1,
            "precision": self.precision,
            "gradient_clip_val": self.gradient_clip_val,
            "gradient_clip_algorithm": self.gradient_clip_algorithm,
            "callbacks": [bridge, *self.callbacks],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "use_distributed_sampler": False,
            # Otherwise Lightning looks for a cluster's environment, and would take a client for a part of its own job.
            "plugins": [importlib.import_module(f"{package}.plugins.environments").LightningEnvironment()],
        }
        return importlib.import_module(package).Trainer(**(options | self.trainer_options))


class _Loader:
    """The client's batches as a sized iterable: each iteration is the next local epoch."""

    def __init__(self, trainer: Trainer, problem: LocalProblem, sizes: dict[int, int]) -> None:
        self._trainer, self._problem, self._sizes = trainer, problem, sizes
        self._epoch = 0

    def __len__(self) -> int:
        return self._trainer.num_batches(self._problem)

    def __iter__(self) -> Iterator[Any]:
        epoch, self._epoch = self._epoch, self._epoch + 1
        for batch_idx, (batch, size) in enumerate(self._trainer.batches(self._problem, epoch)):
            self._sizes[batch_idx] = size  # Lightning fetches a batch before it trains on the previous one
            yield batch


class _Bridge(pl.Callback):
    """Calls the strategy's client hooks inside a Trainer, and collects losses and logs from it."""

    def __init__(self, trainer: Trainer, problem: LocalProblem, hooks: ClientHooks, log: LogCollector) -> None:
        self.collected = log
        self.sizes: dict[int, int] = {}
        self.lr_sum = 0.0
        self.optimizer: torch.optim.Optimizer
        self._settings, self._problem, self._hooks = trainer, problem, hooks

    def replacements(self) -> dict[str, Callable[..., Any]]:
        """The module's methods to be replaced while it trains, each calling the original."""
        module = self._problem.module
        return {
            "log": self._both(module.log, self.collected.log),
            "log_dict": self._both(module.log_dict, self.collected.log_dict),
            "training_step": self._training_step(module.training_step),
            "configure_optimizers": self._configure_optimizers(module.configure_optimizers),
            "prepare_data": lambda: None,  # the samples are not the module's own
            "cpu": lambda: module,  # the Trainer would move the module to the CPU at the end
        }

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the size of the batch, which weights the logged numbers."""
        self.collected.batch_size = self.sizes[batch_idx]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Call the strategy's `adjust_gradient`, and note the learning rate."""
        if self._hooks.adjusts_gradient:
            adjust_gradients(self._problem, self._hooks)
        if self._problem.trainable is not None:
            drop_frozen(self._problem)
        self.lr_sum += float(optimizer.param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Read the logged metrics before Lightning resets them."""
        self.collected.end_epoch(reset=False)

    @staticmethod
    def _both(original: Callable[..., None], collect: Callable[..., None]) -> Callable[..., None]:
        def log(*args: Any, **options: Any) -> None:
            original(*args, **options)
            collect(*args, **options)

        return log

    def _training_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        module = self._problem.module

        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            with observed(module, self._hooks.observes if self._hooks.adjusts_loss else ()) as outputs:
                output = original(*args, **kwargs)
            loss = loss_of(output)
            if loss is None:
                self.collected.num_skipped += 1
                return output
            self.collected.add_loss(loss)
            if self._hooks.adjusts_loss:
                batch = kwargs["batch"] if "batch" in kwargs else args[0]
                layout, values = self._problem.model.layout, self._problem.values
                step = LocalStep(module, layout, batch, values, outputs, training_step=original)
                loss = self._hooks.adjust_loss(loss, step)
            return {**output, "loss": loss} if isinstance(output, dict) else loss

        return training_step

    def _configure_optimizers(self, original: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(original)
        def configure_optimizers() -> Any:
            configured = original()
            self.optimizer, schedulers = parse_optimizers(configured)
            scale_learning_rates(self.optimizer, schedulers, self._settings.lr_factor(self._problem))
            restore_optimizer(self.optimizer, self._problem.task.memory)
            return configured

        return configure_optimizers


class _quiet(warnings.catch_warnings):
    """Silences Lightning's messages about devices, tips, loaders and loggers, which would appear for every client."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning")
        self._levels = [(name, logging.getLogger(name).level) for name in ("pytorch_lightning", "lightning")]
        self._levels += [("lightning.pytorch", logging.getLogger("lightning.pytorch").level)]
        for name, _ in self._levels:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *exc_info: Any) -> None:
        for name, level in self._levels:
            logging.getLogger(name).setLevel(level)
        super().__exit__(*exc_info)
