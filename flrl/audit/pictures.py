"""Heat maps with a number in each cell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One heat map.

    Attributes:
        title: above it.
        rows: names of its rows.
        columns: its columns, each as the group that it belongs to and its name; a group's columns lie side by side.
        values: by row and column; None for a cell that is not known.
        low: the value at the dark end of the colours.
        high: the value at the bright end.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[tuple[str, str]]
    values: Sequence[Sequence[float | None]]
    low: float = 0.0
    high: float = 1.0


def heat_maps(maps: Sequence[HeatMap], title: str) -> Figure:
    """A figure of heat maps, one below the other."""
    heights = [1.3 + 0.32 * len(one.rows) for one in maps]
    widest = max(len(one.columns) for one in maps)
    figure = Figure(figsize=(3.2 + 0.5 * max(widest, 10), 0.5 + sum(heights)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, one in zip(np.atleast_1d(figure.subplots(len(maps), 1, height_ratios=heights)), maps, strict=True):
        _draw(figure, axes, one)
    return figure


def _draw(figure: Figure, axes: Axes, one: HeatMap) -> None:
    values = np.array([[np.nan if value is None else value for value in row] for row in one.values], dtype=float)
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=one.low, vmax=one.high)
    axes.set_title(one.title, loc="left", fontsize=10)
    axes.set_yticks(range(len(one.rows)), one.rows)
    axes.set_xticks(range(len(one.columns)), [column for _, column in one.columns])
    groups = [group for group, _ in one.columns]
    for place, group in enumerate(groups):
        first = place == 0 or groups[place - 1] != group
        if first and place:
            axes.axvline(place - 0.5, color="white", linewidth=2)
        if first and group:
            last = place + groups.count(group) - 1
            axes.annotate(group, ((place + last) / 2, len(one.rows) - 0.5), (0, -24), textcoords="offset points",
                          ha="center", va="top", annotation_clip=False)  # fmt: skip
    middle = (one.low + one.high) / 2
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "-", ha="center", va="center", color="black", fontsize=8)
        else:
            colour = "white" if value < middle else "black"
            axes.text(column, row, f"{100 * value:z.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.tick_params(length=0)
    axes.set_xlabel(" ", labelpad=14)
    figure.colorbar(image, ax=axes, format=lambda value, _: f"{100 * value:.0f} %", pad=0.01)
