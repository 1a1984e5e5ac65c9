"""The record of a round: its metrics, and those of its clients, as one row of `metrics.jsonl`."""

import math
from collections.abc import Mapping

from flrl.types import Aggregate, RoundRecord


def evaluation_record(metrics: Mapping[str, float], digest: str) -> RoundRecord:
    """The record of the evaluation before training, as round 0."""
    return RoundRecord(round=0, metrics=dict(metrics), digest=digest)


def round_record(round: int, metrics: Mapping[str, float], digest: str, result: Aggregate) -> RoundRecord:
    """The record of a round, from its metrics and its clients' reports.

    Clients' metrics are averaged over the accepted clients that reported them, weighted by samples; counts of
    `transforms/` are summed. All sums are correctly rounded, so they do not depend on order.

    Args:
        round: the round, counted from 1.
        metrics: the round's own metrics, which replace those of clients with the same names.
        digest: the global model's digest after the round.
        result: the round's aggregate.
    """
    accepted = [report for report in result.reports if report.rejected is None]
    numbers: dict[str, float] = {}
    for name in sorted({name for report in accepted for name in report.metrics}):
        pairs = [(report.metrics[name], report.num_samples) for report in accepted if name in report.metrics]
        if name.startswith("transforms/"):
            numbers[name] = math.fsum(value for value, _ in pairs)
        elif all(math.isfinite(value) for value, _ in pairs):
            numbers[name] = math.fsum(v * n for v, n in pairs) / sum(n for _, n in pairs)
        else:
            numbers[name] = math.nan
    numbers |= {
        "clients/num": float(len(result.reports)),
        "clients/rejected": float(len(result.reports) - len(accepted)),
        "comm/up_bytes": float(sum(report.up_bytes for report in result.reports)),
    }
    return RoundRecord(round=round, metrics={**numbers, **metrics}, digest=digest, reports=tuple(result.reports))
