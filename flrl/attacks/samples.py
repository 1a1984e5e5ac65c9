"""Samples in memory, as a module is given them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.data import TensorSource
from flrl.data.sources import Source

_BATCH = 512


def gathered(source: Source, indices: np.ndarray) -> TensorSource:
    """Some samples in memory, on the CPU, as the module is given them.

    Raises:
        ValueError: samples are no pairs of tensors.
    """
    some = indices if len(indices) else np.zeros(1, np.int64)  # their shapes, if there are none
    parts = list(pairs(source, some))
    inputs, targets = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return TensorSource(inputs[: len(indices)], targets[: len(indices)])


def pairs(source: Source, indices: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of inputs and targets, on the CPU.

    Raises:
        ValueError: samples are no pairs of tensors.
    """
    for batch in source.batches(indices, _BATCH):
        pair: Sequence[Any] = batch if isinstance(batch, tuple | list) else ()
        if len(pair) != 2 or not all(isinstance(part, Tensor) for part in pair):
            raise ValueError(
                f"attacks need samples that are pairs of tensors (inputs, targets), not {type(batch).__name__}"
            )
        yield pair[0].detach().cpu().clone(), pair[1].detach().cpu().clone()


def joined(first: TensorSource, second: TensorSource) -> TensorSource:
    """The samples of two results of `gathered`, those of the first one first."""
    return TensorSource(torch.cat([first.inputs, second.inputs]), torch.cat([first.targets, second.targets]))
