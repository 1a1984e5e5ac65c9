"""The figures of the privacy audit: lower bounds below upper ones, and ROC curves."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from flrl.audit.audited import GUESSES, RATES, UPPER, Curve, Row
from flrl.audit.table import distinct

_LOWER = {(GUESSES, "client"): "o", (GUESSES, "sample"): "s", (RATES, "client"): "^", (RATES, "sample"): "v"}
_LEAST = 1e-3


def bounds_figure(rows: Sequence[Row]) -> Figure | None:
    """For each setting the stated epsilon as a bar, and the lower bounds below it; None if no row has an epsilon."""
    shown = [row for row in rows if row.get("number") == "epsilon" and row.get("value") is not None]
    if not shown:
        return None
    settings = distinct(rows, "setting")
    figure = Figure(figsize=(2.5 + 1.4 * max(2, len(settings)), 4), layout="constrained")
    axes = figure.subplots()
    upper = {settings.index(row["setting"]): row["value"] for row in shown if row["part"] == UPPER}
    if upper:
        axes.hlines([*upper.values()], [x - 0.35 for x in upper], [x + 0.35 for x in upper], color="black", label=UPPER)
    lower = [row for row in shown if row["part"] != UPPER]
    for place, ((part, unit), marker) in enumerate(_LOWER.items()):
        own = [row for row in lower if (row["part"], row["unit"]) == (part, unit)]
        if not own:
            continue
        at = [settings.index(row["setting"]) + (place - 1.5) * 0.12 for row in own]
        values, colour = [row["value"] for row in own], f"C{place}"
        axes.vlines(at, 0, values, color=colour, linewidth=1)
        axes.plot(at, values, marker, color=colour, label=f"{part}, {unit}s")
        for x, row in zip(at, own, strict=True):
            if str(row["verdict"]).startswith("VIOLATION"):
                axes.plot([x], [row["value"]], "x", color="red", markersize=14)
    axes.set_xticks(range(len(settings)), settings, fontsize=8)
    axes.set_xlim(-0.5, len(settings) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("epsilon")
    sure = sorted({f"{100 * row['confidence']:g} %" for row in lower})
    at_delta = ", ".join(sorted({f"{row['delta']:g}" for row in shown}))
    axes.set_title(f"lower bounds at {' and '.join(sure) or '-'} confidence, delta {at_delta}", fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def roc_figure(curves: Sequence[Curve]) -> Figure | None:
    """A panel for each setting, a curve for each attack, both axes logarithmic; None without a curve."""
    if not curves:
        return None
    settings = list(dict.fromkeys(curve.setting for curve in curves))
    columns = min(3, len(settings))
    lines = -(-len(settings) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(settings) :]:
        axes.set_visible(False)
    for axes, setting in zip(panels, settings, strict=False):
        for curve in curves:
            if curve.setting == setting:
                axes.plot(np.maximum(curve.false, _LEAST), np.maximum(curve.true, _LEAST), label=curve.name)
        axes.plot([_LEAST, 1], [_LEAST, 1], color="grey", linewidth=0.8, linestyle=":")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("false positive rate", fontsize=8)
        axes.set_ylabel("true positive rate", fontsize=8)
        axes.set_title(setting, fontsize=9)
        axes.legend(fontsize=7, frameon=False, loc="lower right")
    return figure
