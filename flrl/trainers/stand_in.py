"""What `self.trainer` is for a module while no Lightning Trainer runs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
from torch.optim import Optimizer

from flrl.trainers.optimizers import SchedulerStep, parse_optimizers


class TrainerStandIn:
    """Counters, the optimizer, and a clear no to all that only a real Trainer has."""

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


@contextlib.contextmanager
def attached(module: pl.LightningModule, stand_in: TrainerStandIn) -> Iterator[TrainerStandIn]:
    """Make a stand-in the module's `self.trainer` for a while."""
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
    """Ask the module for its optimizer and schedulers, and let the stand-in know them."""
    optimizer, schedulers = parse_optimizers(module.configure_optimizers())
    stand_in.optimizers, stand_in.lr_scheduler_configs = [optimizer], schedulers
    return optimizer, schedulers
