"""The benchmarks in small: that they run, and that their sides do the same work. No time is asserted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import drift, partitions, run
from benchmarks.gpu import __main__ as gpu

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
    # Rounding may turn a few of 10,000 images; on 300 steps of rate 0.1 (B) it grows.
    assert max(accuracies.values()) - min(accuracies.values()) < {"B": 0.01}.get(job, 0.002)
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


def test_all_that_a_gpu_is_asked_can_be_asked_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--quick", "--jobs", "C", "--output", str(output)])  # exits if a part fails
    parts = json.loads(output.read_text())["parts"]
    assert list(parts) == [f"{part} C" for part in gpu.PARTS]
    rows = {part.removesuffix(" C"): {row[0]: row[1:] for row in table["rows"]} for part, table in parts.items()}
    assert not any(table["failures"] for table in parts.values())
    assert {"bare loop", "eager", "traced", "vectorized", "lightning"} <= rows["rounds"].keys()
    assert len({accuracy for _, _, accuracy in rows["rounds"].values()}) == 1
    assert all(same == ["yes"] * 3 and far < 1e-6 for *same, far in rows["digests"].values())
    assert [same for _, same in rows["workers"].values()] == ["yes"] * 2
    assert rows["streams"].keys() == {"k = 1", "k = 2"}
    assert {"replay as a CUDA graph", "recording, reduce-overhead"} <= rows["graphs"].keys()
    assert rows["memory"]["eager"] == ["needs CUDA"] * 2
    assert "traced, bf16-mixed" in rows["precision"]
    printed = capsys.readouterr().out
    assert printed.startswith("Dry run, numbers mean nothing: ")
    assert all(table["title"] in printed for table in parts.values())
    assert all(f"## {table['title']}" in output.with_suffix(".md").read_text() for table in parts.values())


def test_what_a_gpu_cannot_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(gpu.PARTS, "streams", lambda settings, job: 1 / 0)
    wanted = ["--parts", "streams", "transfers", "--jobs", "C", "--output", str(tmp_path / "gpu.json")]
    with pytest.raises(SystemExit) as end:
        gpu.main(["--device", "cpu", "--quick", *wanted])
    assert end.value.code == "failed:\nstreams C: streams: ZeroDivisionError: division by zero"
    assert "| traced, on the device |" in capsys.readouterr().out  # the rest goes on


def test_drift_is_measured_and_drawn(tmp_path: Path) -> None:
    found = drift.measure(30, equal=(1, 8), unequal=(2,))
    distances = {name: [*parts["equal"].values(), *parts["unequal"].values()] for name, parts in found.items()}
    assert all(distances["FedAvg"][i] > 0.1 for i in (1, 2))
    assert distances["FedNova"][2] < distances["FedAvg"][2] / 3
    assert all(max(distances[name][1:]) < 1e-5 for name in ("SCAFFOLD", "FedDyn, alpha 3", "FedLin", "FedDC, alpha 3"))
    assert len(drift.table(found).splitlines()) == 2 + len(drift.STRATEGIES)
    drift.draw(found, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").stat().st_size > 10_000


def test_partitions_are_drawn(tmp_path: Path) -> None:
    partitions.draw(tmp_path / "partitions.png", clients=5)
    assert (tmp_path / "partitions.png").stat().st_size > 10_000
