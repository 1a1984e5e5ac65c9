"""Plain SGD: a client's update is minus the sum of its gradients times the learning rates, so it tells their mean."""

from contextlib import suppress
from operator import itemgetter
from typing import Any

import pytorch_lightning as pl
from torch.optim import SGD, Optimizer

from flrl.lightning.stand_in import OnlyRealTrainerError, TrainerStandIn, attached, configure

_MUST_BE_ZERO = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
_values = itemgetter(*_MUST_BE_ZERO)


def check_plain_sgd(module: pl.LightningModule, trainer: Any) -> None:
    """Raise ValueError, by name, unless a module's optimizer is plain SGD and its gradients are not clipped.

    A module whose `configure_optimizers` needs a real Trainer shows its optimizer while it trains only: what was
    trained then says so in `Trained.not_plain_sgd`.

    Args:
        module: the user's.
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
    """Raise ValueError if `not_plain_sgd` has found another optimizer."""
    if found:
        raise ValueError(f"model.optimizer: this strategy needs plain torch.optim.SGD with one lr, got {found}")


def not_plain_sgd(optimizer: Optimizer) -> str:
    """What an optimizer is, unless it is plain SGD with one learning rate; empty if it is that."""
    groups = optimizer.param_groups
    if type(optimizer) is SGD and len(groups) == 1 and not any(_values(groups[0])):  # most are, and this is quick
        return ""
    faults = sorted({f"{name}={group[name]}" for group in groups for name in _MUST_BE_ZERO if group.get(name)})
    rates = sorted({float(group["lr"]) for group in groups})
    if type(optimizer) is SGD and not faults and len(rates) == 1:
        return ""
    return ", ".join([type(optimizer).__name__, *faults, *(f"lr={rate}" for rate in rates)])
