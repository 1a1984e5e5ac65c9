"""The record of a round: its metrics, and those of its clients, as one row of `metrics.jsonl`."""

import math
from collections.abc import Mapping, Sequence

from flrl.types import Aggregate, ClientReport, RoundRecord

_OF_TRAINING = (
    "train/",
    "time/",
    "comm/",
    "transforms/",
    "aggregator/",
    "adversary/",
    "devices/",
    "schedule/",
    "privacy/",
    "clients/num",
    "clients/rejected",
    "updates/",
)
_OF_UPDATES = "update/"
"""Names of what is measured of each update begin with it; it stays in the clients' rows."""


def evaluation_record(metrics: Mapping[str, float], digest: str) -> RoundRecord:
    """The record of the evaluation before training, as round 0."""
    return RoundRecord(round=0, metrics=dict(metrics), digest=digest)


def round_record(round: int, metrics: Mapping[str, float], digest: str, result: Aggregate) -> RoundRecord:
    """The record of a round, from its metrics and its clients' reports.

    Clients' metrics are averaged over the accepted clients that reported them, weighted by samples; counts of
    `transforms/` are summed. All sums are correctly rounded, so they do not depend on order. What is measured of each
    update (`update/norm`) is summed up as `updates/...`, see `update_numbers`.

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
        if name.startswith(_OF_UPDATES):
            continue
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
    numbers |= update_numbers(accepted)
    return RoundRecord(round=round, metrics={**numbers, **metrics}, digest=digest, reports=tuple(result.reports))


def update_numbers(accepted: Sequence[ClientReport]) -> dict[str, float]:
    """What the reports of accepted updates say of the updates.

    `updates/norm_mean` and `updates/norm_max` are of the Euclidean norms as they were sent, buffers included.
    `updates/effective_clients` is (sum w)^2 / sum w^2 of their weights w: as many clients of equal weight would have a
    mean of the same variance (Kish, "Survey Sampling", 1965).

    Args:
        accepted: of the clients whose updates were not rejected.
    """
    numbers: dict[str, float] = {}
    norms = [report.metrics["update/norm"] for report in accepted if "update/norm" in report.metrics]
    if norms:
        numbers = {"updates/norm_mean": math.fsum(norms) / len(norms), "updates/norm_max": max(norms)}
    largest = max((report.weight for report in accepted), default=0.0)
    if largest > 0:
        shares = [report.weight / largest for report in accepted]
        numbers["updates/effective_clients"] = math.fsum(shares) ** 2 / math.fsum(share**2 for share in shares)
    return numbers


def adversary_numbers(reports: Sequence[ClientReport], *, exists: bool, selects: bool) -> dict[str, float]:
    """What a round's reports say of malicious clients, and of the filter of a rule that selects.

    `adversary/num` counts the malicious clients of the cohort that were active, and `aggregator/rejected` the filtered
    ones. Of the updates that the rule was given, `aggregator/precision` is the share of malicious ones among the
    filtered (absent if nothing was filtered), `aggregator/recall` the share of filtered ones among the malicious.

    Args:
        reports: of the cohort.
        exists: whether there is an adversary, with active clients or without.
        selects: whether the rule selects.
    """
    numbers = {"adversary/num": float(sum(report.malicious for report in reports))} if exists else {}
    if not selects:
        return numbers
    filtered = sum(report.filtered for report in reports)
    numbers["aggregator/rejected"] = float(filtered)
    malicious = [report for report in reports if report.malicious and report.rejected is None]
    if malicious:
        found = sum(report.filtered for report in malicious)
        numbers["aggregator/recall"] = found / len(malicious)
        if filtered:
            numbers["aggregator/precision"] = found / filtered
    return numbers


def evaluated(record: RoundRecord) -> list[str]:
    """The names of a round's metrics that come from its evaluation, in the order of their logging.

    Metrics that clients logged in training are left out if the record still has their reports.
    """
    trained = {name for report in record.reports for name in report.metrics}
    return [name for name in record.metrics if not name.startswith(_OF_TRAINING) and name not in trained]
