"""The optimizer and schedulers of a module, from any form of `configure_optimizers` that has one optimizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from flrl.types import Tensors

OPTIMIZER = "optimizer/"
"""What the names of an optimizer's state in client memory begin with."""
_LEARNING_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_OF_SCHEDULERS = ("base_lrs", "max_lrs", "eta_min")


@dataclass(frozen=True, slots=True)
class SchedulerStep:
    """A learning-rate scheduler, and when it steps.

    Attributes:
        scheduler: the scheduler.
        interval: "epoch" or "step".
        frequency: number of intervals between two of its steps.
    """

    scheduler: Any
    interval: str = "epoch"
    frequency: int = 1


def parse_optimizers(configured: Any) -> tuple[Optimizer, list[SchedulerStep]]:
    """The optimizer and the schedulers in what `configure_optimizers` returned.

    Raises:
        ValueError: there is no optimizer, there are several, or a scheduler follows a monitored metric.
    """
    schedulers: Any = []
    if isinstance(configured, Mapping):
        schedulers = configured.get("lr_scheduler") or []
        configured = configured["optimizer"]
    elif isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list | tuple):
        configured, schedulers = configured
    optimizers = list(configured) if isinstance(configured, list | tuple) else [configured]
    if len(optimizers) == 1 and isinstance(optimizers[0], Mapping):
        return parse_optimizers(optimizers[0])
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        names = [type(optimizer).__name__ for optimizer in optimizers]
        raise ValueError(f"configure_optimizers must return one torch optimizer, got {names}")
    steps = [_scheduler(item) for item in (schedulers if isinstance(schedulers, list | tuple) else [schedulers])]
    return optimizers[0], steps


def check_stepped(module: nn.Module, optimizer: Optimizer) -> None:
    """Raise ValueError if an optimizer steps tensors that are no parameters of its module and would not be sent."""
    known = {id(parameter) for parameter in module.parameters()}
    strange = sum(id(parameter) not in known for group in optimizer.param_groups for parameter in group["params"])
    if strange:
        raise ValueError(
            f"model: {type(module).__name__}.configure_optimizers steps {strange} tensors that are no parameters of "
            "the module and would not be sent: make them nn.Parameter attributes"
        )


def _scheduler(item: Any) -> SchedulerStep:
    if not isinstance(item, Mapping):
        item = {"scheduler": item}
    scheduler = item["scheduler"]
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("ReduceLROnPlateau follows a validation metric, which a client's local training has not")
    interval = item.get("interval", "epoch")
    if interval not in ("epoch", "step"):
        raise ValueError(f"lr_scheduler interval={interval!r}: must be 'epoch' or 'step'")
    return SchedulerStep(scheduler, interval, item.get("frequency", 1))


def scale_learning_rates(optimizer: Optimizer, schedulers: list[SchedulerStep], factor: float) -> None:
    """Multiply all learning rates by a factor, including those that schedulers start from or lead to."""
    if factor == 1.0:
        return
    for group in optimizer.param_groups:
        for name in _LEARNING_RATES:
            if name in group:
                group[name] = group[name] * factor  # a tensor may be the module's own
    pending = [step.scheduler for step in schedulers]
    while pending:
        scheduler = pending.pop()
        for name in _OF_SCHEDULERS:
            rates = getattr(scheduler, name, 0.0)
            if rates:
                scaled = [rate * factor for rate in rates] if isinstance(rates, list) else rates * factor
                setattr(scheduler, name, scaled)
        pending.extend(getattr(scheduler, "_schedulers", []))


def optimizer_tensors(optimizer: Optimizer, prefix: str = OPTIMIZER) -> dict[str, Tensor]:
    """Copies of an optimizer's state on the CPU, named `<prefix><index of the parameter>/<name>`."""
    tensors = {}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                tensors[f"{prefix}{index}/{name}"] = tensor.detach().cpu().clone()
    return tensors


def restore_optimizer(optimizer: Optimizer, tensors: Tensors, prefix: str = OPTIMIZER) -> None:
    """Load a copy of the state from `optimizer_tensors` into an optimizer; its learning rates are not changed."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split("/", 1)
            state.setdefault(int(index), {})[key] = tensor.clone()
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
