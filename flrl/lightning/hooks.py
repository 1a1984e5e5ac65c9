"""Which hooks a LightningModule or LightningDataModule overrides."""

import functools
from typing import Any

# `lightning.pytorch` is a second copy of `pytorch_lightning`; modules of both are supported.
_CORES = ("pytorch_lightning.core.", "lightning.pytorch.core.")


BATCH_HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "optimizer_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "lr_scheduler_step",
)
"""Hooks around a batch that the eager loop calls."""
FIT_HOOKS = (
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
    "teardown",
)
"""Hooks around a client's training and its epochs that the eager loop calls."""


def overridden(module: object, hook: str) -> bool:
    """Whether a module's class or the instance itself overrides a hook of Lightning's base classes.

    Functions are compared, so that classes in Lightning's own package (`pytorch_lightning.demos`) can override too.
    """
    kind: Any = type(module)
    return hook in vars(module) or _overridden(kind, hook)


@functools.lru_cache(maxsize=4096)
def _overridden(kind: Any, hook: str) -> bool:
    method = getattr(kind, hook, None)
    if method is None:
        return False
    base = next((base for base in kind.__mro__ if base.__module__.startswith(_CORES)), None)
    return base is None or method is not getattr(base, hook, None)
