"""What private training refuses: it would release something of the samples besides the noisy gradients."""

from typing import TYPE_CHECKING

import pytorch_lightning as pl
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from flrl.lightning.hooks import overridden
from flrl.lightning.transfer import TRANSFER_HOOKS
from flrl.transforms.base import Transform

if TYPE_CHECKING:
    from flrl.setup import Setup

_SEE_BATCHES = (*TRANSFER_HOOKS, "on_train_batch_start", "on_train_batch_end", "on_before_backward")


def check_module(module: pl.LightningModule) -> None:
    """Raise ValueError for layers that keep statistics of a batch, and hooks that see whole batches."""
    coupled = sorted({type(part).__name__ for part in module.modules() if _keeps_statistics(part)})
    if coupled:
        raise ValueError(
            f"trainer.private: {', '.join(coupled)} has statistics of samples, which are sent without noise: use "
            "GroupNorm, or LayerNorm"
        )
    hooks = [hook for hook in _SEE_BATCHES if overridden(module, hook)]
    if hooks:
        raise ValueError(
            f"trainer.private: {type(module).__name__} overrides {', '.join(hooks)}, which may mix the samples of a "
            "batch: change samples in the dataset or in training_step"
        )


def check_parts(setup: "Setup") -> None:
    """Raise ValueError for strategies, transforms and samplers that use samples besides private training."""
    strategy = setup.strategy
    name = type(strategy).__name__
    why = None
    if strategy.gradients or strategy.reads_samples:
        why = "releases losses, gradients or outputs of samples without noise, besides private steps"
    elif strategy.adjusts_loss:
        why = "changes the loss of whole batches, and steps are made of single samples' gradients"
    elif strategy.pools_samples:
        why = "pools the samples of clients, which are charged apart: use fedavg with partition.num_clients=1"
    elif strategy.trains_on_server or not strategy.sends_model:
        why = "exchanges predictions of models, which are released without noise"
    if why is not None:
        raise ValueError(f"trainer.private: strategy {name} {why}")
    measuring = [key for key, transform in setup.transforms.items() if type(transform).measure is not Transform.measure]
    if measuring:
        raise ValueError(f"trainer.private: strategy.transforms.{measuring[0]} measures samples, without noise")
    if "losses" in getattr(setup.sampler, "needs", ()):
        found = type(setup.sampler).__name__
        raise ValueError(f"trainer.private: strategy.sampler {found} chooses by losses, which have no noise")


def _keeps_statistics(part: nn.Module) -> bool:
    return isinstance(part, _BatchNorm) or (isinstance(part, _InstanceNorm) and part.track_running_stats)
