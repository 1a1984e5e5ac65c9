"""Ten kills of `benchmarks/chaos.py`; the benchmark itself does two hundred."""

import json
from pathlib import Path

import pytest

from benchmarks.chaos import main
from tests.backends.launch import MPIEXEC


@pytest.mark.timeout(590)
def test_ten_kills_at_random_times_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--kills", "10", "--output", str(tmp_path / "chaos.json")])
    report = json.loads((tmp_path / "chaos.json").read_text())
    print(capsys.readouterr().out)
    assert len(report["kills"]) == 10
    assert [kill for kill in report["kills"] if kill["differences"]] == []
    assert len([kill for kill in report["kills"] if not kill["too_late"]]) >= 5
    found = {kill["backend"] for kill in report["kills"]}
    assert found == {"serial", "process", "mpi"} - (set() if Path(MPIEXEC).exists() else {"mpi"})
