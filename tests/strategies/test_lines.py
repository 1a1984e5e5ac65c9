"""Strategies are short, and the table in docs says how short."""

import pytest

from tests.strategies.lines import DOCUMENT, LARGEST, LIMITS, counted, lines_of_code, written


def test_the_table_is_as_it_would_be_written() -> None:
    page = DOCUMENT.read_text()
    assert written(page) == page, "python -m tests.strategies.lines writes it"


def test_no_strategy_is_long() -> None:
    for name, (path, number, _) in counted().items():
        assert number <= LIMITS.get(name, LARGEST), path


@pytest.mark.parametrize(
    ("source", "number"),
    [
        ("", 0),
        ('"""Of a\nmodule."""\n\n# why\nx = 1  # one\n', 1),
        ("def f(\n    a,\n):\n    '''Doc.'''\n    return '''two\nlines'''\n", 5),
        ("class A:\n    '''Doc.'''\n\n    '''no doc'''\n", 2),
    ],
)
def test_code_is_counted_by_line(source: str, number: int) -> None:
    assert lines_of_code(source) == number


def test_the_section_keeps_its_place() -> None:
    page = DOCUMENT.read_text()
    before, _, after = written(page + "\n## Later\n\nWords.\n").partition("## Lines of code")
    assert written(before.rstrip("\n") + "\n\n## Lines of code\n\nold\n\n## Later\n\nWords.\n").endswith(
        "\n\n## Later\n\nWords.\n"
    )
    assert after.endswith("Words.\n")
