"""Callbacks that end a run: when it stops improving, or when its loss is not finite."""

import math
from collections.abc import Sequence
from typing import Literal

from flrl.callbacks.base import Callback, RunInfo
from flrl.types import RoundRecord, ServerState


class EarlyStopping(Callback):
    """Stops when a metric has not improved for `patience` evaluated rounds.

    Args:
        monitor: a metric of `metrics.jsonl`.
        mode: "min" or "max".
        patience: evaluated rounds without improvement.
        min_delta: smallest change that counts as an improvement.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self,
        *,
        monitor: str = "test/loss",
        mode: Literal["min", "max"] = "min",
        patience: int = 10,
        min_delta: float = 0,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"early_stopping.mode={mode!r}: must be 'min' or 'max'")
        if patience < 1:
            raise ValueError(f"early_stopping.patience={patience}: must be at least 1")
        if not min_delta >= 0:
            raise ValueError(f"early_stopping.min_delta={min_delta}: must be at least 0")
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.patience = patience
        self.min_delta = min_delta

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        """Stop if the best value is `patience` evaluations old.

        Raises:
            ValueError: the evaluation did not give the metric.
        """
        values = [self.sign * record.metrics[self.monitor] for record in history if self.monitor in record.metrics]
        evaluated = history and any(name.startswith(("test/", "val/")) for name in history[-1].metrics)
        if evaluated and self.monitor not in history[-1].metrics:
            known = ", ".join(sorted(history[-1].metrics))
            raise ValueError(f"early_stopping.monitor={self.monitor!r} was not evaluated; there are: {known}")
        best, since = math.inf, 0
        for value in values:
            best, since = (value, 0) if value < best - self.min_delta else (best, since + 1)
        return f"{self.monitor} has not improved for {since} evaluations" if since >= self.patience else None


class NanGuard(Callback):
    """Ends the run with an error when a round's loss is not finite.

    Updates that are not finite are rejected anyway; this is for a global model that diverges.

    Args:
        monitor: metrics of `metrics.jsonl` that must be finite where they occur.
    """

    def __init__(self, *, monitor: Sequence[str] = ("train/loss", "test/loss")) -> None:
        self.monitor = tuple(monitor)
        self._folder = ""

    def setup(self, run: RunInfo) -> None:
        """Note the run's folder, for the error message."""
        self._folder = str(run.folder)

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Raise FloatingPointError if a monitored metric is not finite."""
        record = history[-1]
        wrong = {
            name: record.metrics[name] for name in self.monitor if not math.isfinite(record.metrics.get(name, 0.0))
        }
        if wrong:
            found = ", ".join(f"{name} is {value}" for name, value in wrong.items())
            raise FloatingPointError(
                f"round {record.round}: {found}; lower the learning rate, or clip with trainer.gradient_clip_val. "
                f"All rounds are kept in {self._folder}"
            )
