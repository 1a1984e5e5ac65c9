"""`flrl-compare`: groups of runs beside each other, as tables and figures."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from flrl.config import lower_is_better
from flrl.results import figures, tables
from flrl.results.grouping import Group, grouped, listed
from flrl.results.run import Run, runs
from flrl.results.statistics import Difference, Spread, differences
from flrl.runs.rows import ERROR
from flrl.target import reached

_LINE = 200


@dataclass(frozen=True)
class Options:
    """What is compared.

    Attributes:
        group_by: groups and keys of the configuration that divide the runs, with commas; None: what the runs'
            overrides differ by, except for seeds.
        metric: a column of `metrics.jsonl`; its last value counts.
        target: a value of the metric; how many rounds, bytes and seconds runs take to reach it.
        goal: "max" or "min"; None: "min" for losses and errors, see `flrl.config.LOWER_IS_BETTER`.
        out: the folder for tables and figures; None: `comparison/` in the first folder given.
    """

    group_by: str | None = None
    metric: str = "test/accuracy"
    target: float | None = None
    goal: str | None = None
    out: str | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether the metric is to be small."""
        return self.goal == "min" or (self.goal is None and lower_is_better(self.metric))


def parsed(arguments: Sequence[str]) -> tuple[list[Path], Options]:
    """Folders and options of a command line.

    Raises:
        ValueError: an option does not exist or has another type, or there is no folder.
    """
    names = [field.name for field in fields(Options)]
    given: dict[str, Any] = {}
    folders = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or Path(argument).exists():
            folders.append(Path(argument))
            continue
        if key not in names:
            close = get_close_matches(key, names, 1)
            raise ValueError(
                f"{argument}: there is no option {key}; " + (f"did you mean {close[0]}?" if close else ", ".join(names))
            )
        given[key] = value
    if "target" in given:
        try:
            given["target"] = float(given["target"])
        except ValueError:
            raise ValueError(f"target={given['target']}: must be a number") from None
    if given.get("goal", "max") not in ("max", "min"):
        raise ValueError(f"goal={given['goal']}: must be max or min")
    if not folders:
        raise ValueError("no folder: flrl-compare outputs/multirun/NAME/DATE group_by=strategy")
    return folders, Options(**given)


def compare(arguments: Sequence[str], console: Console | None = None) -> Path:
    """Compare the runs in folders: print the table and the tests, write tables and figures; returns their folder.

    Raises:
        ValueError: an option is wrong, no finished run has the metric, or see `grouped`.
        FileNotFoundError: a folder holds no run.
    """
    folders, options = parsed(arguments)
    every = runs(*folders)
    found, notes = having(every, options.metric)
    notes += [f"left out, failed: {folder}: {why}" for folder, why in failed(folders, every)]
    notes += in_percent(found, options)
    groups, differing = grouped(found, options.group_by)
    if differing:
        notes.append(f"the groups differ by more than what divides them: {listed(differing)}")
    table, tested = summary(groups, options)
    out = folders[0] / "comparison" if options.out is None else Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True) if console is None else console
    tables.show(table, tested, options, console)
    for note in notes:
        console.print(f"note: {note}", markup=False)
    tables.write(table, tested, notes, options, out)
    figures.write(groups, options, out)
    console.print(f"tables and figures: {out}", markup=False)
    return out


def having(found: Sequence[Run], metric: str) -> tuple[list[Run], list[str]]:
    """The finished runs that have the metric, and a line for each of the others.

    Raises:
        ValueError: there is none.
    """
    kept, left_out = [], []
    for run in found:
        if not run.finished:
            reason = reason_in(run.folder)
            rounds = f"{len(run.metrics)} of {run.config['strategy']['rounds']} rounds"
            left_out.append(f"left out, not finished: {run.folder}: {rounds}" + (f"; {reason}" if reason else ""))
        elif metric not in run.metrics or not run.metrics[metric].notna().any():
            left_out.append(f"left out, without {metric}: {run.folder}")
        else:
            kept.append(run)
    if kept:
        return kept, left_out
    if not any(run.finished for run in found):
        raise ValueError(f"none of the {len(found)} runs has finished")
    known = sorted({str(name) for run in found for name in run.metrics if name != "digest"})
    close = get_close_matches(metric, known, 1)
    raise ValueError(
        f"metric={metric}: no finished run has it; "
        + (f"did you mean {close[0]}?" if close else f"there are: {', '.join(known)}")
    )


