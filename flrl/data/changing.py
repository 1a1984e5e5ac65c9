"""Samples of a dataset with another label, or with changed inputs."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flrl.data.sources import LABEL_KEYS


def with_label(sample: Any, label: int) -> Any:
    """A sample, a tuple or a dict with one of `LABEL_KEYS`, of another class; ValueError if it has no such key."""
    if isinstance(sample, Mapping):
        key = next((name for name in LABEL_KEYS if name in sample), None)
        if key is None:
            raise ValueError(
                f"samples have the keys {', '.join(map(str, sample))}, and none of {', '.join(LABEL_KEYS)}"
            )
        return {**sample, key: torch.full_like(sample[key], label) if isinstance(sample[key], Tensor) else label}
    inputs, old, *rest = sample
    return (inputs, torch.full_like(old, label) if isinstance(old, Tensor) else label, *rest)


def with_input(sample: Any, change: Callable[[Tensor], Tensor], *, who: str) -> Any:
    """A sample, a tuple that begins with a tensor, whose inputs have been changed.

    Args:
        sample: the sample.
        change: changes inputs `[1, ...]`.
        who: what the error message begins with.

    Raises:
        ValueError: it is no such tuple.
    """
    if isinstance(sample, tuple | list) and isinstance(sample[0], Tensor):
        return (change(sample[0][None])[0], *sample[1:])
    raise ValueError(f"{who} needs samples of an image tensor and a class, not {type(sample).__name__}")
