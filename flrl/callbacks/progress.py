"""What the terminal shows: a bar with the time left, a line per round, the result at the end."""

import sys
from collections.abc import Sequence
from math import isfinite

from rich import progress as bars
from rich.console import Console

from flrl.callbacks.base import Callback, RunInfo
from flrl.types import ClientReport, RoundRecord, ServerState


class Progress(Callback):
    """Shows a run: with a live bar in a terminal, in plain lines elsewhere.

    Args:
        max_clients: up to so many clients of a round are shown one by one, above that their range.
    """

    def __init__(self, *, max_clients: int = 4) -> None:
        self.max_clients = max_clients
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._bar: bars.Progress | None = None
        self._run: RunInfo

    def setup(self, run: RunInfo) -> None:
        """Say what is about to run."""
        self._run = run
        layout, data = run.model.layout, run.data
        self._console.print(
            f"[bold]{run.name}[/]: {data.num_clients} clients, {int(data.sizes.sum())} training samples, "
            f"{layout.num_trainable} parameters, seed {run.seed}"
        )

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Open the bar, where there is a terminal."""
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
        """Begin to count the round's clients."""
        if self._bar is not None:
            self._bar.reset(bars.TaskID(1), total=len(cohort), description=f"round {round}", visible=True)

    def on_client_end(self, report: ClientReport) -> None:
        """Count a client."""
        if self._bar is not None:
            self._bar.advance(bars.TaskID(1))

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Print the round's line."""
        self._console.print(round_line(history[-1], self._run.rounds, self.max_clients))
        if self._bar is not None and state.round:
            self._bar.advance(bars.TaskID(0))

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Say where the run ended."""
        self.close()
        self._console.print(f"[bold red]stopped[/] after round {state.round} of {self._run.rounds}: {self._run.folder}")

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Print the result, the digest and the folder."""
        self.close()
        if state.round < self._run.rounds:
            self._console.print(f"stopped early after round {state.round}")
        if history:
            metrics = {
                name: value
                for name, value in history[-1].metrics.items()
                if name.startswith(("test/", "val/", "clients/a"))
            }
            self._console.print("result  " + "  ".join(_shown(name, value) for name, value in metrics.items()))
            self._console.print(f"digest  {history[-1].digest}")
        self._console.print(f"folder  {self._run.folder}")

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def round_line(record: RoundRecord, rounds: int, max_clients: int) -> str:
    """A round in one line: losses of the clients, test metrics, seconds, bytes."""
    metrics = record.metrics
    parts = [f"round {record.round:>{len(str(rounds))}}/{rounds}"]
    if "train/loss" in metrics:
        parts.append(_shown("train/loss", metrics["train/loss"]) + _clients(record, max_clients))
    parts += [_shown(name, value) for name, value in metrics.items() if name.startswith(("test/", "val/"))]
    if metrics.get("clients/rejected"):
        names = ", ".join(f"client {r.client_id}: {r.rejected}" for r in record.reports if r.rejected)
        parts.append(f"[bold red]rejected {names}[/]")
    if "time/round_s" in metrics:
        parts.append(f"{metrics['time/round_s']:.2f} s")
        parts.append(f"up {_bytes(metrics['comm/up_bytes'])} down {_bytes(metrics['comm/down_bytes'])}")
    return "  ".join(parts)


def _clients(record: RoundRecord, max_clients: int) -> str:
    losses = {report.client_id: report.metrics.get("train/loss") for report in record.reports}
    known = {client_id: loss for client_id, loss in losses.items() if loss is not None}
    if not known:
        return ""
    if len(known) <= max_clients:
        return " (" + ", ".join(f"client {client_id} {loss:.4f}" for client_id, loss in known.items()) + ")"
    return f" ({len(known)} clients, {min(known.values()):.4f} to {max(known.values()):.4f})"


def _shown(name: str, value: float) -> str:
    percent = "accuracy" in name and isfinite(value)
    return f"{name} [bold]{100 * value:.2f} %[/]" if percent else f"{name} [bold]{value:.4f}[/]"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError
