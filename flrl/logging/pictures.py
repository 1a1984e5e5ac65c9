"""Pictures of a federation."""

import numpy as np
from matplotlib.figure import Figure

from flrl.data.pictures import partition_figure as partition_figure


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
