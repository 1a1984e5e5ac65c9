"""The plot of `benchmarks.scale`: time and memory of a round against population and cohort."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

MEBIBYTE = 2**20
STYLES = {"fedavg": ("FedAvg", "tab:blue", "o"), "scaffold": ("SCAFFOLD, with client memory", "tab:orange", "s")}
Run = Mapping[str, Any]


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Two columns (against population, against cohort) of two rows (seconds, MiB)."""
    runs = [run for run in report["points"] if run["partition"] == "iid"]
    figure = Figure(figsize=(10.0, 6.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, name in enumerate(("population", "cohort")):
        other = "cohort" if name == "population" else "population"
        fixed = 100 if name == "population" else 10**5
        for row, quantity in enumerate((seconds, mebibytes)):
            for strategy in STYLES:
                chosen = [run for run in runs if run["strategy"] == strategy and run[other] == fixed]
                quantity(axes[row, column], sorted(chosen, key=lambda run: run[name]), name, strategy)
        axes[0, column].set_title(f"against the {name}, at a {other} of {fixed:,}", fontsize=11)
        axes[1, column].set_xlabel(f"{name} (clients)")
    axes[0, 0].set_ylabel("processor time per round (s)")
    axes[1, 0].set_ylabel("peak memory of the process (MiB)")
    axes[1, 0].set_ylim(0, None)
    for axis in axes.flat:
        axis.set_xscale("log")
        axis.grid(True, which="major", alpha=0.3)
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    for axis in axes[0]:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for axis in axes[0]:
        axis.legend(loc="upper left", fontsize=9)
    axes[1, 0].legend(loc="lower left", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def seconds(axis: Axes, runs: list[Run], name: str, strategy: str) -> None:
    """A line through the rounds of a strategy."""
    label, colour, marker = STYLES[strategy]
    axis.plot([r[name] for r in runs], [r["round_cpu_s"] for r in runs], color=colour, marker=marker, label=label)
    if strategy == "fedavg" and name == "cohort":
        one = runs[-1]["round_cpu_s"] / runs[-1]["cohort"]
        axis.plot([r[name] for r in runs], [one * r[name] for r in runs], color="grey", ls=":", label="proportional")


def mebibytes(axis: Axes, runs: list[Run], name: str, strategy: str) -> None:
    """A line through the peaks of a strategy; once, what had been held before the first round, and by the imports."""
    label, colour, marker = STYLES[strategy]
    numbers = [r[name] for r in runs]
    axis.plot(numbers, [r["bytes"]["peak"] / MEBIBYTE for r in runs], color=colour, marker=marker, label=label)
    if strategy == "fedavg":
        before = [r["bytes"]["start-up peak"] / MEBIBYTE for r in runs]
        axis.plot(numbers, before, color="black", ls="--", lw=1, label="before the first round")
        imports = [r["bytes"]["imports"] / MEBIBYTE for r in runs]
        data = [held + r["dataset_bytes"] / MEBIBYTE for held, r in zip(imports, runs, strict=True)]
        axis.fill_between(numbers, imports, data, color="tab:green", alpha=0.5, lw=0, label="dataset")
        axis.fill_between(numbers, imports, color="grey", alpha=0.15, lw=0, label="imports (torch, Lightning, ...)")
