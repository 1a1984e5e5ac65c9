"""Calling the steps of a user's LightningModule: their arguments, their results, and attributes replaced meanwhile."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from flrl.lightning.hooks import overridden


def check_automatic(module: pl.LightningModule) -> None:
    """Raise ValueError unless the module has a `training_step` and uses automatic optimization."""
    if not overridden(module, "training_step"):
        raise ValueError(f"{type(module).__name__} has no training_step")
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization (automatic_optimization=False), which trainer=eager and "
            "trainer=lightning cannot combine with a strategy's hooks: return the loss from training_step instead"
        )


def step_caller(step: Callable[..., Any]) -> Callable[[Any, int], Any]:
    """A step method as a function of (batch, batch_idx), even if it takes only the batch.

    Raises:
        ValueError: it takes `dataloader_iter`.
    """
    function = getattr(step, "__func__", step)
    names = _arguments(function)[int(function is not step) :]
    if "dataloader_iter" in names:
        raise ValueError("steps that take `dataloader_iter` are not supported: take `batch` and `batch_idx`")
    return step if len(names) > 1 else lambda batch, _: step(batch)


@functools.lru_cache(maxsize=64)
def _arguments(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def loss_of(output: Any) -> Tensor | None:
    """The loss in a result of `training_step`: a tensor, a dict with `loss`, or None to skip the batch.

    Raises:
        ValueError: it is anything else.
    """
    loss = output["loss"] if isinstance(output, dict) else output
    if loss is not None and not isinstance(loss, Tensor):
        raise ValueError(f"training_step returned {type(loss).__name__}; it must return a tensor, a dict or None")
    return loss


def require_losses(found: int, skipped: int) -> None:
    """Raise ValueError if `training_step` skipped all batches of a client."""
    if skipped and not found:
        raise ValueError(
            f"training_step returned no loss for any of the client's {skipped} batches: nothing was trained"
        )


@contextlib.contextmanager
def replaced(module: pl.LightningModule, **attributes: Any) -> Iterator[None]:
    """Set attributes on the instance inside the block, hiding those of its class."""
    before = {name: vars(module)[name] for name in attributes if name in vars(module)}
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                object.__setattr__(module, name, before[name])
            else:
                object.__delattr__(module, name)
