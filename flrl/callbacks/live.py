"""A run as a live picture in a terminal: the last rounds, the course of a metric, the time left, who trains now."""

import sys
from collections.abc import Sequence

from rich import progress as bars
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flrl.callbacks.lines import in_bytes, number, shown_names, sparkline
from flrl.types import RoundRecord

ROWS = 10
_METRICS = 4
_NAMED = 8
_CURVE = 40


class LiveTable:
    """The picture, which is drawn a few times a second by a thread of its own, however many rounds there are.

    Args:
        console: the terminal.
        rounds: number of rounds of the whole run.
        metric: the metric whose course is drawn; the first one of the evaluation if it is not logged.
    """

    def __init__(self, console: Console, *, rounds: int, metric: str | None) -> None:
        self._metric = metric
        self._curve: list[float] = []
        self._rows: tuple[RoundRecord, ...] = ()
        self._waiting: dict[int, None] = {}
        self._bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(elapsed_when_finished=False),
        )
        self._rounds = self._bars.add_task("rounds", total=rounds)
        self._cohort = self._bars.add_task("clients", total=None, visible=False)
        self._live = Live(
            console=console,
            get_renderable=self.picture,
            redirect_stderr=sys.stderr.isatty(),
            vertical_overflow="crop",
        )

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def stop(self) -> None:
        """Draw once more, without bars, and leave the picture where it is."""
        self._bars.update(self._rounds, visible=False)
        self._bars.update(self._cohort, visible=False)
        self._waiting.clear()
        self._live.stop()
        if not self._live.console.is_terminal:  # else rich ends the last line itself
            self._live.console.line()

    def begin_round(self, round: int, cohort: Sequence[int]) -> None:
        """A cohort begins to train."""
        self._waiting = dict.fromkeys(cohort)
        self._bars.reset(self._cohort, total=len(cohort), description=f"round {round}", visible=True)

    def client_done(self, client_id: int) -> None:
        """A client's update has arrived."""
        self._waiting.pop(client_id, None)
        self._bars.advance(self._cohort)

    def add(self, record: RoundRecord) -> None:
        """A round is over; or an evaluation before training, as round 0."""
        self._rows = (*self._rows, record)[-ROWS:]
        if self._metric not in record.metrics and not self._curve:
            self._metric = next(iter(shown_names(record)), "train/loss")
        if self._metric is not None and self._metric in record.metrics:
            self._curve.append(record.metrics[self._metric])
        if record.round:
            self._bars.advance(self._rounds)

    def picture(self) -> RenderableType:
        """The table, the metric's course, and the bars."""
        parts: list[RenderableType] = [_table(self._rows)] if self._rows else []
        if self._curve and self._metric is not None:
            course = sparkline(self._curve, _CURVE)
            parts.append(Text(f"{self._metric}  {course}  {number(self._metric, self._curve[-1])}"))
        parts.append(self._bars)
        if waiting := list(self._waiting):
            more = f" and {len(waiting) - _NAMED} more" if len(waiting) > _NAMED else ""
            parts.append(Text(f"training, or to come: {', '.join(map(str, waiting[:_NAMED]))}{more}"))
        return Group(*parts)


def _table(records: Sequence[RoundRecord]) -> Table:
    """A row a round, the newest last."""
    names = list(dict.fromkeys(name for record in records for name in shown_names(record)))[:_METRICS]
    names = [name for name in ("train/loss", *names) if any(name in record.metrics for record in records)]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("round", "clients", *names, "time", "up"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        metrics = record.metrics
        rejected = int(metrics.get("clients/rejected", 0))
        clients = f"{int(metrics.get('clients/num', 0))}" + (f" -{rejected}" if rejected else "")
        values = (number(name, metrics[name]) if name in metrics else "" for name in names)
        seconds = f"{metrics['time/round_s']:.2f} s" if "time/round_s" in metrics else ""
        up = in_bytes(metrics["comm/up_bytes"]) if "comm/up_bytes" in metrics else ""
        table.add_row(str(record.round), clients, *values, seconds, up)
    return table
