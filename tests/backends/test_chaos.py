"""Some kills of `benchmarks/chaos.py`; the benchmark itself does two hundred."""

import json
from pathlib import Path

import pytest

from benchmarks.chaos import main

WITH_MPI = pytest.param(10, ("serial", "process", "mpi"), marks=pytest.mark.mpi)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "backends"),
    [
        pytest.param(2, ("serial",), marks=pytest.mark.slow),
        pytest.param(10, ("serial",), marks=pytest.mark.slow),
        WITH_MPI,
    ],
    ids=["2 serial", "10 serial", "10 on all"],
)
def test_kills_at_random_times_change_nothing(
    kills: int, backends: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--kills", str(kills), "--backends", *backends, "--output", str(tmp_path / "chaos.json")])
    report = json.loads((tmp_path / "chaos.json").read_text())
    print(capsys.readouterr().out)
    assert len(report["kills"]) == kills
    assert [kill for kill in report["kills"] if kill["differences"]] == []
    assert len([kill for kill in report["kills"] if not kill["too_late"]]) >= kills / 2
    found = {kill["backend"] for kill in report["kills"]}
    assert found == set(backends)