def reason_in(folder: Path) -> str:
    """Why a run or a job has ended, the last line of its `error.txt`; empty if there is none."""
    path = folder / ERROR
    line = path.read_text(errors="replace").strip().rpartition("\n")[2] if path.exists() else ""
    return line if len(line) <= _LINE else f"{line[:_LINE]} ..."


def failed(folders: Sequence[Path], found: Sequence[Run]) -> list[tuple[Path, str]]:
    """The folders of jobs that failed before their first round, each with the reason."""
    known = {run.folder.resolve() for run in found}
    paths = {path.parent.resolve(): path.parent for folder in folders for path in sorted(folder.rglob(ERROR))}
    return [(path, reason_in(path)) for place, path in paths.items() if place not in known]


def in_percent(found: Sequence[Run], options: Options) -> list[str]:
    """A line if the target seems to be a percentage, and the metric a share."""
    target = options.target
    if target is None or not 1 < target <= 100:
        return []
    if not all(run.metrics[options.metric].dropna().between(0, 1).all() for run in found):
        return []
    return [f"target={target:g}: all values of {options.metric} are from 0 to 1: did you mean {target / 100:g}?"]


def to_target(run: Run, options: Options) -> dict[str, float] | None:
    """What a run took to reach the target, see `flrl.target.reached`; None if it did not."""
    assert options.target is not None
    rows: list[dict[str, Any]] = run.metrics.reset_index().to_dict("records")  # type: ignore[assignment]
    return reached(rows, options.metric, options.target, lower=options.lower_is_better)


def costs(metrics: pd.DataFrame) -> dict[str, pd.Series]:
    """What had been spent after each round: bytes sent and received by all clients, seconds, virtual seconds."""
    zero = pd.Series(0.0, index=metrics.index)
    spent = metrics.get("comm/up_bytes", zero) + metrics.get("comm/down_bytes", zero)
    found = {"bytes": spent.fillna(0).cumsum(), "seconds": metrics.get("time/round_s", zero).fillna(0).cumsum()}
    return found | ({"virtual_seconds": metrics["time/virtual_s"]} if "time/virtual_s" in metrics else {})


def summary(groups: Sequence[Group], options: Options) -> tuple[pd.DataFrame, list[Difference]]:
    """A row for each group, and the tests between groups."""
    rows, values = [], {}
    for group in groups:
        last = {key: float(run.metrics[options.metric].dropna().iloc[-1]) for key, run in group.runs.items()}
        values[group.name] = last
        spread = Spread.of([*last.values()])
        row: dict[str, Any] = {"group": group.name, "runs": spread.n, "mean": spread.mean, "std": spread.std}
        row |= {"low": spread.mean - spread.half, "high": spread.mean + spread.half}
        row["seconds"] = float(np.mean([costs(run.metrics)["seconds"].iloc[-1] for run in group.runs.values()]))
        if options.target is not None:
            there = [found for run in group.runs.values() if (found := to_target(run, options)) is not None]
            row["reached"] = len(there)
            virtual = any("time/virtual_s" in run.metrics for run in group.runs.values())
            for name in ("rounds", "bytes", "seconds", *(["virtual_seconds"] if virtual else [])):
                spent = [found.get(name, math.nan) for found in there]
                row[f"{name}_to_target"] = float(np.mean(spent)) if spent else math.nan
        rows.append(row)
    return pd.DataFrame(rows), differences(values)
