"""Notebooks in two languages are one notebook: only the first is executed by the default tests."""

import json
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def code_of(name: str) -> list[str]:
    cells = json.loads((NOTEBOOKS / name).read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_japanese_notebook_has_the_code_of_the_english_one() -> None:
    english, japanese = code_of("02_gradient_leakage.ipynb"), code_of("02_gradient_leakage_ja.ipynb")
    assert len(english) > 10
    assert japanese == english


def test_notebooks_hold_their_pictures_and_are_small() -> None:
    for path in NOTEBOOKS.glob("02_*.ipynb"):
        outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", ())]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4, path
        assert path.stat().st_size < 400_000
