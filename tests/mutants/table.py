"""The mutants, read from `table.txt`: small changes of flrl, and the tests that are to notice each."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("table.txt")


@dataclass(frozen=True)
class Mutant:
    """One small change.

    Attributes:
        file: the changed file, from the project's root.
        name: what goes wrong.
        old: text that occurs once in the file, and within one line.
        new: what stands there instead.
        tests: the test files, or single tests, that are to fail; the fastest first.
    """

    file: str
    name: str
    old: str
    new: str
    tests: tuple[str, ...]

    def changed(self, root: Path = ROOT) -> str:
        """The file's text with the change.

        Raises:
            ValueError: the old text is not there exactly once, or the file would be no Python any more.
        """
        text = (root / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file}: {self.name}: {self.old!r} occurs {text.count(self.old)} times, must be 1")
        mutated = text.replace(self.old, self.new)
        try:
            ast.parse(mutated, self.file)
        except SyntaxError as error:
            raise ValueError(f"{self.file}: {self.name}: {self.new!r} is no Python there: {error}") from error
        return mutated


def read(text: str) -> Iterator[Mutant]:
    """The mutants of a table.

    Raises:
        ValueError: a line is neither `FILE <- TEST...` nor `NAME :: OLD ==> NEW [<- TEST...]`, nor a comment.
    """
    file, tests = "", ()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        rest, _, own = line.partition(" <- ")
        if not line.startswith(" "):
            file, tests = rest.strip(), tuple(own.split())
            continue
        name, _, change = rest.strip().partition(" :: ")
        old, arrow, new = change.partition(" ==>")
        if not (file and old and arrow):
            raise ValueError(f"line {number} is neither FILE <- TEST... nor NAME :: OLD ==> NEW [<- TEST...]: {line}")
        yield Mutant(file, name, old, new.removeprefix(" "), tuple(own.split()) or tests)


def mutants() -> list[Mutant]:
    """All of them."""
    return list(read(TABLE.read_text()))
