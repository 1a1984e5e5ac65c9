"""Feeds Lightning's loggers (CSV, TensorBoard, W&B, or anybody's) with every round's metrics."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

from pytorch_lightning.loggers import Logger

from flrl.callbacks.base import Callback, RunInfo
from flrl.logging.wandb import FlrlWandbLogger
from flrl.types import RoundRecord, ServerState


class Loggers(Callback):
    """Any number of Lightning loggers; `step` is the round.

    After a resume the rounds before it are logged again, so that each log is complete.

    Args:
        loggers: by name, as in `conf/logger/`.
    """

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self.loggers = dict(loggers)
        self._run: RunInfo

    def setup(self, run: RunInfo) -> None:
        """Log the resolved configuration."""
        self._run = run
        with _folders_that_exist():
            for logger in self.loggers.values():
                logger.log_hyperparams(dict(run.config))
                if isinstance(logger, FlrlWandbLogger):
                    logger.log_start(run)

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Log the rounds before a resumed state."""
        for record in history:
            self._log(record)

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Log the round."""
        self._log(history[-1])

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Give W&B the final model and the partition."""
        for logger in self.loggers.values():
            if isinstance(logger, FlrlWandbLogger):
                logger.log_end(self._run, history)
            logger.finalize("success")

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Write out what is logged."""
        for logger in self.loggers.values():
            logger.finalize("failed")

    def close(self) -> None:
        """End the W&B runs: a sweep's next job starts its own."""
        for logger in self.loggers.values():
            if isinstance(logger, FlrlWandbLogger):
                logger.finish()

    def _log(self, record: RoundRecord) -> None:
        numbers = {name: value for name, value in record.metrics.items() if math.isfinite(value)}
        with _folders_that_exist():
            for logger in self.loggers.values():
                logger.log_metrics(numbers | {"round": record.round}, step=record.round)
                logger.save()


@contextlib.contextmanager
def _folders_that_exist() -> Iterator[None]:
    """After a resume the CSV logger finds its folder, and is about to get all rows again: no need to warn."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
        yield
