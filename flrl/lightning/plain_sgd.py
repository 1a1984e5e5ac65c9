"""Plain SGD: a client's update is minus the sum of gradients times learning rates, so their mean follows from it."""

import re
from collections.abc import Callable
from contextlib import suppress
from operator import itemgetter
from typing import Any

import pytorch_lightning as pl
from torch.optim import SGD, Optimizer

from flrl.lightning.stand_in import OnlyRealTrainerError, TrainerStandIn, attached, configure

_MUST_BE_ZERO = ("momentum", "dampening", "weight_decay", "nesterov", "maximize")
_values = itemgetter(*_MUST_BE_ZERO)


def check_plain_sgd(module: pl.LightningModule, trainer: Any, *, momentum: float = 0.0) -> None:
    """Raise ValueError that names the optimizer or setting, unless a module trains by plain SGD without clipping.

    The optimizer of a module whose `configure_optimizers` needs a real Trainer is known only while it trains: see
    `Trained.not_plain_sgd`.

    Args:
        module: the user's module.
        trainer: a `flrl.trainers.Trainer`.
        momentum: the optimizer's momentum; any other one is refused.
    """
    _configured(module, trainer, lambda optimizer, _: require_plain_sgd(not_plain_sgd(optimizer), momentum=momentum))
    options = getattr(trainer, "trainer_options", {})
    clip = options.get("gradient_clip_val", trainer.gradient_clip_val)
    if clip is not None:
        raise ValueError(f"trainer.gradient_clip_val={clip}: must be null, this strategy needs plain SGD steps")


def check_constant_rate(module: pl.LightningModule, trainer: Any) -> None:
    """Raise ValueError if a module has a learning-rate scheduler; rates may change between rounds."""

    def check(optimizer: Optimizer, schedulers: list[Any]) -> None:
        if schedulers:
            found = type(schedulers[0].scheduler).__name__
            raise ValueError(
                f"model: configure_optimizers has a scheduler, {found}: this strategy's steps need one learning rate a "
                "round; trainer.lr_decay changes it between rounds"
            )

    _configured(module, trainer, check)


def _configured(module: pl.LightningModule, trainer: Any, check: Callable[[Optimizer, list[Any]], None]) -> None:
    """Call `check` with a module's optimizer and schedulers, unless they need a real Trainer."""
    stand_in = TrainerStandIn(trainer.local_epochs, 1, engine=trainer.engine)
    with attached(module, stand_in), suppress(OnlyRealTrainerError):
        check(*configure(module, stand_in))


def require_plain_sgd(found: str, *, momentum: float = 0.0) -> None:
    """Raise ValueError unless `found`, a result of `not_plain_sgd`, is SGD with this momentum and no other setting."""
    if momentum and not re.fullmatch(rf"SGD, momentum={re.escape(str(momentum))}, lr=[^,]*", found):
        got = found or "one without momentum"
        raise ValueError(f"model.optimizer: must be torch.optim.SGD with momentum={momentum} and one lr, got {got}")
    if found and not momentum:
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
