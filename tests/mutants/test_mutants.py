"""The table of mutants is read and still fits the code; whether tests notice them is `pytest -m mutants -n 0`."""

import subprocess
import sys

import pytest

from tests.mutants.table import ROOT, Mutant, mutants, read


def test_the_mutants_still_fit_the_code() -> None:
    """Those that do not are all named: whoever changes the code changes the table."""
    errors = []
    for mutant in mutants():
        try:
            assert mutant.changed() != (ROOT / mutant.file).read_text()
        except ValueError as error:
            errors.append(str(error))
    assert errors == []


def test_the_table_names_tests_that_are_there() -> None:
    for mutant in mutants():
        assert mutant.tests
        for path, _, name in (test.partition("::") for test in mutant.tests):
            assert f"def {name}" in (ROOT / path).read_text()


def test_a_table_is_read() -> None:
    text = "# why\nflrl/a.py <- tests/a.py tests/b.py\n  off by one :: x - 1 ==> x\n  gone :: , y ==> <- tests/c.py\n"
    assert list(read(text)) == [
        Mutant("flrl/a.py", "off by one", "x - 1", "x", ("tests/a.py", "tests/b.py")),
        Mutant("flrl/a.py", "gone", ", y", "", ("tests/c.py",)),
    ]
    with pytest.raises(ValueError, match=r"^line 2 is neither FILE <- TEST"):
        list(read("flrl/a.py <- tests/a.py\n  no arrow :: x\n"))


def test_an_old_text_that_is_not_found_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^flrl/seeding\.py: gone: 'no such text' occurs 0 times, must be 1$"):
        Mutant("flrl/seeding.py", "gone", "no such text", "", ()).changed()
    with pytest.raises(ValueError, match=r"'\(' is no Python there"):
        Mutant("flrl/seeding.py", "torn", "SERVER = -1", "(", ()).changed()


@pytest.mark.mutants
@pytest.mark.timeout(0)
def test_at_least_95_percent_of_the_mutants_are_noticed() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.mutants"], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    print(done.stdout)
    assert done.returncode == 0
