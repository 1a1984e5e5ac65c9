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
        """After the first evaluation of its kind, warn if the metric is missing.

        Raises:
            ValueError: it is missing, and required.
        """
        *earlier, record = history
        if self.name is None or self.name in record.metrics or not self._judges(record):
            return
        if not any(self.name in before.metrics or self._judges(before) for before in earlier):
            self._complain(record)

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Warn if there has been no evaluation of its kind.

        Raises:
            ValueError: there was none, and the metric is required.
        """
        rounds = [record for record in history if evaluated(record)]
        if self.name is None or any(self.name in record.metrics or self._judges(record) for record in history):
            return
        if rounds:
            self._complain(rounds[-1])

    def _judges(self, record: RoundRecord) -> bool:
        """Whether the metric would be among those of a round: one of clients is not in every evaluation."""
        kind = "clients/" if str(self.name).startswith("clients/") else ""
        return any(name.startswith(kind) for name in evaluated(record))

    def _complain(self, record: RoundRecord) -> None:
        there = ", ".join(sorted([*evaluated(record), *(n for n in record.metrics if n.startswith("train/"))]))
        message = f"{self.key}={self.name}: nothing of that name is logged; there are: {there}"
        if self.required:
            raise ValueError(message)
        log.warning("%s", message)
