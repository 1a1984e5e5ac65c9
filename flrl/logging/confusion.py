"""How often which class of the central test set is taken for which, by the final global model."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.bound_model import BoundModel
from flrl.data import FederatedData
from flrl.lightning.hooks import overridden
from flrl.lightning.modes import evaluating
from flrl.lightning.stand_in import TrainerStandIn, attached
from flrl.lightning.steps import replaced
from flrl.lightning.transfer import to_device
from flrl.seeding import isolated_randomness

log = logging.getLogger(__name__)
_BATCH_SIZE = 500


def confusion(model: BoundModel, data: FederatedData, vector: Tensor) -> np.ndarray | None:
    """The number of test samples by class and predicted class, int64 `[classes, classes]`; None where there is none.

    There is none without a global model, without classes, or where the module's `predict_step`, else its `forward`,
    does not give a score for each class; the last is said in the log.

    Args:
        model: the controller's.
        data: with the central test samples.
        vector: the global model, `[layout.size]`.
    """
    labels = data.splits.test.labels
    if labels is None or not len(labels) or model.layout.personal or not model.layout.size:
        return None
    model.load(vector)
    try:
        predicted = np.concatenate([*_predicted(model, data)])
    except Exception as error:  # of the user's module, which need not be a classifier
        log.info("no confusion matrix: %s: %s", type(error).__name__, error)
        return None
    finally:
        model.load(vector)
    classes = max(int(labels.max()), int(predicted.max())) + 1
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _predicted(model: BoundModel, data: FederatedData) -> list[np.ndarray]:
    module: Any = model.module
    device, found = model.local.device, []
    ask = module.predict_step if overridden(module, "predict_step") else lambda batch, _: module(batch[0])
    quiet = replaced(module, log=_nothing, log_dict=_nothing)
    trainer = attached(module, TrainerStandIn(1, 1, engine="evaluation"))
    with isolated_randomness(0, device), torch.no_grad(), evaluating(module), quiet, trainer:
        test = data.splits.test
        for number, batch in enumerate(test.batches(np.arange(len(test)), _BATCH_SIZE)):
            scores = ask(to_device(module, batch, device), number)
            if not isinstance(scores, Tensor) or scores.ndim != 2 or not scores.is_floating_point():
                raise ValueError("the model gives no class scores, [batch, classes]")
            found.append(scores.argmax(1).cpu().numpy())
    return found


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Log nothing."""
