"""A round as text: one line, its numbers as people read them, the course of a metric as a row of small bars."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.markup import escape
from rich.text import Text

from flrl.records import evaluated
from flrl.target import asked, summary_of
from flrl.types import RoundRecord

OF_CLIENTS = ("clients/", "held_out_clients/")
_BARS = "▁▂▃▄▅▆▇█"


def round_line(record: RoundRecord, rounds: int, max_clients: int, width: int | None = None) -> str:
    """A round in one line: losses of the clients, metrics of the evaluation, seconds, bytes.

    Args:
        record: the round's record.
        rounds: number of rounds of the whole run.
        max_clients: as for `Progress`.
        width: columns of the terminal; bytes, clients and seconds are left out in this order until the line fits.
    """
    metrics = record.metrics
    parts = {"round": f"round {record.round:>{len(str(rounds))}}/{rounds}"}
    if "train/loss" in metrics:
        parts["loss"] = "  " + shown("train/loss", metrics["train/loss"])
        parts["clients"] = _clients(record, max_clients)
    names = [name for name in shown_names(record) if not name.startswith(OF_CLIENTS)]
    parts["metrics"] = "".join(f"  {shown(name, metrics[name])}" for name in names)
    if metrics.get("clients/rejected"):
        rejected = ", ".join(f"client {r.client_id}: {r.rejected}" for r in record.reports if r.rejected)
        parts["rejected"] = f"  [bold red]rejected {escape(rejected)}[/]"
    if "privacy/epsilon" in metrics:
        parts["privacy"] = f"  epsilon {metrics['privacy/epsilon']:.3g}"
    if "time/round_s" in metrics:
        parts["seconds"] = f"  {metrics['time/round_s']:.2f} s"
        parts["bytes"] = f"  up {in_bytes(metrics['comm/up_bytes'])} down {in_bytes(metrics['comm/down_bytes'])}"
    return "".join(parts.values()) if width is None else _fitted(parts, width)


def _fitted(parts: dict[str, str], width: int) -> str:
    for dispensable in (None, "bytes", "clients", "seconds"):
        parts = {name: part for name, part in parts.items() if name != dispensable}
        line = Text.from_markup("".join(parts.values()))
        if cell_len(line.plain) <= width:
            break
    line.truncate(width, overflow="ellipsis")
    return line.markup


def shown_names(record: RoundRecord) -> list[str]:
    """The names of the evaluation's metrics; without clients' reports, only those of test and validation."""
    names = evaluated(record)
    return names if record.reports or not record.round else [n for n in names if n.startswith(("test", "val"))]


def result_line(record: RoundRecord) -> str:
    """The metrics that a run ends with."""
    names = [name for name in shown_names(record) if not name.startswith(OF_CLIENTS)]
    names += [name for name in record.metrics if re.match(r"(held_out_)?clients/\w+/a", name)]
    return "result  " + "  ".join(shown(name, record.metrics[name]) for name in names)


def privacy_line(record: RoundRecord) -> str | None:
    """The epsilon of all rounds; None if the run has no mechanism."""
    if "privacy/epsilon" not in record.metrics:
        return None
    epsilon, delta = (record.metrics[f"privacy/{name}"] for name in ("epsilon", "delta"))
    return f"privacy  epsilon [bold]{epsilon:.4g}[/] at delta {delta:g}"


def target_line(config: Mapping[str, Any], history: Sequence[RoundRecord]) -> str | None:
    """What it took to reach the target of a run's configuration; None if it has none."""
    target = asked(config)
    if target is None:
        return None
    found = summary_of(config, ({"round": record.round, **record.metrics} for record in history))
    rounds, sent, virtual = (found[f"{name}_to_target"] for name in ("rounds", "bytes", "virtual_seconds"))
    if rounds is None or sent is None:
        return f"target  {shown(*target)} was not reached"
    seconds = "" if virtual is None else f", {virtual:.1f} virtual seconds"
    return f"target  {shown(*target)} after {rounds:.1f} rounds, {in_bytes(sent)}{seconds}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of a metric, a bar a value; of more values than `width`, so many at even distances, the last one too.

    Example:
        >>> sparkline([0.0, 0.5, 1.0], width=10)
        '▁▄█'
    """
    finite = [value for value in values if isfinite(value)]
    if len(finite) > width:
        finite = [finite[(index + 1) * len(finite) // width - 1] for index in range(width)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    return "".join(_BARS[int((value - low) / span * (len(_BARS) - 1)) if span else 0] for value in finite)


def _clients(record: RoundRecord, max_clients: int) -> str:
    accepted = {r.client_id: r.metrics.get("train/loss") for r in record.reports if r.rejected is None}
    known = {client_id: loss for client_id, loss in accepted.items() if loss is not None and isfinite(loss)}
    if not known:
        return ""
    if len(known) <= max_clients:
        return " (" + ", ".join(f"client {client_id} {loss:.4f}" for client_id, loss in known.items()) + ")"
    return f" ({len(known)} clients, {min(known.values()):.4f} to {max(known.values()):.4f})"


def shown(name: str, value: float) -> str:
    """A metric with its name; shares of one in per cent."""
    return f"{name} [bold]{number(name, value)}[/]"


def number(name: str, value: float) -> str:
    """A metric's value as people read it."""
    percent = name.endswith(("accuracy", "backdoor_success")) and isfinite(value)
    return f"{100 * value:.2f} %" if percent else f"{value:.4f}"


def counted(number: int, what: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "round"), counted(2, "round")
        ('1 round', '2 rounds')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def below_here(path: Path) -> Path:
    """A path relative to the working directory where it lies below it; else the path itself."""
    return path.relative_to(Path.cwd()) if Path.cwd() in path.parents else path


def in_bytes(number: float) -> str:
    """A number of bytes with its unit.

    Example:
        >>> in_bytes(999), in_bytes(62800), in_bytes(1.5e9)
        ('999 B', '62.8 kB', '1.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError
