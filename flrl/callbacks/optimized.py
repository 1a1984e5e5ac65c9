"""Says when the metric that `optimized_metric` names is not among those that the evaluation gives."""

import logging
from collections.abc import Sequence

from flrl.callbacks.base import Callback
from flrl.types import RoundRecord, ServerState

log = logging.getLogger(__name__)
_OF_TRAINING = ("train/", "time/", "comm/", "transforms/", "clients/num", "clients/rejected")


class OptimizedMetric(Callback):
    """Looks for the metric in the first round that is evaluated.

    Args:
        name: of the metric; null looks for none.
        required: its absence ends the run; otherwise it is a warning.
    """

    def __init__(self, *, name: str | None, required: bool) -> None:
        self.name = name
        self.required = required

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Raise ValueError, or warn, after the first evaluation."""
        *earlier, record = history
        if self.name is None or self.name in record.metrics or not evaluated(record):
            return
        if any(self.name in before.metrics or evaluated(before) for before in earlier):
            return
        there = ", ".join(sorted([*evaluated(record), *(n for n in record.metrics if n.startswith("train/"))]))
        message = f"optimized_metric={self.name}: nothing of that name is logged; there are: {there}"
        if self.required:
            raise ValueError(message)
        log.warning("%s", message)


def evaluated(record: RoundRecord) -> list[str]:
    """The names of a round's metrics that its evaluation gave, in the order of their logging.

    What clients have logged while they trained is left out as long as their reports are there.
    """
    trained = {name for report in record.reports for name in report.metrics}
    return [name for name in record.metrics if not name.startswith(_OF_TRAINING) and name not in trained]
