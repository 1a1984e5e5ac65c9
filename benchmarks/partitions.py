"""Draws all partitions of one dataset side by side, and what shifts make of one image: docs/partitions.png.

    python -m benchmarks.partitions --picture docs/partitions.png

Under each partition are the mean total variation distance of clients' classes to those of all, and the Gini coefficient
of sizes.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from flrl.data import FederatedData, partitions, shifts
from flrl.data.datasets import digits
from flrl.data.pictures import draw_bars
from flrl.data.statistics import partition_statistics

LAWS: dict[str, Any] = {
    "iid": partial(partitions.iid),
    "dirichlet, alpha=0.5": partial(partitions.dirichlet, alpha=0.5),
    "dirichlet_equal, alpha=1": partial(partitions.dirichlet_equal, alpha=1.0),
    "inner_dirichlet, alpha=0.1, sigma=0.5": partial(partitions.inner_dirichlet, alpha=0.1, sigma=0.5),
    "mixture of 3, alpha=0.3": partial(partitions.mixture, num_components=3, alpha=0.3, component_alpha=0.3),
    "shards, 2 a client": partial(partitions.shards, shards_per_client=2),
    "classes, 2 a client": partial(partitions.classes, classes_per_client=2),
    "quantity_skew, alpha=1": partial(partitions.quantity_skew, alpha=1.0),
    "quantity_lognormal, sigma=1": partial(partitions.quantity_lognormal, sigma=1.0),
    "quantity_power_law, exponent=1": partial(partitions.quantity_power_law, exponent=1.0),
    "blocks, share=0.5": partial(partitions.blocks, share=0.5),
    "consecutive": partitions.consecutive,
}
SHIFTS: dict[str, shifts.FeatureShift] = {
    "rotation": shifts.Rotation(low=-45, high=45),
    "noise": shifts.Noise(low=0.0, high=0.3),
    "blur": shifts.Blur(low=0.0, high=1.5),
    "contrast": shifts.Contrast(low=0.3, high=1.5),
}
_SHOWN = 5


def draw(path: Path, clients: int = 12) -> None:
    """Draw the partitions of scikit-learn's digits among so many clients, and shifts of the first digit."""
    splits = digits()
    figure = Figure(figsize=(11.0, 9.6))
    top, bottom = figure.subfigures(2, 1, height_ratios=(3.3, 1))
    top.subplots_adjust(left=0.05, right=0.99, top=0.95, bottom=0.05, hspace=0.42, wspace=0.22)
    for axes, (name, law) in zip(top.subplots(3, 4).flat, LAWS.items(), strict=True):
        data = FederatedData(splits, partial(law, num_clients=clients), seed=0)
        counts = data.label_counts()
        assert counts is not None
        draw_bars(axes, counts)
        found = partition_statistics(data)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel(f"distance {found['label_distance_mean']:.2f}, Gini {found['size_gini']:.2f}", fontsize=7)
        axes.tick_params(labelsize=6)
    image = splits.train.subset(np.arange(1)).inputs.repeat(_SHOWN, 1, 1, 1)  # type: ignore[attr-defined]
    rows = bottom.subplots(2, 2 * _SHOWN)
    bottom.subplots_adjust(left=0.05, right=0.99, top=0.88, bottom=0.02, hspace=0.35, wspace=0.15)
    for number, (name, shift) in enumerate(SHIFTS.items()):
        amounts = torch.linspace(shift.low, shift.high, _SHOWN)
        shown = shift.inputs(image, amounts, (np.random.default_rng(seed) for seed in range(_SHOWN)))
        first = _SHOWN * (number % 2)
        for place, (picture, amount) in enumerate(zip(shown, amounts, strict=True)):
            axes = rows[number // 2, first + place]
            axes.imshow(picture[0].numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.set_title(f"{name} {amount:.2g}" if place == 0 else f"{amount:.2g}", fontsize=8)
            axes.set_axis_off()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, required=True, help="where it goes")
    parser.add_argument("--clients", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(1)
    draw(given.picture, given.clients)
