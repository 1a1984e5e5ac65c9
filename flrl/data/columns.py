"""Datasets whose samples are dicts, such as those of Hugging Face's `datasets`, as tensors in memory."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from flrl.data.sources import Splits, TensorSource


class Rows(Protocol):
    """What is needed of a dataset: its length, and samples by their number as dicts."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """One sample."""


def from_columns(
    *,
    train: Rows,
    test: Rows,
    inputs: str,
    target: str,
    group: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """Two datasets of dicts, of which one column is the input and another the target; both are read into memory.

    Args:
        train: training samples, such as `datasets.load_dataset(..., split="train")`.
        test: central test samples.
        inputs: column of the inputs: images (of PIL, or arrays `[height, width(, channels)]` of bytes), arrays or lists
            of numbers, all of one shape. Images become uint8 `[channels, height, width]`, other numbers float32.
        target: column of the targets: whole numbers are classes, others are for regression.
        group: column of the training samples' natural owners, texts or numbers, for `partition=natural`; null for none.
        mean: mean of the pixels in [0, 1], one for each channel.
        std: standard deviation of the pixels, one for each channel.

    Raises:
        ValueError: there is no such column, or inputs differ in shape.
    """
    sources, groups = [], None
    for name, rows in (("train", train), ("test", test)):
        wanted = [inputs, target, *([group] if group is not None and name == "train" else [])]
        columns: list[list[Any]] = [[] for _ in wanted]
        for number in range(len(rows)):
            row = rows[number]
            for key, column in zip(wanted, columns, strict=True):
                if key not in row:
                    raise ValueError(
                        f"dataset.{name}: there is no column {key!r}; there are {', '.join(map(str, row))}"
                    )
                column.append(_array(row[key]) if key == inputs else row[key])
        if len({array.shape for array in columns[0]}) > 1:
            raise ValueError(f"dataset.inputs={inputs}: samples of {name} differ in shape")
        x = np.stack(columns[0]) if columns[0] else np.empty((0, 1), np.float32)
        sources.append(TensorSource(torch.from_numpy(x), _targets(columns[1]), mean=mean, std=std))
        if len(wanted) == 3:
            groups = np.unique(np.asarray(columns[2]), return_inverse=True)[1].astype(np.int64)
    return Splits(sources[0], sources[1], groups=groups)


def _array(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype != np.uint8:
        return array.astype(np.float32)
    if array.ndim == 2:
        return array[None]
    return np.ascontiguousarray(array.transpose(2, 0, 1)) if array.ndim == 3 else array


def _targets(values: Sequence[Any]) -> torch.Tensor:
    array = np.asarray(values)
    return torch.from_numpy(array.astype(np.int64 if np.issubdtype(array.dtype, np.integer) else np.float32))
