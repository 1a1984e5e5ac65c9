"""Moving a batch to the model's device with the module's own transfer hooks."""

from typing import Any

import pytorch_lightning as pl
import torch

from flrl.lightning.hooks import overridden

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def transfers(module: pl.LightningModule, device: torch.device) -> bool:
    """Whether `to_device` would do anything."""
    return device.type != "cpu" or any(overridden(module, hook) for hook in TRANSFER_HOOKS)


def to_device(module: pl.LightningModule, batch: Any, device: torch.device) -> Any:
    """Move a batch to the device with the module's own transfer hooks."""
    if overridden(module, "on_before_batch_transfer"):
        batch = module.on_before_batch_transfer(batch, 0)
    if device.type != "cpu" or overridden(module, "transfer_batch_to_device"):
        batch = module.transfer_batch_to_device(batch, device, 0)
    if overridden(module, "on_after_batch_transfer"):
        batch = module.on_after_batch_transfer(batch, 0)
    return batch
