"""The classes of a dataset's samples, wherever the dataset has them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Subset

LABEL_KEYS = ("label", "labels", "target", "targets", "y")
"""Keys under which the class of a sample is searched, if samples are dicts."""


def labels_of(dataset: Dataset[Any], key: str | None = None) -> np.ndarray | None:
    """The classes of a dataset's samples: its `targets`, `labels` or `y`, else read from each sample.

    The class of a sample is its second part, or for a dict the first of `LABEL_KEYS` that it has.

    Args:
        dataset: a map-style dataset.
        key: key of the class in samples that are dicts; then nothing else is tried.

    Returns:
        int64 `[len]`, or None if classes are not one whole number per sample.

    Raises:
        ValueError: samples do not have the key.
    """
    if isinstance(dataset, Subset):
        inner = labels_of(dataset.dataset, key)
        return None if inner is None else inner[np.asarray(dataset.indices, dtype=np.int64)]
    names = (name for name in ("targets", "labels", "y") if getattr(dataset, name, None) is not None)
    found: Any = None if key else next((getattr(dataset, name) for name in names), None)
    if found is None:
        found = [_label_in(dataset[index], key) for index in range(len(dataset))]  # type: ignore[arg-type]
        if any(label is None for label in found):
            return None
    try:
        labels = np.asarray(found)
    except ValueError:  # ragged: not one number per sample
        return None
    if labels.ndim != 1 or len(labels) != len(dataset) or not np.issubdtype(labels.dtype, np.integer):  # type: ignore[arg-type]
        return None
    return labels.astype(np.int64)


def _label_in(sample: Any, key: str | None) -> Any:
    if isinstance(sample, Mapping):
        if key is not None and key not in sample:
            raise ValueError(f"label_key={key}: samples have the keys {', '.join(map(str, sample))}")
        return sample.get(next((name for name in LABEL_KEYS if name in sample), "") if key is None else key)
    if key is not None:
        raise ValueError(f"label_key={key}: samples are no dicts but of type {type(sample).__name__}")
    return sample[1] if isinstance(sample, tuple | list) and len(sample) > 1 else None
