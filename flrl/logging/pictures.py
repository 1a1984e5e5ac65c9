"""Pictures of a federation."""

import numpy as np
from matplotlib.figure import Figure

MAX_ROWS = 100


def partition_figure(counts: np.ndarray) -> Figure:
    """A heat map of the numbers of samples by client and class.

    Args:
        counts: int64 `[num_clients, classes]`; of more than 100 clients, 100 at even distances are shown.
    """
    chosen = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), MAX_ROWS)).round().astype(int))
    height = min(8.0, 1.5 + 0.3 * len(chosen))
    figure = Figure(figsize=(6.0, height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(counts[chosen], aspect="auto", cmap="viridis", vmin=0)
    axes.set_xlabel("class")
    axes.set_ylabel("client")
    axes.set_xticks(range(counts.shape[1]) if counts.shape[1] <= 20 else [])
    step = max(1, len(chosen) // 20)
    axes.set_yticks(range(0, len(chosen), step), [str(client) for client in chosen[::step]])
    figure.colorbar(image, label="training samples")
    return figure


def confusion_figure(counts: np.ndarray) -> Figure:
    """A heat map of the shares of each class that are taken for which.

    Args:
        counts: samples by class and predicted class, int64 `[classes, classes]`.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(5.5, 5.0), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class")
    if len(counts) <= 20:
        axes.set_xticks(range(len(counts)))
        axes.set_yticks(range(len(counts)))
        for row, column in np.argwhere(counts):
            shade = "black" if shares[row, column] > 0.5 else "white"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=7, color=shade)
    figure.colorbar(image, label="share of the class")
    return figure
