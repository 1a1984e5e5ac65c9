"""The audit of robust rules: a sweep over adversaries, rules and numbers of malicious clients, as table and picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flrl.audit.pictures import HeatMap, heat_maps
from flrl.audit.table import Row, SweepTable, distinct, finished_jobs, mean_of, some
from flrl.sweeps import write_csv

ACCURACY, BACKDOOR = "test/accuracy", "test/backdoor_success"
TABLE, PICTURE = "robustness.csv", "robustness.png"
_SHOWN = (ACCURACY, BACKDOOR, "test/loss", "adversary/num", "aggregator/precision", "aggregator/recall")


class RobustnessAudit(SweepTable):
    """A Hydra callback that writes `robustness.csv` as jobs finish, and `robustness.png` after the last one."""

    table = TABLE

    def rows(self, sweep: Path) -> list[Row]:
        """See `rows_of`."""
        return rows_of(sweep)

    def finish(self, sweep: Path) -> None:
        """See `audit`."""
        audit(sweep)


def audit(sweep: Path) -> None:
    """Write the table and the picture of the finished jobs in a sweep's folder, and print where they are.

    Raises:
        ValueError: no job has finished there.
    """
    rows = some(rows_of(sweep), sweep)
    write_csv(sweep / TABLE, rows)
    print(sweep / TABLE)
    if maps := maps_of(rows):
        heat_maps(maps, f"{len(rows)} runs, in %").savefig(sweep / PICTURE, dpi=150)
        print(sweep / PICTURE)


def rows_of(sweep: Path) -> list[Row]:
    """A row for each finished job: adversary, rule, number of malicious clients, seed, and the last round's numbers."""
    rows = []
    for folder, job in finished_jobs(sweep):
        adversary = job["choices"].get("adversary", "none")
        before = job["choices"].get("strategy/aggregator/before", "none")
        rule = job["choices"].get("strategy/aggregator", "mean")
        row = {
            "job": folder.relative_to(sweep).as_posix(),
            "adversary": adversary,
            "aggregator": rule if before in ("none", None) else f"{before}, {rule}",
            "malicious": job["config"]["vars"].get("malicious"),
            "clients": job["metrics"].get("clients/num"),
            "seed": job["seed"],
            "rounds": job["rounds"],
        }
        numbers = {name: job["metrics"][name] for name in _SHOWN if job["metrics"].get(name) is not None}
        rows.append({**row, **numbers, "seconds": job["wall_time_s"], "digest": job["digest"]})
    return rows


def maps_of(rows: Sequence[Row]) -> list[HeatMap]:
    """The heat maps: accuracy under attack, success of backdoors, and what a rule costs where nobody attacks."""
    rules = distinct(rows, "aggregator")
    adversaries = [name for name in distinct(rows, "adversary") if name != "none"]
    attacked = [row for row in rows if row["adversary"] != "none"]
    numbers = sorted(distinct(attacked or rows, "malicious"), key=lambda number: (number is None, number))
    cells = [(adversary, number) for adversary in adversaries for number in numbers]
    maps = []
    if attacked:
        maps.append(_map("test accuracy under attack", rows, rules, cells, ACCURACY))
    backdoors = [cell for cell in cells if mean_of(rows, BACKDOOR, adversary=cell[0]) is not None]
    if backdoors:
        title = "backdoor success: triggered test images taken for the target"
        maps.append(_map(title, rows, rules, backdoors, BACKDOOR))
    return [*maps, *_costs(rows, rules)]


def _costs(rows: Sequence[Row], rules: Sequence[str]) -> list[HeatMap]:
    """What a rule that is set for so many malicious clients costs where there are none: accuracy below the mean's."""
    numbers = sorted(distinct([row for row in rows if row["adversary"] == "none"], "malicious"), key=str)
    mean = next((rule for rule in ("row_mean", "mean") if rule in rules), None)
    if not numbers or mean is None:
        return []
    accuracies = _map("", rows, rules, [("none", number) for number in numbers], ACCURACY).values
    reference = accuracies[rules.index(mean)]
    costs = [
        [None if a is None or b is None else b - a for a, b in zip(row, reference, strict=True)] for row in accuracies
    ]
    columns = [("none of so many", str(number)) for number in numbers]
    return [HeatMap(f"cost without attack: test accuracy below that of {mean}", rules, columns, costs, high=0.2)]


def _map(
    title: str, rows: Sequence[Row], rules: Sequence[str], cells: Sequence[tuple[str, Any]], metric: str
) -> HeatMap:
    values = [
        [mean_of(rows, metric, aggregator=rule, adversary=adversary, malicious=number) for adversary, number in cells]
        for rule in rules
    ]
    columns = [(adversary, str(number)) for adversary, number in cells]
    return HeatMap(title, rules, columns, values)
