"""Adversaries of each sort in two processes: the bits of one. `test_cells.py` has all of them, all rules, and MPI."""

import pytest

from flrl.backends import ProcessBackend, SerialBackend
from tests.adversaries.cells import ROUNDS, Cells, run

SOME = ("label flip, at random", "dba", "model replacement", "gaussian", "free rider, delta", "mimic", "mapf, history")


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one() -> None:
    recipe = Cells(rows=True, rules=("krum",), kinds=SOME)
    alone = run(SerialBackend(), recipe)
    assert len(alone) == ROUNDS * len(SOME)
    assert run(ProcessBackend(workers=2), recipe) == alone
