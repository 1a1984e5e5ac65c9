"""Sources whose samples have other targets: class probabilities instead of classes, for distillation."""

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
from torch import Tensor

from flrl.data.sources import LABEL_KEYS, Source, TensorSource


def retargeted(source: Source, targets: Tensor) -> Source:
    """The samples of a source with other targets; inputs in memory are shared.

    Args:
        source: the samples.
        targets: one for each sample, `[len(source), ...]`.

    Raises:
        ValueError: their number is not that of the samples.
    """
    if len(targets) != len(source):
        raise ValueError(f"{len(source)} samples but {len(targets)} targets")
    if not isinstance(source, TensorSource):
        return _Retargeted(source, targets)
    other = copy(source)
    other.targets, other.labels = targets.to(source.inputs.device), None
    return other


class _Retargeted:
    """Batches of any source, each with its target exchanged."""

    labels: np.ndarray | None = None

    def __init__(self, source: Source, targets: Tensor) -> None:
        self._source, self._targets = source, targets

    def __len__(self) -> int:
        return len(self._source)

    def batches(self, indices: np.ndarray, batch_size: int, *, reuse: bool = False) -> Iterator[Any]:
        for number, batch in enumerate(self._source.batches(indices, batch_size, reuse=reuse)):
            chosen = indices[number * batch_size : (number + 1) * batch_size]
            yield _with_target(batch, self._targets[chosen.tolist()])

    def subset(self, indices: np.ndarray) -> Source:
        return _Retargeted(self._source.subset(indices), self._targets[indices.tolist()])


def _with_target(batch: Any, targets: Tensor) -> Any:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], targets
    key = next((key for key in LABEL_KEYS if key in batch), None) if isinstance(batch, dict) else None
    if key is None:
        raise ValueError(f"samples to be distilled on must be (inputs, class) or dicts with one of {LABEL_KEYS}")
    return {**batch, key: targets}
