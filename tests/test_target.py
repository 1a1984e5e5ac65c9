"""Targets: where the best value so far crosses them, and the run that stops there."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flrl.callbacks import Target
from flrl.callbacks.lines import target_line
from flrl.target import asked, reached, summary_of
from flrl.types import ClientReport, RoundRecord

ROUND = {"comm/up_bytes": 10, "comm/down_bytes": 20, "time/round_s": 0.5}


def rows(*values: float | None, metric: str = "a", virtual: bool = False, start: int = 1) -> list[dict[str, Any]]:
    """Each round costs 30 bytes and half a second, and 2 s, then 4 s, 6 s, ... on the virtual clock."""
    return [
        {"round": r, **ROUND}
        | ({} if v is None else {metric: v})
        | ({"time/virtual_s": r * (r + 1.0)} if virtual else {})
        for r, v in enumerate(values, start=start)
    ]


@pytest.mark.parametrize(
    ("values", "target", "rounds"),
    [
        ((0.5, 0.9), 0.8, 1.75),
        ((0.5, 0.9), 0.9, 2.0),
        ((0.5, 0.9), 0.5, 1.0),
        ((0.5, 0.9), 0.4, 1.0),
        ((0.5, 0.9), 0.91, None),
        ((0.6, 0.2, 0.4, 1.0), 0.8, 3.5),  # the best so far is 0.6 until round 3
        ((0.6, 0.2, 0.8, 0.1), 0.8, 3.0),
        ((0.5, None, None, 0.8), 0.6, 2.0),  # the curve has no points at 2 and 3
        ((None, None, 0.8), 0.6, 3.0),
        ((0.5, math.nan, 0.9), 0.7, 2.0),
        ((0.5, math.inf), 0.7, None),
        ((), 0.7, None),
    ],
)
def test_the_best_value_so_far_crosses_the_target_between_two_evaluations(
    values: Any, target: float, rounds: float | None
) -> None:
    found = reached(rows(*values), "a", target, lower=False)
    assert found == (
        None if rounds is None else pytest.approx({"rounds": rounds, "bytes": 30 * rounds, "seconds": rounds / 2})
    )
    below = reached(rows(*(None if v is None else -v for v in values)), "a", -target, lower=True)
    assert below == (None if found is None else pytest.approx(found))


def test_virtual_seconds_are_those_of_rows_and_none_before_the_first_round() -> None:
    assert reached(rows(0.5, 0.6, 0.8, virtual=True), "a", 0.7, lower=False)["virtual_seconds"] == pytest.approx(
        9
    )  # 6, 12
    before = {"round": 0, "a": 0.0}
    assert reached([before, *rows(0.8, virtual=True)], "a", 0.4, lower=False) == {
        "rounds": 0.5,
        "bytes": 15.0,
        "seconds": 0.25,
        "virtual_seconds": 1.0,
    }
    assert reached([before], "a", 0.0, lower=False) == {"rounds": 0.0, "bytes": 0.0, "seconds": 0.0}


def test_a_summary_has_what_the_target_took_and_the_result_says_it() -> None:
    config = {"target": {"metric": "test/accuracy", "value": 0.8}}
    found = rows(0.5, 0.9, metric="test/accuracy", virtual=True)
    assert summary_of(config, found) == pytest.approx(
        {"rounds_to_target": 1.75, "bytes_to_target": 52.5, "virtual_seconds_to_target": 5.0}
    )
    assert summary_of(config, found[:1]) == dict.fromkeys(
        ("rounds_to_target", "bytes_to_target", "virtual_seconds_to_target")
    )
    assert summary_of({}, found) == summary_of({"target": {"metric": None, "value": None}}, found) == {}
    history = [RoundRecord(row.pop("round"), row, "") for row in found]
    line = "target  test/accuracy [bold]80.00 %[/] after 1.8 rounds, 52 B, 5.0 virtual seconds"
    assert target_line(config, history) == line
    assert target_line(config, history[:1]) == "target  test/accuracy [bold]80.00 %[/] was not reached"
    assert target_line({}, history) is None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"metric": None, "value": 0.9}, r"^target\.value=0\.9: target\.metric must name"),
        ({"metric": "test/loss", "value": None}, r"^target\.value=null: must be the number that test/loss is to reach"),
        ({"metric": "test/loss", "value": math.nan}, r"^target\.value=nan: must be the number"),
    ],
)
def test_a_target_is_a_metric_and_a_number(target: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked({"target": target})


def test_it_stops_by_the_history_alone() -> None:
    history = [RoundRecord(r, {"test/loss": v} if v else {}, "") for r, v in enumerate((2.0, None, 1.0, 3.0), start=1)]
    losses = Target(metric="test/loss", value=1.5)
    assert [bool(losses.should_stop(history[:end])) for end in range(5)] == [False, False, False, True, True]
    assert losses.should_stop(history) == "test/loss has reached 1.5"
    assert Target(metric="test/accuracy", value=0.5).should_stop(history) is None


def test_a_metric_that_nothing_logs_ends_the_run_after_the_first_evaluation() -> None:
    reports = (ClientReport(0, 10, 1, {"train/loss": 1.0}, 4),)
    record = RoundRecord(1, {"train/loss": 1.0, "test/loss": 2.0}, "", reports)
    with pytest.raises(
        ValueError, match=r"^target\.metric=test/lost: nothing of that name is logged; there are: test/l"
    ):
        Target(metric="test/lost", value=1.0).on_round_end(None, [record])  # type: ignore[arg-type]


TARGET = ["strategy.rounds=50", "target.metric=test/accuracy", "target.value=0.8", "logger=none"]


def test_a_run_stops_there(cli: Any) -> None:
    done = cli(*TARGET, "hydra.run.dir=whole")
    summary = json.loads(Path("whole/summary.json").read_text())
    found = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    accuracies = [row["test/accuracy"] for row in found]
    assert [accuracy >= 0.8 for accuracy in accuracies] == [False] * (len(found) - 1) + [True]
    best = max(accuracies[:-1])
    rounds = len(found) - 2 + 1 + (0.8 - best) / (accuracies[-1] - best)
    assert summary["rounds_to_target"] == pytest.approx(rounds)
    sent = found[0]["comm/up_bytes"] + found[0]["comm/down_bytes"]
    assert summary["bytes_to_target"] == pytest.approx(rounds * sent)
    assert summary["virtual_seconds_to_target"] is None
    assert f"target  test/accuracy 80.00 % after {rounds:.1f} rounds, " in done.out


@pytest.mark.slow
def test_a_resumed_run_stops_there_too(cli: Any) -> None:
    cli(*TARGET, "hydra.run.dir=whole")
    cli("strategy.rounds=1", "logger=none", "hydra.run.dir=parts")
    cli("resume=parts", *TARGET)
    whole, resumed = (json.loads(Path(folder, "summary.json").read_text()) for folder in ("whole", "parts"))
    for name in ("digest", "rounds", "rounds_to_target", "bytes_to_target"):
        assert resumed[name] == whole[name]
