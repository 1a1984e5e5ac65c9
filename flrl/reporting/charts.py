"""The charts of a run as data: what is drawn together, under which title."""

from collections.abc import Mapping, Sequence
from typing import Any

from flrl.reporting.folder import QUANTILES

Chart = dict[str, Any]
MAX_ROUNDS = 1000
MAX_CLIENTS = 200
MAX_CLASSES = 40
_STATISTICS = ("_weighted_mean", "_mean", "_std", "_worst10", "_gini", "_jain")
_ATTACKED = ("adversary/", "aggregator/", "test/backdoor_success", "test/source_accuracy")
_ELSEWHERE = ("time/", "comm/")


def kept(rounds: Sequence[int]) -> list[int]:
    """The places of at most `MAX_ROUNDS` rounds at even distances, the last one among them.

    Example:
        >>> kept(range(1, 5))
        [0, 1, 2, 3]
        >>> len(kept(range(2501))), kept(range(2501))[:3], kept(range(2501))[-1]
        (835, [0, 3, 6], 2500)
    """
    step = -(-len(rounds) // MAX_ROUNDS)
    return sorted({*range(0, len(rounds), step), len(rounds) - 1})


def group(name: str) -> tuple[str, str]:
    """The section and the chart that a metric belongs to.

    Example:
        >>> group("test/loss"), group("train/loss"), group("clients/global/loss_worst10")
        (('curves', 'loss'), ('curves', 'loss'), ('clients', 'clients/global/loss'))
        >>> group("updates/norm_mean")
        ('curves', 'updates/norm')
    """
    if name.startswith(_ATTACKED):
        return "adversaries", "found by the rule" if name.startswith("aggregator/") else name
    if name.startswith("transforms/"):
        return "curves", name.rpartition("/")[0]
    if name.startswith("updates/"):
        return "curves", name.partition("_")[0]
    if name.startswith(("clients/num", "clients/rejected")):
        return "curves", "cohort"
    if name.startswith(("clients/", "held_out_clients/")):
        return "clients", next((name.removesuffix(end) for end in _STATISTICS if name.endswith(end)), name)
    return "curves", name.rpartition("/")[2]


def curves(metrics: Mapping[str, Sequence[Any]], section: str) -> list[Chart]:
    """Line charts of the metrics that belong to a section, those of the same kind in one."""
    charts: dict[str, Chart] = {}
    for name, values in metrics.items():
        where, title = group(name)
        if where != section or name.startswith(_ELSEWHERE) or not any(isinstance(v, int | float) for v in values):
            continue
        made = charts.setdefault(title, {"kind": "line", "title": title, "xlabel": "round", "unit": "", "series": []})
        made["series"].append({"name": name, "metric": name})
    for chart in charts.values():
        if len(chart["series"]) == 1:
            chart["title"] = chart["series"][0]["name"]
    return sorted(charts.values(), key=lambda chart: chart["title"] == "cohort")


def thinned(chart: Chart, places: Sequence[int]) -> Chart:
    """A chart with the values at some rounds alone; one that is not of rounds stays as it is."""

    def those(line: Mapping[str, Any]) -> dict[str, Any]:
        return {k: [v[at] for at in places] if isinstance(v, list) else v for k, v in line.items()}

    if "x" in chart:
        return chart
    return {**chart, **{name: [*map(those, chart[name])] for name in ("series", "bands") if name in chart}}


def traffic(metrics: Mapping[str, Sequence[Any]]) -> list[Chart]:
    """The bytes that were sent up and down, by round and summed over rounds; `metrics` are those of all rounds."""
    names = [name for name in ("comm/up_bytes", "comm/down_bytes") if name in metrics]
    if not names:
        return []
    each = [{"name": name, "metric": name} for name in names]
    sums = []
    for name in names:
        total, values = 0, []
        for value in metrics[name]:
            total += value or 0
            values.append(total)
        sums.append({"name": f"{name}, summed", "y": values})
    made = {"kind": "line", "xlabel": "round", "unit": "B"}
    return [
        {**made, "title": "bytes by round", "series": each},
        {**made, "title": "bytes until a round", "series": sums},
    ]


def seconds(metrics: Mapping[str, Sequence[Any]]) -> dict[str, list[float]]:
    """The seconds of each round by what they went into; what no metric names is evaluation and the rest."""
    whole = [value or 0.0 for value in metrics.get("time/round_s", [])]
    parts = {
        name.removeprefix("time/").removesuffix("_s"): [value or 0.0 for value in values]
        for name, values in metrics.items()
        if name.startswith("time/") and name != "time/round_s"
    }
    rest = [max(0.0, total - sum(part[at] for part in parts.values())) for at, total in enumerate(whole)]
    return {**parts, "evaluate": rest} if whole else parts


def spread(name: str, quantiles: Mapping[int, Sequence[float]], rounds: Sequence[int]) -> Chart:
    """A metric's distribution over clients by round: the median, the range, and the middle half and four fifths."""
    chosen = [quantiles.get(round) for round in rounds]

    def line(at: int) -> list[float | None]:
        return [None if of is None else float(f"{of[at]:.6g}") for of in chosen]

    lowest, tenth, quarter, median, upper, ninth, highest = (line(at) for at in range(len(QUANTILES)))
    series = [{"name": "median", "y": median}, {"name": "highest", "y": highest}, {"name": "lowest", "y": lowest}]
    bands = [
        {"name": "10 % to 90 %", "low": tenth, "high": ninth},
        {"name": "25 % to 75 %", "low": quarter, "high": upper},
    ]
    made = {"kind": "line", "title": f"{name} of clients", "xlabel": "round", "unit": "B" if "bytes" in name else ""}
    return {**made, "series": series, "bands": bands}


def divided(sizes: Sequence[int], counts: Sequence[Sequence[int]] | None) -> Chart:
    """Training samples by client, and by class where classes are known; of many clients some at even distances."""
    number = min(len(sizes), MAX_CLIENTS)
    shown = sorted({round(at * (len(sizes) - 1) / max(1, number - 1)) for at in range(number)})
    if counts is None or len(counts[0]) > MAX_CLASSES:
        series = [{"name": "training samples", "y": [int(sizes[client]) for client in shown]}]
    else:
        columns = range(len(counts[0]))
        series = [{"name": f"class {k}", "y": [int(counts[client][k]) for client in shown]} for k in columns]
    some = "" if len(shown) == len(sizes) else f" ({len(shown)} of {len(sizes)} clients)"
    title = f"training samples by client{some}"
    return {"kind": "stack", "title": title, "xlabel": "client", "unit": "", "x": shown, "series": series}
