"""What a run takes to reach a target value of a metric: rounds, bytes, seconds."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from flrl.config import lower_is_better


def asked(config: Mapping[str, Any]) -> tuple[str, float] | None:
    """The metric and the value of a configuration's `target`; None if it has none.

    Raises:
        ValueError: it has one of the two alone, or the value is not finite.
    """
    target = config.get("target") or {}
    metric, value = target.get("metric"), target.get("value")
    if metric is None and value is None:
        return None
    if metric is None:
        raise ValueError(f"target.value={value}: target.metric must name what is to reach it, such as test/accuracy")
    if value is None or not math.isfinite(value):
        raise ValueError(
            f"target.value={'null' if value is None else value}: must be the number that {metric} is to reach"
        )
    return str(metric), float(value)


def reaches(value: Any, target: float, *, lower: bool) -> bool:
    """Whether a metric's value is a number that reaches the target: from above if `lower`."""
    return _is_number(value) and (value <= target if lower else value >= target)


def reached(rows: Iterable[Mapping[str, Any]], metric: str, target: float, *, lower: bool) -> dict[str, float] | None:
    """What had been spent where the best value so far crosses a target, by linear interpolation.

    McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, arXiv 1602.05629, section 3: the curve is made monotonic by taking the best value
    over all prior rounds; where it crosses the target, on the line between two evaluations, is the number of rounds. If
    the first evaluation is there already, it is that one's round.

    Args:
        rows: as in `metrics.jsonl`, in order, those without the metric too.
        metric: the metric's name; values that are not finite do not count.
        target: the value.
        lower: whether the metric is to fall to it.

    Returns:
        `rounds`; `bytes`, sent and received by all clients, summed; `seconds` of all rounds; `virtual_seconds` where
        rows have `time/virtual_s`. None if the target was not reached.

    Example:
        >>> rows = [{"round": 1, "test/accuracy": 0.5}, {"round": 2, "test/accuracy": 0.9}]
        >>> reached(rows, "test/accuracy", 0.8, lower=False)["rounds"]
        1.75
    """
    spent, best, before = {"bytes": 0.0, "seconds": 0.0}, math.nan, None
    for row in rows:
        spent["bytes"] += _number(row.get("comm/up_bytes")) + _number(row.get("comm/down_bytes"))
        spent["seconds"] += _number(row.get("time/round_s"))
        virtual = row.get("time/virtual_s")
        if not _is_number(row.get(metric)):
            continue
        value = float(row[metric])
        here = {"rounds": float(row["round"]), **spent}
        here["virtual_seconds"] = _number(virtual, 0.0 if row["round"] == 0 else math.nan)
        if reaches(value, target, lower=lower):
            start = here if before is None else before
            share = 1.0 if before is None else (target - best) / (value - best)
            found = {name: start[name] + share * (here[name] - start[name]) for name in here}
            if not _is_number(virtual) or math.isnan(found["virtual_seconds"]):
                del found["virtual_seconds"]
            return found
        best = value if before is None else (min if lower else max)(best, value)
        before = here
    return None


def summary_of(config: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """What `summary.json` has of a run's target: `rounds_to_target`, `bytes_to_target`, `virtual_seconds_to_target`.

    Args:
        config: the run's; there is nothing to say if it has no target.
        rows: as for `reached`.
    """
    target = asked(config)
    if target is None:
        return {}
    found = reached(rows, *target, lower=lower_is_better(target[0])) or {}
    return {f"{name}_to_target": found.get(name) for name in ("rounds", "bytes", "virtual_seconds")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any, default: float = 0.0) -> float:
    return float(value) if _is_number(value) else default
