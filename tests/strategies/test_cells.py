"""Every strategy under every engine has one digest on every backend, and is resumed after a kill on each of them.

pytest -m mpi -n 0 tests/strategies/test_cells.py     all cells on real processes
pytest -m slow -n 0 tests/strategies/test_cells.py    all cells with several workers in one process; `pytest`: a few
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flrl.callbacks import Callbacks
from flrl.recipe import Recipe
from flrl.runs.checkpoint import load_checkpoint, save_checkpoint
from flrl.types import ServerState
from tests.backends.launch import MPIEXEC, ROOT
from tests.strategies.cells import (
    DOUBLES,
    ENGINES,
    ROUNDS,
    SAVED,
    SENT_OTHERWISE,
    STRATEGIES,
    Noting,
    config_of,
    fingerprint,
    worker_of,
)
from tests.zoo.table import Workers

CELLS = [f"{strategy}, {engine}" for strategy in STRATEGIES for engine in ENGINES]
PREFIXES = {"serial": [], "process": [], "mpi": [MPIEXEC, "--oversubscribe", "-n", "3"]}
BY_DEFAULT = ("scaffold, traced", "fedbn, eager", "fedper, lightning")
WHOLE = pytest.mark.parametrize("cell", CELLS)

pytestmark = pytest.mark.timeout(10800)


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was noted of each cell, by backend."""
    folder = tmp_path_factory.mktemp("cells")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMPI_MCA_btl": "self,sm"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    found = {}
    for name, prefix in PREFIXES.items():
        command = [*prefix, sys.executable, "-m", "tests.strategies.cells", name, str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=7200)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
        found[name] = json.loads((folder / f"{name}.json").read_text())
    return found


def on_all(noted: dict[str, Any], cell: str) -> dict[str, Any]:
    """What was noted of a cell by backend, unless its engine refuses it everywhere for one reason."""
    cells = {name: found[cell] for name, found in noted.items()}
    for found in cells.values():
        assert "failed" not in found, found["failed"]
    refused = {found.get("refused") for found in cells.values()}
    assert len(refused) == 1
    if refused != {None}:
        reason = refused.pop()
        assert "trainer=" in reason or "strategy" in reason, reason
        assert cells["serial"]["killed_by"] is None
        pytest.skip(f"refused before the first round: {reason}")
    return cells


@pytest.mark.mpi
@WHOLE
def test_one_digest_on_every_backend(noted: dict[str, Any], cell: str) -> None:
    cells = on_all(noted, cell)
    assert len(cells["serial"]["rounds"]) == ROUNDS
    for backend in ("process", "mpi"):
        for key in ("rounds", "state"):
            assert cells[backend][key] == cells["serial"][key], (backend, key)


@pytest.mark.mpi
@WHOLE
def test_after_a_kill_each_backend_goes_on_to_the_undisturbed_end(noted: dict[str, Any], cell: str) -> None:
    cells = on_all(noted, cell)
    assert cells["serial"]["killed_by"] == -9
    for backend, found in cells.items():
        assert found["resumed"] == cells["serial"]["rounds"][SAVED:], backend
        assert found["resumed_state"] == cells["serial"]["state"], backend


@pytest.mark.mpi
@WHOLE
def test_counted_bytes_are_those_that_mpi_moved(noted: dict[str, Any], cell: str) -> None:
    """Process 0 broadcasts what a client is sent; sums of all numbers that clients send have 16 bytes a number."""
    found = on_all(noted, cell)["mpi"]
    if cell.split(", ")[0] in SENT_OTHERWISE:
        pytest.skip(SENT_OTHERWISE[cell.split(", ")[0]])
    for (down, up), (broadcast, reduced, clients) in zip(found["sent"], found["moved"], strict=True):
        assert down == broadcast * clients
        in_vectors, in_all = DOUBLES.get(cell.split(", ")[0], (0, 0))
        assert up == ((found["numbers"] - in_vectors) * found["dtype"] + 8 * in_all) * clients
        if reduced:  # rules on rows reduce nothing
            assert reduced == 16 * (found["numbers"] + 1)


@pytest.mark.mpi
def test_bits_of_engines(noted: dict[str, Any]) -> None:
    """Traced steps and a real Trainer have eager's bits, cell by cell; different strategies are different runs."""
    serial = noted["serial"]
    for strategy in STRATEGIES:
        eager = serial[f"{strategy}, eager"]
        for engine in ("traced", "lightning"):
            other = serial[f"{strategy}, {engine}"]
            if "refused" not in {*eager, *other}:
                assert other["rounds"][-1][0] == eager["rounds"][-1][0], (strategy, engine)
    ends = {found["rounds"][-1][0] for name, found in serial.items() if name.endswith(", eager") and "rounds" in found}
    assert len(ends) > 0.8 * len(STRATEGIES)


class Sharing(Workers):
    """The same, for `worker_of`."""

    def __init__(self) -> None:
        super().__init__([])

    def share(self, data: Any) -> Any:
        return data


def in_this_process(cell: str, workers: int, rounds: int, start: ServerState | None = None) -> tuple[Noting, Any]:
    """What is noted of a cell's rounds up to one, trained by several workers in this process."""
    strategy, engine = cell.split(", ")
    config = config_of(strategy, engine)
    recipe, backend = Recipe({**config, "strategy": {**config["strategy"], "rounds": rounds}}), Sharing()
    made = [worker_of(recipe, backend, start) for _ in range(workers)]
    backend.workers, noting = [worker for worker, _ in made], Noting()
    worker, state = made[0]
    layout = worker.model.layout
    callbacks = Callbacks([noting])
    return noting, worker.strategy.fit(state, backend=backend, layout=layout, seed=0, callbacks=callbacks)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=[] if cell in BY_DEFAULT else [pytest.mark.slow]) for cell in CELLS]
)
def test_two_workers_and_a_resume_by_one(cell: str, tmp_path: Path) -> None:
    try:
        whole, end = in_this_process(cell, 1, ROUNDS)
    except ValueError as error:
        assert cell not in BY_DEFAULT
        pytest.skip(f"refused before the first round: {error}")
    half, middle = in_this_process(cell, 2, SAVED)
    path = save_checkpoint(tmp_path, middle, {})
    rest, resumed = in_this_process(cell, 1, ROUNDS, load_checkpoint(path, {}))
    assert [row[0] for row in half.rounds + rest.rounds] == [row[0] for row in whole.rounds]
    assert rest.rounds == whole.rounds[SAVED:]
    assert fingerprint(resumed) == fingerprint(end)
