"""Ten kills of `benchmarks/chaos.py`; the benchmark itself does two hundred."""

import json
from pathlib import Path

import pytest

from benchmarks.chaos import main

WITH_MPI = pytest.param(("serial", "process", "mpi"), marks=pytest.mark.mpi)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("backends", [("serial",), WITH_MPI], ids=" ".join)
def test_ten_kills_at_random_times_change_nothing(
    backends: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--kills", "10", "--backends", *backends, "--output", str(tmp_path / "chaos.json")])
    report = json.loads((tmp_path / "chaos.json").read_text())
    print(capsys.readouterr().out)
    assert len(report["kills"]) == 10
    assert [kill for kill in report["kills"] if kill["differences"]] == []
    assert len([kill for kill in report["kills"] if not kill["too_late"]]) >= 5
    found = {kill["backend"] for kill in report["kills"]}
    assert found == set(backends)
