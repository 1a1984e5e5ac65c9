"""A run's result: its metrics, their best and newest values, and how the pages write numbers."""

from typing import Any

from flrl.config import lower_is_better
from flrl.reporting.folder import RunFiles


def best(run: RunFiles, metric: str) -> tuple[Any, int] | None:
    """The best value of a metric and its first round: the lowest of losses and errors, else the highest."""
    found = [(row[metric], -row["round"]) for row in run.rows if isinstance(row.get(metric), int | float)]
    if not found:
        return None
    value, round = min(found, key=lambda one: (one[0], -one[1])) if lower_is_better(metric) else max(found)
    return value, -round


def headlines(run: RunFiles) -> list[str]:
    """The metrics that are a run's result: what `optimized_metric` names, and what is measured on the test set."""
    names = [run.config.get("optimized_metric"), *(name for name in run.metrics() if name.startswith("test/"))]
    there = run.metrics()
    return [name for name in dict.fromkeys(names) if name in there]


def last(run: RunFiles, metric: str) -> Any:
    """The newest value of a metric."""
    values = [row[metric] for row in run.rows if row.get(metric) is not None]
    return values[-1] if values else None


def number(value: Any) -> str:
    """A number as the page's text has it."""
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) and abs(value) >= 1e-3 else f"{value:.4g}"
