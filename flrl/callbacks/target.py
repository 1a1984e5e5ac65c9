"""Stops a run once a metric has reached its target."""

from collections.abc import Sequence

from flrl.callbacks.optimized import OptimizedMetric
from flrl.config import lower_is_better
from flrl.target import reaches
from flrl.types import RoundRecord


class Target(OptimizedMetric):
    """Stops after the evaluation that reaches a value; a metric that nothing logs ends the run after the first one.

    Args:
        metric: the metric's name; `flrl.config.lower_is_better` says from which side it comes.
        value: the value.
    """

    def __init__(self, *, metric: str, value: float) -> None:
        super().__init__(name=metric, required=True, key="target.metric")
        self.value = value

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        """Stop if a round has reached the value."""
        name, lower = str(self.name), lower_is_better(str(self.name))
        there = any(reaches(record.metrics.get(name), self.value, lower=lower) for record in history)
        return f"{name} has reached {self.value:g}" if there else None
