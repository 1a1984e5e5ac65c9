"""Datasets of dicts as tensors: images, numbers, owners."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flrl.data import from_columns
from tests.tiny_files import pixels

COLOURS = pixels(2, 5, 4, 3)


def rows(*inputs: Any, **columns: list[Any]) -> list[dict[str, Any]]:
    return [{"x": x, **{name: values[i] for name, values in columns.items()}} for i, x in enumerate(inputs)]


def test_images_become_bytes_with_channels_first() -> None:
    train = rows(*map(Image.fromarray, COLOURS), digit=[3, 1], writer=["zoe", "al"])
    splits = from_columns(train=train, test=train[:1], inputs="x", target="digit", group="writer")
    assert splits.train.inputs.dtype == torch.uint8
    assert splits.train.inputs.tolist() == COLOURS.transpose(0, 3, 1, 2).tolist()
    assert (splits.train.labels.tolist(), splits.groups.tolist()) == ([3, 1], [1, 0])
    grey = from_columns(train=rows(COLOURS[0, :, :, 0], y=[0]), test=[], inputs="x", target="y")
    assert (grey.train.inputs.shape, len(grey.test), grey.groups) == ((1, 1, 5, 4), 0, None)


def test_numbers_become_float32() -> None:
    train = rows([1, 2], [3, 4.5], y=[0.25, np.float64(2)])
    splits = from_columns(train=train, test=train, inputs="x", target="y")
    assert splits.train.inputs.tolist() == [[1, 2], [3, 4.5]]
    assert (splits.train.targets.tolist(), splits.train.labels) == ([0.25, 2.0], None)
    assert (splits.train.inputs.dtype, splits.train.targets.dtype) == (torch.float32, torch.float32)


def test_what_is_refused() -> None:
    train = rows([1, 2], [3], y=[0, 1])
    with pytest.raises(ValueError, match=r"^dataset\.inputs=x: samples of train differ in shape$"):
        from_columns(train=train, test=train, inputs="x", target="y")
    with pytest.raises(ValueError, match=r"^dataset\.train: there is no column 'z'; there are x, y$"):
        from_columns(train=train, test=train, inputs="x", target="z")
