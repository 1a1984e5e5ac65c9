"""Pictures of what an attack has found: truth beside reconstruction."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flrl.attacks.base import Finding, Inputs
from flrl.attacks.observe import Truth
from flrl.attacks.scoring import matched, unit

_MOST = 16
_COLUMNS = 8


def comparison_figure(finding: Finding, truth: Truth, inputs: Inputs, title: str) -> Figure | None:
    """The best pairs of true samples and reconstructions, the truth above; None if inputs are no images.

    Args:
        finding: with reconstructed inputs.
        truth: what the clients have trained on.
        inputs: what samples look like.
        title: of the picture.
    """
    if finding.inputs is None or not _is_image(inputs.shape) or not len(finding.inputs):
        return None
    rows, columns = matched(finding.inputs, truth.inputs, inputs)
    found, true = unit(finding.inputs, inputs)[rows], unit(truth.inputs, inputs)[columns]
    errors = (found - true).square().flatten(1).mean(1)
    best = errors.argsort(stable=True)[:_MOST].sort().values
    labels = None if truth.labels is None else truth.labels[columns]
    guessed = finding.labels
    guessed = guessed[rows] if guessed is not None and len(guessed) == len(finding.inputs) else None
    tops = ["" if labels is None else f"class {int(labels[i])}" for i in best]
    bottoms = [("" if guessed is None else f"class {int(guessed[i])}, ") + f"MSE {float(errors[i]):.1e}" for i in best]
    return _rows(true[best], found[best], tops, bottoms, title)


def grid_figure(pictures: Tensor, title: str) -> Figure | None:
    """Further images `[n, channels, height, width]` side by side, each on its own scale; None if they are no images."""
    if not _is_image(tuple(pictures.shape[1:])) or not len(pictures):
        return None
    shown = pictures.detach().cpu().double()[:_MOST]
    low, high = shown.flatten(1).min(1).values, shown.flatten(1).max(1).values
    span = (high - low).clamp(min=1e-12)
    each = (-1,) + (1,) * (shown.ndim - 1)
    shown = (shown - low.view(each)) / span.view(each)
    lines = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(1.3 * min(len(shown), _COLUMNS) + 0.4, 1.4 * lines + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(lines, min(len(shown), _COLUMNS), squeeze=False).ravel()
    for place, axis in enumerate(axes):
        axis.axis("off")
        if place < len(shown):
            _draw(axis, shown[place])
    return figure


def _rows(true: Tensor, found: Tensor, tops: Sequence[str], bottoms: Sequence[str], title: str) -> Figure:
    width = min(len(true), _COLUMNS)
    blocks = -(-len(true) // _COLUMNS)
    figure = Figure(figsize=(1.5 * max(width, 2) + 0.9, 3.7 * blocks + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(2 * blocks, width, squeeze=False)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    for place in range(len(true)):
        row, column = 2 * (place // _COLUMNS), place % _COLUMNS
        _draw(axes[row][column], true[place])
        _draw(axes[row + 1][column], found[place])
        axes[row][column].set_title(tops[place], fontsize=8, pad=3)
        axes[row + 1][column].set_xlabel(bottoms[place], fontsize=7, labelpad=3)
    for row in range(blocks):
        axes[2 * row][0].set_ylabel("truth", fontsize=9)
        axes[2 * row + 1][0].set_ylabel("reconstruction", fontsize=9)
    return figure


def _draw(axis: object, image: Tensor) -> None:
    shown = np.asarray(torch.nan_to_num(image).clamp(0, 1).movedim(0, -1) if image.ndim == 3 else image.clamp(0, 1))
    grey = shown.ndim == 2 or shown.shape[-1] == 1
    pixels = shown.squeeze(-1) if grey and shown.ndim == 3 else shown
    axis.imshow(pixels, cmap="gray" if grey else None, vmin=0, vmax=1, interpolation="nearest")  # type: ignore[attr-defined]


def _is_image(shape: Sequence[int]) -> bool:
    return (len(shape) == 3 and shape[0] in (1, 3)) or len(shape) == 2
