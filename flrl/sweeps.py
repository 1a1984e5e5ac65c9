"""A sweep's folder: `sweep.csv`, a row for each job as it ends, and a table in the terminal after the last one.

Imports no torch: Hydra makes the callback in the process that only launches the jobs, too.
"""

import csv
import json
import os
import shlex
import statistics
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from flrl.config import lower_is_better, percent
from flrl.runs.rows import ERROR, METRICS, read_rows, replace_text

TABLE = "sweep.csv"
SEEDS = ("seed", "partition.seed", "model_seed", "sampling_seed")
_SHOWN, _LINE = 15, 200
_BEFORE, _AFTER = ("job", "status"), ("seconds", "digest", "ended", "error")
_FAILED: dict[Path, str] = {}
"""Why jobs of this process have failed, by folder, until their rows are written."""


class SweepFolder(Callback):
    """A Hydra callback that writes `sweep.csv`, ends a sweep with a table, and with code 1 if a job has failed.

    Jobs may end in other processes at the same time, to which launchers send this object: each changes its own row. A
    job's own `hydra.sweep.dir` may be another one, where that has something in it that is swept over.
    """

    def __init__(self) -> None:
        self._started, self._sweep = "", Path()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folder, and the time: jobs that failed before are not this sweep's."""
        self._started, self._sweep = _now(), Path(config.hydra.sweep.dir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the job's row."""
        if config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.runtime.output_dir)
            write_row(self._sweep, row_of(self._sweep, folder, config.hydra.overrides.task))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Show the best jobs and those that have failed."""
        overrides, rows = read_table(self._sweep)
        if config.get("console") not in ("json", "quiet"):
            show(rows, overrides, str(config.optimized_metric), self._sweep)
        failed = [row for row in rows if row["status"] == "failed" and row["ended"] >= self._started]
        if failed:
            print(f"error: {len(failed)} of {len(rows)} jobs failed; all are in {self._sweep / TABLE}", file=sys.stderr)
            for row in failed:
                chosen = " ".join(f"{name}={row[name]}" for name in varied(rows, overrides) if row.get(name))
                print(f"  {row['job']}  {chosen}: {row['error'][:_LINE]}", file=sys.stderr)
            sys.exit(1)


def note_failure(folder: Path, line: str, started: float) -> None:
    """Keep why a job has failed for its row, and in its `error.txt` unless the run has written that since it started.

    A folder with a finished run, which the job was refused, is left as it is.
    """
    path = folder / ERROR
    _FAILED[folder] = line
    if not (folder / "summary.json").exists() and (not path.exists() or path.stat().st_mtime < started):
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, [line + "\n"])


def row_of(sweep: Path, folder: Path, overrides: Iterable[str]) -> dict[str, Any]:
    """A job's row: its overrides, how it ended, the numbers of its last round, seconds, digest, error."""
    given = [override.lstrip("+~").partition("=") for override in overrides]
    row: dict[str, Any] = {"job": os.path.relpath(folder, sweep), "status": "unfinished"}
    row |= {key: value for key, _, value in given if key != "resume"}
    last: dict[str, Any] = next(iter(deque(read_rows(folder / METRICS), maxlen=1)), {})
    row |= {"rounds": last.get("round", 0)}
    row |= {name: value for name, value in last.items() if name not in ("round", "digest")}
    failure = _FAILED.pop(folder, None)
    if failure is not None:
        row |= {"status": "failed", "error": failure}
    elif (folder / ERROR).exists():
        row |= {"status": "failed", "error": (folder / ERROR).read_text().strip().rpartition("\n")[2]}
    elif (folder / "summary.json").exists():
        summary = json.loads((folder / "summary.json").read_text())
        row |= {"status": "finished", "seconds": summary["wall_time_s"]}
    return row | {"digest": last.get("digest", ""), "ended": _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def read_table(sweep: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The overrides that are columns of `sweep.csv`, and its rows; none if there is no such file."""
    path = sweep / TABLE
    if not path.exists():
        return [], []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        return names[len(_BEFORE) : names.index("rounds")], list(reader)


def write_row(sweep: Path, row: Mapping[str, Any]) -> None:
    """Put a job's row into `sweep.csv`, in place of that job's earlier one."""
    sweep.mkdir(parents=True, exist_ok=True)
    with FileLock(sweep / f".{TABLE}.lock"):
        overrides, rows = read_table(sweep)
        rows = [dict(row) if kept["job"] == row["job"] else kept for kept in rows]
        if not any(kept["job"] == row["job"] for kept in rows):
            rows.append(dict(row))
        names = list(row)
        overrides += [name for name in names[len(_BEFORE) : names.index("rounds")] if name not in overrides]
        known = {*_BEFORE, *overrides, *_AFTER}
        metrics = dict.fromkeys(name for own in rows for name in own if name not in known and name != "rounds")
        write_csv(sweep / TABLE, rows, [*_BEFORE, *overrides, "rounds", *metrics, *_AFTER])


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write rows as a table, with all their columns as they first appear; a missing value is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row)) if columns is None else columns
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(path)


def varied(rows: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> list[str]:
    """The overrides by which rows differ."""
    return [key for key in overrides if len({row.get(key) for row in rows}) > 1]


def show(rows: Sequence[Mapping[str, Any]], overrides: Sequence[str], metric: str, sweep: Path) -> None:
    """Print the finished jobs, best first; those that differ by seeds alone are a row with mean and deviation."""
    dividing = [key for key in varied(rows, overrides) if key not in SEEDS]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if row["status"] == "finished" and row.get(metric):
            groups.setdefault(tuple(row.get(key) or "" for key in dividing), []).append(float(row[metric]))
    if not groups:
        return
    ordered = sorted(groups.items(), key=lambda group: statistics.fmean(group[1]), reverse=not lower_is_better(metric))
    scale, digits = (100, 2) if percent(metric) else (1, 4)
    table = Table(*dividing, "jobs", metric + (" (%)" if scale == 100 else ""), box=box.SIMPLE_HEAD)
    for column in table.columns[len(dividing) :]:
        column.justify = "right"
    for values, numbers in ordered[:_SHOWN]:
        spread = f" ± {scale * statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        table.add_row(*values, str(len(numbers)), f"{scale * statistics.fmean(numbers):.{digits}f}{spread}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if len(ordered) > _SHOWN:
        console.print(f"and {len(ordered) - _SHOWN} more", markup=False)
    console.print(f"sweep   {sweep / TABLE}\ncompare flrl-compare {shlex.quote(str(sweep))}", markup=False)
