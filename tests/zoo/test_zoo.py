"""Every module trains to the same bits on any number of workers and after a resume, or is refused by name."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.zoo.table import DOCUMENT, ENGINES, ZOO, page, row_of

CONF = Path(__file__).parents[1] / "conf"
MPI_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# A real Trainer takes longest: the default suite has one module of each kind under it, `-m zoo` all.
WITHOUT_A_TEST_STEP = ("a hidden state (Lightning's LSTM)", "DemoModel")
SLOW = ("torchvision's mobilenet_v3_small", "LSTM", "GRU")
IN_BATCHES = (
    "evaluation changes what follows",
    "a linear layer",
    "adapters of low rank",
    "float64",
    "outputs that are objects",
    "a penalty, many logs",
    "a torchmetrics object in evaluation",
    "OneCycleLR",
)
UNDER_LIGHTNING = (
    "a number",
    "hooks registered while training",
    "an average in a buffer that is replaced",
    "BoringModel",
)


def documented() -> dict[str, dict[str, str]]:
    """The rows of the page, with the reasons in place of their numbers."""
    text = DOCUMENT.read_text()
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    named = re.compile(r"refused \((\d+)\)")
    return {
        name: dict(zip(ENGINES, [named.sub(lambda m: f"refused: {reasons[m[1]]}", c) for c in cells], strict=True))
        for name, *cells in rows[1:]
    }


@pytest.mark.parametrize("name", ZOO)
def test_the_page_is_true(name: str) -> None:
    expected = documented()[name]
    left_out = {"lightning"} if name not in UNDER_LIGHTNING else set()
    if expected["vectorized"] == "close" and name not in IN_BATCHES:  # tests/trainers has more of client batches
        left_out.add("vectorized")
    if name in SLOW:
        left_out |= {"traced", "vectorized"}
    engines = [engine for engine in ENGINES if engine not in left_out]
    assert not any(cell.startswith("WRONG") for cell in expected.values())
    assert row_of(ZOO[name], engines) == {engine: expected[engine] for engine in engines}


def test_the_page_is_as_it_was_written() -> None:
    assert page(documented()) == DOCUMENT.read_text()
    assert set(documented()) == set(ZOO)
    trained = [name for name, row in documented().items() if not row["eager"].startswith("refused")]
    assert len(trained) >= 40


@pytest.mark.zoo
def test_all_engines_of_all_modules() -> None:
    assert {name: row_of(animal) for name, animal in ZOO.items()} == documented()


def trained(engine: str) -> list[str]:
    """The modules that an engine trains, on samples that any partition can share out."""
    rows = {name: row for name, row in documented().items() if name not in WITHOUT_A_TEST_STEP}
    return [name for name, row in rows.items() if not row[engine].startswith("refused")]


def swept(folder: Path, engine: str, *more: str, launcher: Sequence[str] = ()) -> dict[str, list[str]]:
    """The digests of every module's rounds, by a sweep."""
    names = ",".join(f'"{name}"' for name in trained(engine))
    arguments = [f"--config-dir={CONF}", "-m", "model=zoo", "dataset=zoo", f"model.animal={names}", f"trainer={engine}"]
    arguments += ["trainer.batch_size=4", "partition.num_clients=3", "strategy.rounds=2", "logger=none"]
    arguments += ["evaluation.try_first=false", "callbacks=none", "optimized_metric=null", f"hydra.sweep.dir={folder}"]
    command = [*launcher, sys.executable, "-m", "flrl.train", *arguments, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=MPI_ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    digests = {}
    for number, name in enumerate(trained(engine)):
        rows = [json.loads(line) for line in (folder / str(number) / "metrics.jsonl").read_text().splitlines()]
        digests[name] = [row["digest"] for row in rows]
    return digests


@pytest.mark.zoo
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_module_on_real_processes(engine: str, tmp_path: Path) -> None:
    serial = swept(tmp_path / "serial", engine)
    assert len(serial) > 10
    beside = Path(sys.executable).with_name("mpiexec")
    launcher = (str(beside) if beside.exists() else "mpiexec", "--oversubscribe", "--allow-run-as-root", "-n", "3")
    assert swept(tmp_path / "mpi", engine, "backend=mpi", launcher=launcher) == serial
