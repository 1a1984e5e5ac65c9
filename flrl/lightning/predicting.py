"""What a module says of samples outside of training and testing: its outputs, and the classes it takes them for."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from flrl.bound_model import BoundModel
from flrl.data.sources import Source
from flrl.lightning.hooks import overridden
from flrl.lightning.modes import evaluating
from flrl.lightning.stand_in import TrainerStandIn, attached
from flrl.lightning.steps import replaced, step_caller
from flrl.lightning.transfer import to_device
from flrl.seeding import isolated_randomness


def outputs_of(module: pl.LightningModule, batch: Any) -> Tensor:
    """What the module's `predict_step`, else its `forward`, gives for a batch or for its inputs alone."""
    if overridden(module, "predict_step"):
        output: Tensor = step_caller(module.predict_step)(batch, 0)
    else:
        output = module(batch[0] if isinstance(batch, tuple | list) else batch)
    return output


def classes_of(model: BoundModel, source: Source, indices: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """The class that a model takes each sample for, int64 `[samples of a batch]`, a batch at a time.

    Nothing is logged, and the random state is restored.

    Raises:
        ValueError: the outputs are not class scores, `[batch, classes]`.
    """
    module: Any = model.module
    device = model.local.device
    quiet = replaced(module, log=_nothing, log_dict=_nothing)
    trainer = attached(module, TrainerStandIn(1, 1, engine="evaluation"))
    with isolated_randomness(0, device), torch.no_grad(), evaluating(module), quiet, trainer:
        for batch in source.batches(indices, batch_size):
            scores = outputs_of(module, to_device(module, batch, device))
            if not isinstance(scores, Tensor) or scores.ndim != 2 or not scores.is_floating_point():
                raise ValueError("the module's forward, or predict_step, gives no class scores, [batch, classes]")
            yield scores.argmax(dim=1).cpu().numpy()


def _nothing(*args: Any, **options: Any) -> None:
    pass
