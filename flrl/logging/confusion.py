"""How often which class of the central test set is taken for which, by the final global model."""

import logging

import numpy as np
from torch import Tensor

from flrl.bound_model import BoundModel
from flrl.data import FederatedData
from flrl.lightning.predicting import classes_of

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
        test = data.splits.test
        predicted = np.concatenate([*classes_of(model, test, np.arange(len(test)), _BATCH_SIZE)])
    except Exception as error:  # of the user's module, which need not be a classifier
        log.info("no confusion matrix: %s: %s", type(error).__name__, error)
        return None
    finally:
        model.load(vector)
    classes = max(int(labels.max()), int(predicted.max())) + 1
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
