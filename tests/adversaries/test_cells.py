"""Every rule against every adversary, one digest on every backend: `pytest -m mpi tests/adversaries/test_cells.py`."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.adversaries.cells import cells
from tests.backends.launch import MPIEXEC, ROOT

CELLS = [f"{rule} against {kind}" for rows in (True, False) for rule, kind in cells(rows=rows)]
MPI = [MPIEXEC, "--oversubscribe", "-n", "3"]
PREFIXES: dict[str, list[str]] = {"serial": [], "process": [], "mpi": MPI}

pytestmark = [pytest.mark.mpi, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was noted of each cell, by backend."""
    found = {}
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMPI_MCA_btl": "self,sm"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    for name, prefix in PREFIXES.items():
        output = tmp_path_factory.mktemp("cells") / f"{name}.json"
        command = [*prefix, sys.executable, "-m", "tests.adversaries.cells", name, str(output)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=850)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
        found[name] = json.loads(output.read_text())
    return found


@pytest.mark.parametrize("cell", CELLS)
def test_one_digest_on_every_backend(noted: dict[str, Any], cell: str) -> None:
    assert len(noted["serial"][cell]) == 2
    for backend in ("process", "mpi"):
        assert noted[backend][cell] == noted["serial"][cell]


def test_the_cells_are_different_runs(noted: dict[str, Any]) -> None:
    """Most rules and adversaries give another model; some rules give the same where nobody is an outlier."""
    digests = {rounds[-1][0] for rounds in noted["serial"].values()}
    assert len(digests) > 0.7 * len(CELLS)
