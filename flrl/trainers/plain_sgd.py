"""Plain SGD: a client's update is minus the sum of its gradients times the learning rates, so it tells their mean."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytorch_lightning as pl
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from flrl.trainers.base import Trainer
from flrl.trainers.stand_in import OnlyRealTrainerError, TrainerStandIn, attached, configure

_MUST_BE_ZERO = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")


def check_plain_sgd(module: pl.LightningModule, trainer: Trainer) -> None:
    """Raise ValueError, by name, unless a module's optimizer is plain SGD and its gradients are not clipped.

    A module whose `configure_optimizers` needs a real Trainer shows its optimizer to `recorded_rates` only.
    """
    with (
        attached(module, TrainerStandIn(trainer.local_epochs, 1, engine=trainer.engine)) as stand_in,
        suppress(OnlyRealTrainerError),
    ):
        learning_rate(configure(module, stand_in)[0])
    options = getattr(trainer, "trainer_options", {})
    clip = options.get("gradient_clip_val", trainer.gradient_clip_val)
    if clip is not None:
        raise ValueError(f"trainer.gradient_clip_val={clip}: must be null, this strategy needs plain SGD steps")


@contextmanager
def recorded_rates() -> Iterator[list[float]]:
    """The learning rate of every optimizer step taken in the meantime, whatever engine takes them.

    Raises:
        ValueError: a step was not one of plain SGD.
    """
    rates: list[float] = []
    with register_optimizer_step_post_hook(lambda optimizer, *_: rates.append(learning_rate(optimizer))):
        yield rates


def learning_rate(optimizer: Optimizer) -> float:
    """The one learning rate of plain SGD; ValueError, by name, for anything else."""
    groups = optimizer.param_groups
    faults = sorted({f"{name}={group[name]}" for group in groups for name in _MUST_BE_ZERO if group.get(name)})
    rates = sorted({float(group["lr"]) for group in groups})
    if type(optimizer) is not SGD or faults or len(rates) > 1:
        found = ", ".join([type(optimizer).__name__, *faults, *(f"lr={rate}" for rate in rates)])
        raise ValueError(f"model.optimizer: this strategy needs plain torch.optim.SGD with one lr, got {found}")
    return rates[0]
