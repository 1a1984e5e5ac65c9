"""Notebooks in two languages are one notebook; those that take more than a few seconds are executed by `-m slow`."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SLOW = ("02_gradient_leakage", "03_privacy", "04_heterogeneity", "05_sweep_to_figure", "06_under_mpi")
PICTURES = {"01_": 3, "02_": 4, "03_": 4, "04_": 4, "05_": 1, "06_": 1}


def code_of(name: str) -> list[str]:
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize(("name", "cells"), [("01_quickstart", 5), ("02_gradient_leakage", 11)])
def test_the_japanese_notebook_has_the_code_of_the_english_one(name: str, cells: int) -> None:
    english, japanese = code_of(f"{name}.ipynb"), code_of(f"{name}_ja.ipynb")
    assert len(english) >= cells
    assert japanese == english


def test_notebooks_hold_their_pictures_and_are_small() -> None:
    paths = sorted(NOTEBOOKS.glob("*.ipynb"))
    assert len(paths) == 8
    for path in paths:
        outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", ())]
        assert not [output for output in outputs if output["output_type"] == "error"], path
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= PICTURES[path.name[:3]], path
        assert path.stat().st_size < 300_000, path


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_the_longer_notebooks_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, (str(NOTEBOOKS.parent), os.environ.get("PYTHONPATH"))))
    )
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
