"""A picture of a partition: who has how many samples of which class."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flrl.data.federated import FederatedData

MAX_CLIENTS = 100
"""So many clients have a bar at most."""
_MAX_LAYERS = 20
_BINS = 20


def partition_figure(counts: np.ndarray, sizes: np.ndarray | None = None) -> Figure:
    """A bar for each client, by class, and a histogram of sizes.

    Args:
        counts: training samples by client and class, int64 `[clients, classes]`; of more than 100 clients, the first
            100 are drawn, of more than 20 classes, groups of neighbouring ones.
        sizes: training samples of all clients, int64 `[num_clients]`, if these are more.
    """
    sizes = counts.sum(axis=1) if sizes is None else sizes
    figure = Figure(figsize=(8.0, 3.6))
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.14, top=0.91, wspace=0.28)
    draw_bars(left, counts[:MAX_CLIENTS])
    more = f", the first {MAX_CLIENTS} of {len(sizes)}" if len(sizes) > MAX_CLIENTS else ""
    left.set_xlabel(f"client{more}")
    left.set_ylabel("training samples")
    right.hist(sizes, bins=_BINS, color="0.5")
    right.set_xlabel("training samples")
    right.set_ylabel("clients")
    if 1 < counts.shape[1] <= 10:
        figure.legend(title=None, loc="upper left", ncols=counts.shape[1], fontsize=7, frameon=False, handlelength=1)
    return figure


def draw_bars(axes: Axes, counts: np.ndarray) -> None:
    """Draw a bar for each client, by class; arguments as for `partition_figure`."""
    groups = np.array_split(counts, min(_MAX_LAYERS, counts.shape[1]), axis=1)
    colours = colormaps["tab10" if len(groups) <= 10 else "tab20"]
    edges = np.arange(len(counts) + 1) - 0.5
    below = np.zeros(len(counts))
    for number, group in enumerate(groups):
        above = below + group.sum(axis=1)
        axes.stairs(above, edges, baseline=below, fill=True, color=colours(number), label=str(number))
        below = above
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, None)


def save_partition(data: FederatedData, path: Path) -> None:
    """Write the picture of a federation's partition, of sizes alone where classes are not known."""
    few = range(min(MAX_CLIENTS, data.num_clients))
    counts = data.label_counts(few)
    figure = partition_figure(data.sizes[few.start : few.stop, None] if counts is None else counts, data.sizes)
    figure.savefig(path, dpi=90)
