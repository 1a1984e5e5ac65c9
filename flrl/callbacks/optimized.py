"""Reports when a metric that a key of the configuration names is not among the logged ones."""

import logging
from collections.abc import Sequence

from flrl.callbacks.base import Callback
from flrl.records import evaluated
from flrl.types import RoundRecord, ServerState

log = logging.getLogger(__name__)


class OptimizedMetric(Callback):
    """Checks after the first evaluation that the metric is logged.

    Args:
        name: the metric's name; null checks nothing.
        required: whether its absence ends the run; otherwise it is a warning.
        key: the key of the configuration that names it.
    """

    def __init__(self, *, name: str | None, required: bool, key: str = "optimized_metric") -> None:
        self.name = name
        self.required = required
        self.key = key

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """After the first evaluation, warn if the metric is missing.

        Raises:
            ValueError: it is missing, and required.
        """
        *earlier, record = history
        if self.name is None or self.name in record.metrics or not evaluated(record):
            return
        if any(self.name in before.metrics or evaluated(before) for before in earlier):
            return
        there = ", ".join(sorted([*evaluated(record), *(n for n in record.metrics if n.startswith("train/"))]))
        message = f"{self.key}={self.name}: nothing of that name is logged; there are: {there}"
        if self.required:
            raise ValueError(message)
        log.warning("%s", message)
