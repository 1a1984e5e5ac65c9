"""The comparison of groups as curves: the metric against rounds, bytes, seconds and virtual seconds."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flrl.config import percent
from flrl.results.statistics import Spread

if TYPE_CHECKING:
    from flrl.results.comparing import Options
    from flrl.results.grouping import Group

# Okabe and Ito's colours, which the colour-blind can tell apart; lines differ by style and marker too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES, MARKERS = ("-", "--", "-.", ":"), ("o", "s", "^", "D", "v", "P", "X")
AXES = {
    "round": "round",
    "bytes": "MB sent and received by all clients",
    "seconds": "seconds",
    "virtual_seconds": "virtual seconds",
}


SPREAD = 10.0
"""Costs are on a logarithmic axis where one group's are more than so many times another's."""


def write(groups: Sequence["Group"], options: "Options", out: Path) -> None:
    """Write a figure for each of rounds, bytes, seconds and those of a virtual clock, where all runs have one.

    They are written into a folder, as PDF and PNG.
    """
    clocks = all("time/virtual_s" in run.metrics for group in groups for run in group.runs.values())
    for axis in (axis for axis in AXES if clocks or axis != "virtual_seconds"):
        figure = figure_of(groups, options, axis)
        for ending in ("pdf", "png"):
            metadata = {"CreationDate": None} if ending == "pdf" else None
            figure.savefig(out / f"by_{axis}.{ending}", dpi=150, metadata=metadata)


def figure_of(groups: Sequence["Group"], options: "Options", axis: str) -> Figure:
    """A line for each group's mean, with its 95 % interval, or from lowest to highest for two runs."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes: Axes = figure.subplots()
    looks = zip(itertools.cycle(COLOURS), itertools.cycle(STYLES), itertools.cycle(MARKERS), strict=False)
    ends = []
    for group, (colour, style, marker) in zip(groups, looks, strict=False):
        x, middle, low, high = curve(group, options, axis)
        if percent(options.metric):
            low, high = low.clip(0, 100), high.clip(0, 100)
        ends.append(x[-1])
        every = max(1, len(x) // 8)
        name = f"{group.name} ({len(group.runs)})" if len(group.runs) > 1 else group.name
        axes.plot(x, middle, style, color=colour, marker=marker, markevery=every, markersize=4, label=name)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    if options.target is not None:
        axes.axhline((100 if percent(options.metric) else 1) * options.target, color="0.5", linewidth=0.8)
    axes.set(xlabel=AXES[axis], ylabel=options.metric + (" (%)" if percent(options.metric) else ""))
    if axis == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    elif min(ends) > 0 and max(ends) > SPREAD * min(ends):
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def curve(group: "Group", options: "Options", axis: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Abscissa, mean, and the band's lower and upper end, at the rounds that all runs of a group have evaluated."""
    from flrl.results.comparing import costs

    scale = 100 if percent(options.metric) else 1
    values = pd.concat([run.metrics[options.metric] for run in group.runs.values()], axis=1).dropna() * scale
    if axis == "round":
        x = values.index.to_numpy(float)
    else:
        spent = pd.concat([costs(run.metrics)[axis] for run in group.runs.values()], axis=1).mean(axis=1)
        x = spent.loc[values.index].to_numpy(float) / (1e6 if axis == "bytes" else 1)
    spreads = [Spread.of(row.tolist()) for row in values.to_numpy()]
    middle = np.array([spread.mean for spread in spreads])
    if values.shape[1] < 3:
        return x, middle, values.min(axis=1).to_numpy(), values.max(axis=1).to_numpy()
    half = np.array([spread.half for spread in spreads])
    return x, middle, middle - half, middle + half
