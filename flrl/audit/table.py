"""The finished jobs of a sweep as rows: what each chose, and the numbers it ended with."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flrl.runs.rows import ENVIRONMENTS, read_rows
from flrl.runs.saved import read_config

Row = dict[str, Any]


def finished_jobs(sweep: Path) -> list[tuple[Path, Row]]:
    """The folder and the summary of each finished job below a sweep's folder, in the order of their names.

    A summary has `choices`, the choice of each config group, and `config`, the job's configuration, besides what is in
    `summary.json`.
    """
    found = []
    for path in sorted(sweep.rglob("summary.json")):
        summary = json.loads(path.read_text())
        choices = [row.get("choices", {}) for row in read_rows(path.parent / ENVIRONMENTS)]
        config = read_config(path.parent / ".hydra" / "config.yaml")
        found.append((path.parent, {**summary, "choices": choices[-1] if choices else {}, "config": config}))
    return found


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a table with all their columns, as they first appear; a missing value is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def distinct(rows: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of a column, each once, in the order in which they first appear."""
    return list(dict.fromkeys(row[name] for row in rows))


def mean_of(rows: Iterable[Mapping[str, Any]], name: str, **fixed: Any) -> float | None:
    """The mean of a column over the rows with the given values (over seeds, for instance); None without any number."""
    having = [row for row in rows if all(row.get(key) == value for key, value in fixed.items())]
    numbers = [float(row[name]) for row in having if row.get(name) is not None]
    return sum(numbers) / len(numbers) if numbers else None
