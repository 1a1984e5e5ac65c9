"""The page of a sweep: its runs as a table that sorts, and their curves over each other."""

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flrl.callbacks.lines import in_bytes
from flrl.cli.arguments import key_of
from flrl.reporting.charts import kept
from flrl.reporting.folder import RunFiles
from flrl.reporting.html import Html, joined, page, table, tag
from flrl.reporting.numbers import best, headlines, last, number

REPORT = "report.html"
MAX_DRAWN = 60


def runs_in(sweep: Path) -> list[RunFiles]:
    """The runs below a folder that have completed a round, job 2 before job 10.

    Raises:
        ValueError: there is none.
    """
    folders = [path.parent for path in sweep.rglob("metrics.jsonl") if path.stat().st_size]
    folders = [folder for folder in folders if (folder / ".hydra" / "config.yaml").exists()]
    if not folders:
        raise ValueError(f"sweep={sweep}: no run has completed a round there")
    return [RunFiles.read(folder, "sweep") for folder in sorted(folders, key=lambda folder: _natural(folder, sweep))]


def _natural(folder: Path, sweep: Path) -> tuple[tuple[int, int | str], ...]:
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in folder.relative_to(sweep).parts)


def sweep_page(sweep: Path, runs: Sequence[RunFiles]) -> str:
    """The page of the runs in a sweep's folder, with links to their reports where there are any."""
    given = [_overrides(run) for run in runs]
    varied = [key for key in dict.fromkeys(k for one in given for k in one) if len({one.get(key) for one in given}) > 1]
    names = list(dict.fromkeys(name for run in runs for name in headlines(run)[:3]))
    head = ["run", *varied, *(column for name in names for column in (name, f"best {name}"))]
    head += ["rounds", "sent up", "wall time, s", "digest"]
    rows = [_row(run, one, sweep, varied, names) for run, one in zip(runs, given, strict=True)]
    words = (0, *range(1, 1 + len(varied)), len(head) - 1)
    listed = table(head, rows, label="Runs", sortable=True, words=words)
    metrics = [name for run in runs for name in run.metrics()]
    ordered = sorted(dict.fromkeys(metrics), key=lambda name: names.index(name) if name in names else len(names))
    options = (tag("option", name, value=name) for name in ordered)
    chosen = tag("p", tag("label", "Metric ", tag("select", *options, id="metric")))
    some = f"The first {MAX_DRAWN} of {len(runs)} runs are drawn." if len(runs) > MAX_DRAWN else ""
    curves = joined(
        [chosen, tag("figure", id="runs-chart", _class="chart"), tag("p", some, _class="muted") if some else ""]
    )
    pairs = list(zip(runs, given, strict=True))[:MAX_DRAWN]
    data = {"x": [], "metrics": {}, "charts": [], "runs": [_curves(run, one, sweep, varied) for run, one in pairs]}
    top = joined([tag("h1", sweep.name), tag("p", f"{len(runs)} runs, folder {sweep}", _class="muted")])
    return page(f"{sweep.name}: {len(runs)} runs", top, [("runs", "Runs", listed), ("curves", "Curves", curves)], data)


def _overrides(run: RunFiles) -> dict[str, str]:
    return {key_of(word): word.partition("=")[2] for word in run.overrides}


def _name(run: RunFiles, sweep: Path) -> str:
    return str(run.folder.relative_to(sweep))


def _row(run: RunFiles, given: dict[str, str], sweep: Path, varied: Sequence[str], names: Sequence[str]) -> list[Any]:
    name: Any = _name(run, sweep)
    if (run.folder / REPORT).exists():
        name = tag("a", name, href=posixpath.join(*map(quote, run.folder.relative_to(sweep).parts), REPORT))
    row: list[Any] = [name, *(given.get(key, "") for key in varied)]
    for metric in names:
        value, found = last(run, metric), best(run, metric)
        row += [_sorted(value), _sorted(None if found is None else found[0])]
    sent = sum(value or 0 for value in run.metrics().get("comm/up_bytes", []))
    seconds = run.summary.get("wall_time_s")
    rounds = (Html(f"{run.rounds[-1]}") if run.summary else f"{run.rounds[-1]}, not finished", run.rounds[-1])
    return [*row, rounds, (in_bytes(sent), sent), _sorted(seconds), tag("code", run.rows[-1]["digest"][:12])]


def _sorted(value: Any) -> tuple[str, Any]:
    return ("", "") if value is None else (number(value), value)


def _curves(run: RunFiles, given: dict[str, str], sweep: Path, varied: Sequence[str]) -> dict[str, Any]:
    places = kept(run.rounds)
    name = " ".join([_name(run, sweep), *(f"{key}={given[key]}" for key in varied if key in given)])
    metrics = {name: [values[at] for at in places] for name, values in run.metrics().items()}
    return {"name": name, "x": [run.rounds[at] for at in places], "metrics": metrics}
