"""Every module trains to the same bits on any number of workers and after a resume, or is refused by name."""

import re

import pytest

from tests.zoo.table import DOCUMENT, ENGINES, ZOO, page, row_of

# A real Trainer takes longest: the default suite has one module of each kind under it, `-m zoo` all.
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
def test_the_page_says_what_is_so(name: str) -> None:
    engines = [engine for engine in ENGINES if engine != "lightning" or name in UNDER_LIGHTNING]
    expected = documented()[name]
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
