"""What goes together and what does not: docs/composition.md, and runs of all that do."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flrl.backends import ProcessBackend, SerialBackend
from tests.backends.launch import MPIEXEC, ROOT
from tests.transforms.composition import PAGE, TRANSFORMS, page, pairs, transform, with_rules
from tests.transforms.together import Together, cells, run

MPI = [MPIEXEC, "--oversubscribe", "-n", "3"]


def test_the_page_is_what_the_parts_say() -> None:
    assert PAGE.read_text() == page(), "python -m tests.transforms.composition writes it"


def test_every_refusal_names_one_of_the_two() -> None:
    for (first, second), why in pairs().items():
        assert why is None or first in why or second in why, (first, second, why)
    for (name, rule), why in with_rules().items():
        assert why is None or name in why, (name, rule, why)


def test_what_the_settings_of_privacy_go_with() -> None:
    found = pairs()
    for mechanism in ("dp", "dp_adaptive", "dp_distributed", "dp_ftrl", "dp_local", "skellam"):
        for hiding in ("secagg", "paillier"):
            assert found[mechanism, hiding] is None
            assert found[hiding, mechanism] is not None
    assert found["clip_norm", "top_k"] is None
    # A sum has all of the noise; what picks numbers of one client's share of it would leave some without.
    for mechanism in ("dp_distributed", "skellam", "distributed_discrete_gaussian"):
        for other in ("gradient_pruning", "int8", "clip_norm"):
            assert "only sums" in str(found[mechanism, other])
    assert found["dp", "gradient_pruning"] is None
    # Whoever looks at samples behind the noise says more of them than the noise allows.
    assert found["dp_local", "int8"] is None
    assert "it looks at samples" in str(found["dp_local", "soteria"])
    assert found["soteria", "dp_local"] is None
    assert "error" in str(found["dp", "top_k"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        Together("dp", "secagg", "transform"),
        Together("clip_norm", "int8", "transform"),
        Together("top_k", "krum", "rule"),
    ],
)
def test_what_goes_together_has_one_digest(recipe: Together) -> None:
    assert run(recipe, ProcessBackend(workers=2)) == run(recipe, SerialBackend())


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was noted of each cell, by backend."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMPI_MCA_btl": "self,sm"}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    found = {}
    for name in ("serial", "process", "mpi"):
        output = Path(tmp_path_factory.mktemp("together")) / f"{name}.json"
        command = [
            *(MPI if name == "mpi" else []),
            sys.executable,
            "-m",
            "tests.transforms.together",
            name,
            str(output),
        ]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=7200)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
        found[name] = json.loads(output.read_text())
    return found


@pytest.mark.mpi
@pytest.mark.timeout(10800)
def test_all_that_goes_together_has_one_digest_on_every_backend(noted: dict[str, Any]) -> None:
    repeatable = {name: transform(name).repeatable for name in TRANSFORMS}
    others = {}
    for recipe in cells():
        cell = f"{recipe.first} with {recipe.second}"
        rounds = noted["serial"][cell]
        assert len(rounds) == 2, (cell, rounds)
        for backend in ("process", "mpi"):
            again = noted[backend][cell]
            same = repeatable[recipe.first] and repeatable.get(recipe.second, True)
            if again != rounds if same else len(again) != 2:
                others[cell, backend] = again
    assert others == {}
