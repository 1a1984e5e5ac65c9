"""The module's `self.trainer` while no Lightning Trainer runs."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers.logger import DummyLogger
from torch.optim import Optimizer

from flrl.lightning.optimizers import SchedulerStep, parse_optimizers

log = logging.getLogger(__name__)


class OnlyRealTrainerError(RuntimeError):
    """The module used an attribute that only a real Trainer has."""


class TrainerStandIn:
    """Counters and the optimizer; raises OnlyRealTrainerError for all that only a real Trainer has.

    Args:
        max_epochs: number of local epochs.
        num_training_batches: number of batches of an epoch.
        engine: the engine's name in messages.
    """

    def __init__(self, max_epochs: int, num_training_batches: int, *, engine: str = "trainer=eager") -> None:
        self.max_epochs = max_epochs
        self.max_steps = -1
        self.num_training_batches = num_training_batches
        self.estimated_stepping_batches = max_epochs * num_training_batches
        self.accumulate_grad_batches = 1
        self.current_epoch = 0
        self.global_step = 0
        self.optimizers: list[Optimizer] = []
        self.lr_scheduler_configs: list[SchedulerStep] = []
        self.progress_bar_callback = self.datamodule = None
        self.callbacks: list[Any] = []
        self.training = True
        self.validating = self.testing = self.predicting = self.sanity_checking = self.fast_dev_run = False
        self.is_global_zero = True
        self.world_size = self.num_devices = self.num_nodes = 1
        self.global_rank = self.local_rank = self.node_rank = 0
        self._engine = engine

    @property
    def logger(self) -> "ClientLogger":
        """A logger that drops everything."""
        return ClientLogger(self._engine)

    @property
    def loggers(self) -> list["ClientLogger"]:
        """A list of `logger` alone."""
        return [self.logger]

    @property
    def should_stop(self) -> bool:
        """Always False; setting it to True raises OnlyRealTrainerError."""
        return False

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        if value:
            raise OnlyRealTrainerError(
                f"{self._engine} does not end early by Trainer.should_stop: use trainer=lightning"
            )

    def __getattr__(self, name: str) -> Any:
        """Raise OnlyRealTrainerError for any other attribute."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise OnlyRealTrainerError(f"{self._engine} has no Trainer.{name}: use trainer=lightning")


class ClientLogger(DummyLogger):
    """`self.logger` of a module that trains a client: drops everything, and warns of that once."""

    def __init__(self, engine: str) -> None:
        super().__init__()
        self._engine = engine

    @property
    def experiment(self) -> Any:
        """An object whose methods all do nothing."""
        _warn_once(
            f"{self._engine}: what goes to self.logger of a client is kept nowhere; self.log goes to metrics.jsonl"
        )
        return super().experiment


@functools.cache
def _warn_once(text: str) -> None:
    log.warning(text)


@contextlib.contextmanager
def attached(module: pl.LightningModule, stand_in: TrainerStandIn) -> Iterator[TrainerStandIn]:
    """Make a stand-in the module's `self.trainer` inside the block."""
    before = [(part, part._trainer) for part in _lightning_modules(module)]
    for part, _ in before:
        part._trainer = stand_in  # type: ignore[assignment]
    try:
        yield stand_in
    finally:
        for part, trainer in before:
            part._trainer = trainer


def _lightning_modules(module: pl.LightningModule) -> Iterator[pl.LightningModule]:
    """The modules that setting `module.trainer` reaches; that setter takes longer than a small step."""
    yield module
    for child in module._modules.values():
        if child is not None and "_trainer" in vars(child):
            yield from _lightning_modules(child)  # type: ignore[arg-type]


def configure(module: pl.LightningModule, stand_in: TrainerStandIn) -> tuple[Optimizer, list[SchedulerStep]]:
    """Call the module's `configure_optimizers`, and set optimizer and schedulers in the stand-in.

    Raises:
        ValueError: as `parse_optimizers` does.
    """
    optimizer, schedulers = parse_optimizers(module.configure_optimizers())
    stand_in.optimizers, stand_in.lr_scheduler_configs = [optimizer], schedulers
    return optimizer, schedulers
