"""Progress in the terminal: a live table, a line or a JSON line per round, or nothing."""

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from flrl.callbacks.base import Callback, RunInfo
from flrl.callbacks.lines import below_here, counted, privacy_line, result_line, round_line, target_line
from flrl.callbacks.live import LiveTable
from flrl.callbacks.run_folder import row_of
from flrl.types import ClientReport, RoundRecord, ServerState


class Progress(Callback):
    """Shows a run, in the form that the key `console` names.

    `rich`: a live table, in a terminal; `plain`: a line a round, without control characters; `json`: a row of
    `metrics.jsonl` a round, and nothing else; `quiet`: nothing; `auto`: rich in a terminal, else plain, and also where
    rich takes the terminal for none (`TTY_COMPATIBLE=0`).

    Args:
        max_clients: a line shows the losses of at most this many clients of a round one by one, else their range.
    """

    def __init__(self, *, max_clients: int = 4) -> None:
        self.max_clients = max_clients
        self._run: RunInfo
        self._form = "plain"
        self._fitted = False
        self._console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
        self._table: LiveTable | None = None

    def setup(self, run: RunInfo) -> None:
        """Print the run's name, size and seed."""
        self._run = run
        shown = sys.stdout.isatty() and not self._console.is_dumb_terminal
        real = shown and self._console.is_terminal  # a launcher's terminal may end in a file
        self._form = form(run.console, terminal=real if run.console == "auto" else shown)
        self._fitted = real
        if self._form == "plain":  # whatever the environment asks for: nothing but text in files and pipes
            self._console = Console(
                file=sys.stdout, highlight=False, soft_wrap=True, force_terminal=False, color_system=None
            )
        layout, data = run.model.layout, run.data
        self._print(
            f"[bold]{run.name}[/]: {counted(data.num_clients, 'client')}, {int(data.sizes.sum())} training samples, "
            f"{layout.num_trainable} parameters, seed {run.seed}"
        )

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Begin to draw the table, if there is one, with the last rounds before a resumed state."""
        if state.round:
            self._print(f"resumed after round {state.round}")
        if self._form == "rich":
            metric = self._run.config.get("optimized_metric")
            self._table = LiveTable(self._console, rounds=self._run.rounds, metric=metric)
            for record in history:
                self._table.add(record)
            self._table.start()

    def on_round_start(self, round: int, cohort: Sequence[int]) -> None:
        """Show the clients of the round."""
        if self._table is not None:
            self._table.begin_round(round, cohort)

    def on_client_end(self, report: ClientReport) -> None:
        """Count a client."""
        if self._table is not None:
            self._table.client_done(report.client_id)

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Show the round."""
        if self._table is not None:
            self._table.add(history[-1])
        elif self._form == "plain":
            width = self._console.width if self._fitted else None
            self._print(round_line(history[-1], self._run.rounds, self.max_clients, width))
        elif self._form == "json":
            print(json.dumps(row_of(history[-1])), flush=True)

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Print the round after which the run ended."""
        self.close()
        self._print(
            f"[bold red]stopped[/] after round {state.round} of {self._run.rounds}: {below_here(self._run.folder)}"
        )

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Print the result, the digest and the folder."""
        self.close()
        if state.round < self._run.rounds:
            self._print(f"stopped early after round {state.round}")
        if history:
            self._print(result_line(history[-1]))
            if line := target_line(self._run.config, history):
                self._print(line)
            if line := privacy_line(history[-1]):
                self._print(line)
            self._print(f"digest  {history[-1].digest}")
        self._print(f"folder  {below_here(self._run.folder)}")

    def close(self) -> None:
        """End the drawing."""
        if self._table is not None:
            self._table.stop()
            self._table = None

    def _print(self, line: str) -> None:
        if self._form in ("rich", "plain"):
            self._console.print(line)


@contextmanager
def said_if_slow(line: str, run: RunInfo, *, after_s: float = 5.0) -> Iterator[None]:
    """Print a line if the block takes longer than `after_s` seconds, where a run's form is for people."""
    timer = threading.Timer(after_s, print, [line], {"flush": True})
    timer.daemon = True
    if form(run.console, terminal=False) == "plain":
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def form(console: str, *, terminal: bool) -> str:
    """The form in which a run is shown: `console` itself; without a terminal, `plain` in place of `rich`.

    Example:
        >>> form("auto", terminal=True), form("rich", terminal=False), form("json", terminal=True)
        ('rich', 'plain', 'json')
    """
    if console in ("auto", "rich"):
        return "rich" if terminal else "plain"
    return console
