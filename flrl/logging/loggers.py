"""Logs every round's metrics with Lightning's loggers: CSV, TensorBoard, W&B, or any other."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

from pytorch_lightning.loggers import Logger

from flrl.callbacks.base import Callback, RunInfo
from flrl.logging.secrets import masked
from flrl.logging.wandb import FlrlWandbLogger
from flrl.types import RoundRecord, ServerState


class Loggers(Callback):
    """A callback with any number of Lightning loggers; `step` is the round.

    After a resume the earlier rounds are logged too, so that each log is complete; W&B gets those that it lacks.

    Args:
        loggers: the loggers by name, as in `conf/logger/`.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self.loggers = dict(loggers)
        self._run: RunInfo

    def setup(self, run: RunInfo) -> None:
        """Log the resolved configuration, without secrets."""
        self._run = run
        with _folders_that_exist():
            for logger in self.loggers.values():
                if isinstance(logger, FlrlWandbLogger):
                    logger.log_start(run)
                logger.log_hyperparams(masked(dict(run.config)))

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Log the rounds before a resumed state."""
        for record in history:
            self._log(record, None)

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Log the round."""
        self._log(history[-1], state)

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Finalize all loggers; log the final model with W&B."""
        for logger in self.loggers.values():
            if isinstance(logger, FlrlWandbLogger):
                logger.log_end(state, history)
            logger.finalize("success")

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Finalize all loggers, with the status "failed"."""
        for logger in self.loggers.values():
            logger.finalize("failed")
            if isinstance(logger, FlrlWandbLogger):
                logger.finish(exit_code=1)

    def close(self) -> None:
        """End the W&B runs, so that a sweep's next job starts its own; say how offline ones are sent."""
        for logger in self.loggers.values():
            if isinstance(logger, FlrlWandbLogger):
                logger.finish()
                if logger.hint() and self._run.console not in ("json", "quiet"):
                    print(f"offline {logger.hint()}", flush=True)

    def _log(self, record: RoundRecord, state: ServerState | None) -> None:
        numbers = {name: value for name, value in record.metrics.items() if math.isfinite(value)}
        with _folders_that_exist():
            for logger in self.loggers.values():
                if isinstance(logger, FlrlWandbLogger):
                    logger.log_round(state, record, numbers)
                    continue
                logger.log_metrics(numbers | {"round": record.round}, step=record.round)
                logger.save()


@contextlib.contextmanager
def _folders_that_exist() -> Iterator[None]:
    """Suppress the CSV logger's warning that its folder exists: after a resume it gets all rows anew."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        yield
