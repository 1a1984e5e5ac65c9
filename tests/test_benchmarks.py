"""The benchmarks in small: that they run, and that their sides do the same work. No time is asserted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("job", "options"),
    [
        ("A", ["--rounds", "1"]),
        ("B", ["--rounds", "1", "--cohort", "1", "--workers", "1", "--engines", "traced", "traced, fused"]),
        ("C", ["--rounds", "2", "--cohort", "4"]),
        ("S", ["--rounds", "2", "--cohort", "4"]),
    ],
)
def test_all_sides_of_a_job_do_the_same_work(
    job: str, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run.json"
    command = ["run", "--jobs", job, "--repetitions", "1", "--output", str(output), "--data", str(ROOT / "data")]
    monkeypatch.setattr(sys, "argv", [*command, *options])
    run.main()
    sides: dict[str, list[dict[str, Any]]] = json.loads(output.read_text())["jobs"][job]
    accuracies = {name: runs[0]["accuracy"] for name, runs in sides.items() if "2 threads" not in name}
    assert max(accuracies.values()) - min(accuracies.values()) < 0.002  # rounding may turn a few of 10,000 images
    digests: dict[str, set[str]] = {}
    for name, runs in sides.items():
        if "worker" in name:
            digests.setdefault(name.rpartition(", ")[0], set()).add(runs[0]["digest"])
    assert all(len(found) == 1 for found in digests.values())  # one worker or two
    if {"eager", "traced"} <= digests.keys():
        assert digests["eager"] == digests["traced"]
    printed = capsys.readouterr().out
    assert all(f"| {name} |" in printed for name in sides)
    assert output.with_suffix(".png").stat().st_size > 10_000
