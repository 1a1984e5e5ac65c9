"""The place in a user's own code that an error comes from."""

import re
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import flrl
from flrl.own_code import is_own_file

_FRAME = re.compile(r'^\s*File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
_START = "Traceback (most recent call last):"
SHOWN_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class Place:
    """A line of code.

    Attributes:
        file: the file as in the traceback.
        line: the line's number, from 1 on.
        function: the function that the line is in; empty for a line that cannot be parsed.
    """

    file: str
    line: int
    function: str

    @property
    def own(self) -> bool:
        """Whether the line is the user's: not in flrl, the standard library or an installed package."""
        return is_own_file(self.file)

    def __str__(self) -> str:
        path = Path(self.file)
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return f"{shown}:{self.line}" + (f", in {self.function}" if self.function else "")


def culprit(error: BaseException, *, causes: bool = True) -> tuple[BaseException, Place | None]:
    """The error to report, and where it was raised.

    That is the first one in the chain that went through a user's own code, at the innermost line of that code; else the
    error itself, at its innermost line.

    Args:
        error: the error that was caught.
        causes: whether to search the chain of its causes too.
    """
    for link in _causes(error) if causes else (error,):
        own = [place for place in _places(link) if place.own]
        if own:
            return link, own[-1]
    places = _places(error)
    return error, places[-1] if places else None


def place_in(text: str) -> Place | None:
    """The innermost line of a user's own code in a printed traceback, else its innermost line.

    Of several tracebacks in a row, causes first, the last one with a line of the user's counts.
    """
    blocks = [[Place(m[1], int(m[2]), m[3]) for m in _FRAME.finditer(block)] for block in text.split(_START)]
    for block in reversed(blocks):
        own = [place for place in block if place.own]
        if own:
            return own[-1]
    return next((block[-1] for block in reversed(blocks) if block), None)


def described(error: BaseException) -> str:
    """An error's type and message on one line of limited length."""
    message = re.sub(r"\s+", " ", str(error)).strip()
    if len(message) > SHOWN_CHARACTERS:
        message = message[:SHOWN_CHARACTERS] + " ..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _places(error: BaseException) -> Sequence[Place]:
    frames = [Place(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append(Place(error.filename, error.lineno or 0, ""))
    return frames


def raised_by_flrl(error: BaseException) -> bool:
    """Whether code of flrl itself has raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(flrl.__file__).parent)
