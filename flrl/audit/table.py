"""The finished jobs of a sweep as rows: what each chose, and the numbers it ended with."""

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from flrl.cli.explaining import explained
from flrl.runs.rows import ENVIRONMENTS, read_rows
from flrl.runs.saved import read_config
from flrl.sweeps import write_csv

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


def distinct(rows: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    """The values of a column, each once, in the order in which they first appear."""
    return list(dict.fromkeys(row[name] for row in rows))


class SweepTable(Callback):
    """A Hydra callback that writes a sweep's table as jobs finish; a subclass says of what, and how it ends."""

    table = ""

    def rows(self, sweep: Path) -> list[Row]:
        """The rows of the finished jobs below a sweep's folder."""
        raise NotImplementedError

    def finish(self, sweep: Path) -> None:
        """Write what is made of all jobs."""
        raise NotImplementedError

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the table of the jobs that have finished."""
        if config.hydra.mode == RunMode.MULTIRUN:
            sweep = Path(config.hydra.sweep.dir)
            with FileLock(sweep / f".{self.table}.lock"):  # jobs may end at the same time
                write_csv(sweep / self.table, self.rows(sweep))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write what is made of all jobs in the sweep's folder."""
        with explained(full_error=False):
            self.finish(Path(config.hydra.sweep.dir))


def some(rows: list[Row], sweep: Path) -> list[Row]:
    """The rows; ValueError if no job has finished."""
    if not rows:
        raise ValueError(f"{sweep}: no job of a sweep has finished there")
    return rows


def spread_of(rows: Iterable[Mapping[str, Any]], name: str, **fixed: Any) -> tuple[float, float, int] | None:
    """A column's mean over the rows with the given values, its standard deviation (n - 1; 0 for one row) and n."""
    having = [row for row in rows if all(row.get(key) == value for key, value in fixed.items())]
    numbers = [float(row[name]) for row in having if row.get(name) is not None]
    if not numbers:
        return None
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0, len(numbers)


def mean_of(rows: Iterable[Mapping[str, Any]], name: str, **fixed: Any) -> float | None:
    """The mean of a column over the rows with the given values (over seeds, for instance); None without any number."""
    spread = spread_of(rows, name, **fixed)
    return None if spread is None else spread[0]
