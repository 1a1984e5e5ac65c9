"""Plain SGD: a client's update is minus the sum of gradients times learning rates, so their mean follows from it."""

from contextlib import suppress
from operator import itemgetter
from typing import Any

import pytorch_lightning as pl
from torch.optim import SGD, Optimizer

from flrl.lightning.stand_in import OnlyRealTrainerError, TrainerStandIn, attached, configure

_MUST_BE_ZERO = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
_values = itemgetter(*_MUST_BE_ZERO)


def check_plain_sgd(module: pl.LightningModule, trainer: Any) -> None:
    """Raise ValueError that names the optimizer or setting, unless a module trains by plain SGD without clipping.

    The optimizer of a module whose `configure_optimizers` needs a real Trainer is known only while it trains: see
    `Trained.not_plain_sgd`.

    Args:
        module: the user's module.
        trainer: a `flrl.trainers.Trainer`.
    """
    with (
        attached(module, TrainerStandIn(trainer.local_epochs, 1, engine=trainer.engine)) as stand_in,
        suppress(OnlyRealTrainerError),
    ):
        require_plain_sgd(not_plain_sgd(configure(module, stand_in)[0]))
    options = getattr(trainer, "trainer_options", {})
    clip = options.get("gradient_clip_val", trainer.gradient_clip_val)
    if clip is not None:
        raise ValueError(f"trainer.gradient_clip_val={clip}: must be null, this strategy needs plain SGD steps")


def require_plain_sgd(found: str) -> None:
    """Raise ValueError unless `found`, a result of `not_plain_sgd`, is empty."""
    if found:
        raise ValueError(f"model.optimizer: this strategy needs plain torch.optim.SGD with one lr, got {found}")


def not_plain_sgd(optimizer: Optimizer) -> str:
    """A description of an optimizer that is not plain SGD with one learning rate; empty if it is."""
    groups = optimizer.param_groups
    if type(optimizer) is SGD and len(groups) == 1 and not any(_values(groups[0])):  # most are, and this is quick
        return ""
    faults = sorted({f"{name}={group[name]}" for group in groups for name in _MUST_BE_ZERO if group.get(name)})
    rates = sorted({float(group["lr"]) for group in groups})
    if type(optimizer) is SGD and not faults and len(rates) == 1:
        return ""
    return ", ".join([type(optimizer).__name__, *faults, *(f"lr={rate}" for rate in rates)])
