"""Progress in the terminal: a bar with the time left, a line per round, the result at the end."""

import re
import sys
from collections.abc import Sequence
from math import isfinite

from rich import progress as bars
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from flrl.callbacks.base import Callback, RunInfo
from flrl.callbacks.optimized import evaluated
from flrl.types import ClientReport, RoundRecord, ServerState

_OF_CLIENTS = ("clients/", "held_out_clients/")


class Progress(Callback):
    """Shows a run: with a live bar in a terminal, in plain lines elsewhere.

    Args:
        max_clients: the losses of at most this many clients of a round are shown one by one, else their range.
    """

    def __init__(self, *, max_clients: int = 4) -> None:
        self.max_clients = max_clients
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: bars.Progress | None = None
        self._run: RunInfo

    def setup(self, run: RunInfo) -> None:
        """Print the run's name, size and seed."""
        self._run = run
        layout, data = run.model.layout, run.data
        self._console.print(
            f"[bold]{run.name}[/]: {data.num_clients} clients, {int(data.sizes.sum())} training samples, "
            f"{layout.num_trainable} parameters, seed {run.seed}"
        )

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Open the bar, if the output is a terminal."""
        if state.round:
            self._console.print(f"resumed after round {state.round}")
        if self._console.is_terminal:
            columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn())
            times = (
                bars.TimeElapsedColumn(),
                bars.TextColumn("left"),
                bars.TimeRemainingColumn(elapsed_when_finished=False),
            )
            self._bar = bars.Progress(*columns, *times, console=self._console, transient=True)
            self._bar.add_task("rounds", total=self._run.rounds, completed=state.round)
            self._bar.add_task("clients", total=None, visible=False)
            self._bar.start()

    def on_round_start(self, round: int, cohort: Sequence[int]) -> None:
        """Reset the bar of the round's clients."""
        if self._bar is not None:
            self._bar.reset(bars.TaskID(1), total=len(cohort), description=f"round {round}", visible=True)

    def on_client_end(self, report: ClientReport) -> None:
        """Count a client."""
        if self._bar is not None:
            self._bar.advance(bars.TaskID(1))

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Print the round's line."""
        width = self._console.width if self._console.is_terminal else None
        self._console.print(round_line(history[-1], self._run.rounds, self.max_clients, width))
        if self._bar is not None and state.round:
            self._bar.advance(bars.TaskID(0))

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Print the round after which the run ended."""
        self.close()
        self._console.print(f"[bold red]stopped[/] after round {state.round} of {self._run.rounds}: {self._run.folder}")

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Print the result, the digest and the folder."""
        self.close()
        if state.round < self._run.rounds:
            self._console.print(f"stopped early after round {state.round}")
        if history:
            metrics = history[-1].metrics
            names = [name for name in _shown_names(history[-1]) if not name.startswith(_OF_CLIENTS)]
            names += [name for name in metrics if re.match(r"(held_out_)?clients/\w+/a", name)]
            self._console.print("result  " + "  ".join(_shown(name, metrics[name]) for name in names))
            self._console.print(f"digest  {history[-1].digest}")
        self._console.print(f"folder  {self._run.folder}")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


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
        parts["loss"] = "  " + _shown("train/loss", metrics["train/loss"])
        parts["clients"] = _clients(record, max_clients)
    names = [name for name in _shown_names(record) if not name.startswith(_OF_CLIENTS)]
    parts["metrics"] = "".join(f"  {_shown(name, metrics[name])}" for name in names)
    if metrics.get("clients/rejected"):
        rejected = ", ".join(f"client {r.client_id}: {r.rejected}" for r in record.reports if r.rejected)
        parts["rejected"] = f"  [bold red]rejected {escape(rejected)}[/]"
    if "time/round_s" in metrics:
        parts["seconds"] = f"  {metrics['time/round_s']:.2f} s"
        parts["bytes"] = f"  up {_bytes(metrics['comm/up_bytes'])} down {_bytes(metrics['comm/down_bytes'])}"
    return "".join(parts.values()) if width is None else _fitted(parts, width)


def _fitted(parts: dict[str, str], width: int) -> str:
    for dispensable in (None, "bytes", "clients", "seconds"):
        parts = {name: part for name, part in parts.items() if name != dispensable}
        line = Text.from_markup("".join(parts.values()))
        if cell_len(line.plain) <= width:
            break
    line.truncate(width, overflow="ellipsis")
    return line.markup


def _shown_names(record: RoundRecord) -> list[str]:
    """The names of the evaluation's metrics; without clients' reports, only those of test and validation."""
    names = evaluated(record)
    return names if record.reports or not record.round else [n for n in names if n.startswith(("test", "val"))]


def _clients(record: RoundRecord, max_clients: int) -> str:
    accepted = {r.client_id: r.metrics.get("train/loss") for r in record.reports if r.rejected is None}
    known = {client_id: loss for client_id, loss in accepted.items() if loss is not None and isfinite(loss)}
    if not known:
        return ""
    if len(known) <= max_clients:
        return " (" + ", ".join(f"client {client_id} {loss:.4f}" for client_id, loss in known.items()) + ")"
    return f" ({len(known)} clients, {min(known.values()):.4f} to {max(known.values()):.4f})"


def _shown(name: str, value: float) -> str:
    percent = name.endswith(("accuracy", "backdoor_success")) and isfinite(value)
    return f"{name} [bold]{100 * value:.2f} %[/]" if percent else f"{name} [bold]{value:.4f}[/]"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError
