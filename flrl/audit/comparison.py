"""The comparison of strategies: a sweep over strategies, partitions and seeds, as table, picture and page."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flrl.audit.table import Row, SweepTable, distinct, finished_jobs, some, spread_of
from flrl.sweeps import write_csv

TABLE, PICTURE, PAGE = "comparison.csv", "comparison.png", "comparison.md"
COMPARED = {
    "test/accuracy": "global model, test set",
    "clients/global/accuracy_mean": "global model, clients",
    "clients/personal/accuracy_mean": "personal models, clients",
    "clients/finetuned/accuracy_mean": "fine-tuned models, clients",
}
"""The compared metrics, and what they are called."""


class Comparison(SweepTable):
    """A Hydra callback that writes `comparison.csv` as jobs finish, and the picture and the page after the last one."""

    table = TABLE

    def rows(self, sweep: Path) -> list[Row]:
        """See `rows_of`."""
        return rows_of(sweep)

    def finish(self, sweep: Path) -> None:
        """See `compare`."""
        compare(sweep)


def compare(sweep: Path) -> None:
    """Write the table, the picture and the page of the finished jobs in a sweep's folder, and print where they are.

    Raises:
        ValueError: no job has finished there.
    """
    rows = some(rows_of(sweep), sweep)
    write_csv(sweep / TABLE, rows)
    figure_of(rows).savefig(sweep / PICTURE, dpi=150)
    (sweep / PAGE).write_text(page_of(rows))
    print(f"{sweep / TABLE}\n{sweep / PICTURE}\n{sweep / PAGE}")


def rows_of(sweep: Path) -> list[Row]:
    """A row for each finished job: strategy, partition, seed, and the last numbers of the compared metrics."""
    rows = []
    for folder, job in finished_jobs(sweep):
        choices, partition = job["choices"], job["config"]["partition"]
        alpha = f"({partition['alpha']:g})" if "alpha" in partition else ""
        row = {
            "job": folder.relative_to(sweep).as_posix(),
            "strategy": choices.get("strategy", "fedavg"),
            "partition": choices.get("partition", "iid") + alpha,
            "seed": job["seed"],
            "rounds": job["rounds"],
        }
        numbers = {name: job["metrics"][name] for name in COMPARED if job["metrics"].get(name) is not None}
        rows.append({**row, **numbers, "seconds": job["wall_time_s"], "digest": job["digest"]})
    return rows


def shown_of(rows: Sequence[Row]) -> list[str]:
    """The compared metrics that any of the rows has."""
    return [name for name in COMPARED if any(row.get(name) is not None for row in rows)]


def page_of(rows: Sequence[Row]) -> str:
    """Markdown: a table for each partition, a row for each strategy, mean ± standard deviation over seeds in %."""
    metrics = shown_of(rows)
    parts = []
    for partition in distinct(rows, "partition"):
        own = [row for row in rows if row["partition"] == partition]
        seeds, rounds = (len(distinct(own, "seed")), max(distinct(own, "rounds")))
        lines = [
            f"### {partition}, {rounds} rounds, {seeds} seed{'s' * (seeds != 1)}, accuracy in %",
            "",
            "| strategy | " + " | ".join(COMPARED[name] for name in metrics) + " | s a run |",
            "|---|" + "---:|" * (len(metrics) + 1),
        ]
        for strategy in distinct(own, "strategy"):
            spreads = [spread_of(own, name, strategy=strategy) for name in metrics]
            cells = ["" if s is None else f"{100 * s[0]:.1f} ± {100 * s[1]:.1f}" for s in spreads]
            time = spread_of(own, "seconds", strategy=strategy)
            lines.append(f"| `{strategy}` | {' | '.join(cells)} | {'' if time is None else f'{time[0]:.0f}'} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def figure_of(rows: Sequence[Row]) -> Figure:
    """Bars with the standard deviation: a panel for each partition, a group for each strategy, a bar a metric."""
    partitions, strategies = distinct(rows, "partition"), distinct(rows, "strategy")
    figure = Figure(figsize=(2 + 0.75 * max(len(strategies), 5), 0.6 + 2.9 * len(partitions)), layout="constrained")
    for axes, partition in zip(np.atleast_1d(figure.subplots(len(partitions), 1)), partitions, strict=True):
        _draw(axes, [row for row in rows if row["partition"] == partition], strategies, shown_of(rows))
        axes.set_title(partition, loc="left", fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=8, frameon=False)
    return figure


def _draw(axes: Axes, rows: Sequence[Row], strategies: Sequence[str], metrics: Sequence[str]) -> None:
    width = 0.8 / max(1, len(metrics))
    for place, metric in enumerate(metrics):
        found = {x: spread_of(rows, metric, strategy=strategy) for x, strategy in enumerate(strategies)}
        spreads = {x: spread for x, spread in found.items() if spread is not None}
        at = [x + (place - (len(metrics) - 1) / 2) * width for x in spreads]
        means, errors = ([100 * spread[i] for spread in spreads.values()] for i in (0, 1))
        axes.bar(at, means, width, yerr=errors, label=COMPARED[metric], capsize=2, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(strategies)), strategies, fontsize=8, rotation=20)
    axes.set_ylabel("accuracy, %", fontsize=8)
    axes.set_ylim(0, 100)
    axes.grid(axis="y", linewidth=0.4)
    axes.set_axisbelow(True)
