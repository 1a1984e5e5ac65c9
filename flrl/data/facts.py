"""The facts of a dataset that determine a model's size: the shape of its samples and the number of its classes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.data.sources import LABEL_KEYS, Source, Splits, TensorSource


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of a dataset.

    Attributes:
        input_shape: shape of one sample's inputs; None if samples are no tensors.
        num_classes: the dataset's own number, else the largest class of all samples, plus one; None without classes.
    """

    input_shape: tuple[int, ...] | None
    num_classes: int | None


def facts_of(splits: Splits) -> Facts:
    """Read the facts of a dataset from its first training sample and the classes of all samples.

    Example:
        >>> import torch
        >>> from flrl.data import TensorSource
        >>> source = TensorSource(torch.zeros(3, 1, 8, 8), torch.tensor([0, 4, 2]))
        >>> facts_of(Splits(source, source))
        Facts(input_shape=(1, 8, 8), num_classes=5)
    """
    labels = [source.labels for source in (splits.train, splits.test) if source.labels is not None]
    known = splits.train.labels is not None
    classes = max((int(part.max()) + 1 for part in labels if len(part)), default=None) if known else None
    return Facts(_shape_in(splits.train), classes if splits.num_classes is None else splits.num_classes)


def bounds_of(source: Source) -> tuple[Tensor, Tensor] | None:
    """The smallest and the largest value that inputs of pixels can have, after normalisation, `[channels, 1, ...]`.

    None where inputs are no pixels, so that only samples could tell.

    Example:
        >>> import torch
        >>> from flrl.data import TensorSource
        >>> pixels = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        >>> bounds_of(TensorSource(pixels, torch.tensor([0, 4, 2]), mean=[0.5], std=[0.25]))
        (tensor([[[-2.]]]), tensor([[[2.]]]))
    """
    if not isinstance(source, TensorSource) or source.inputs.dtype != torch.uint8 or not len(source):
        return None
    extremes = source.subset(np.zeros(2, np.int64))
    extremes.inputs[0], extremes.inputs[1] = 0, 255
    inputs, _ = next(extremes.batches(np.arange(2), 2))
    one = (slice(None), *(slice(1) for _ in inputs.shape[2:]))
    return inputs[0][one], inputs[1][one]


def _shape_in(source: Source) -> tuple[int, ...] | None:
    if len(source) == 0:
        return None
    if isinstance(source, TensorSource):
        return tuple(source.inputs.shape[1:])
    batch: Any = next(iter(source.batches(np.zeros(1, np.int64), 1)))
    if isinstance(batch, Mapping):
        inputs = [value for key, value in batch.items() if key not in LABEL_KEYS and hasattr(value, "shape")]
        batch = inputs if len(inputs) == 1 else ()
    first = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    shape = getattr(first, "shape", None)
    return None if shape is None else tuple(int(size) for size in shape[1:])
