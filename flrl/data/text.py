"""Next-character prediction from any text file, whose sections are the clients."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from flrl.data.characters import encoded
from flrl.data.sources import Splits, TensorSource

BLANK_LINES, SPEAKERS = "blank_lines", "speakers"
_SPEAKER = r"^[ \t]*([A-Z][A-Z' -]*[A-Z])\.[ \t]*\n?"


def text(*, file: str, sections: str = BLANK_LINES, length: int = 80, test_share: float = 0.2) -> Splits:
    """Pieces of a text: at each of `length` characters the next one is to be predicted.

    A section is cut into pieces one after another; what is left at its end and fills no piece is left out, and so is a
    section without a whole piece. The last pieces of a section are test samples, as the last lines of a role are in
    McMahan et al., AISTATS 2017, arXiv 1602.05629, section 3.

    Args:
        file: a text file in UTF-8.
        sections: whose a piece is. `blank_lines`: sections are divided by blank lines, each is a client;
            `speakers`: lines that begin with a name in capitals and a full stop, as in a play, begin what that client
            says; else a regular expression (`^` and `$` are the ends of lines) that finds headings: what follows one is
            its client's, whose name is the first group of the expression, or else the heading. Headings of one name
            are one client; what comes before the first heading is nobody's.
        length: characters of a piece, which takes one more for the last target.
        test_share: share of each section's pieces that are test samples, rounded down, in [0, 1).

    Returns:
        Inputs and targets `[pieces, length]` are numbers of characters, of which `num_classes` has as many as the file
        has different ones; groups are the sections, in the order of their first pieces.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a setting is invalid, the file is not in UTF-8, or no section has a whole piece.
    """
    if length < 1:
        raise ValueError(f"dataset.length={length}: must be at least 1")
    if not 0 <= test_share < 1:
        raise ValueError(f"dataset.test_share={test_share}: must be at least 0 and below 1")
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"dataset.file={file}: there is no such file; any text in UTF-8 will do")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"dataset.file={file}: is no text in UTF-8: byte {error.start}") from None
    said: dict[str, list[str]] = {}
    for name, part in _sections(content, sections):
        said.setdefault(name, []).append(part)
    letters = "".join(sorted(set(content)))
    kept_pieces: list[np.ndarray] = []
    test_pieces: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    for spoken in said.values():
        pieces = _pieces(encoded("".join(spoken), letters, key="dataset.file"), length)
        if len(pieces):
            kept = len(pieces) - int(test_share * len(pieces))
            kept_pieces.append(pieces[:kept])
            test_pieces.append(pieces[kept:])
            owners.append(np.full(kept, len(owners), dtype=np.int64))
    if not owners:
        raise ValueError(f"dataset.length={length}: no section of {file} has {length + 1} characters")
    train, test = (_source(np.concatenate(part)) for part in (kept_pieces, test_pieces))
    return Splits(train, test, groups=np.concatenate(owners), num_classes=len(letters))


def _sections(content: str, sections: str) -> Iterator[tuple[str, str]]:
    """Name and text of each section, in the order of the text."""
    if sections == BLANK_LINES:
        for number, part in enumerate(re.split(r"\n(?:[ \t]*\n)+", content)):
            yield str(number), part
        return
    try:
        headings = [*re.finditer(_SPEAKER if sections == SPEAKERS else sections, content, flags=re.MULTILINE)]
    except re.error as error:
        raise ValueError(
            f"dataset.sections={sections}: must be {BLANK_LINES}, {SPEAKERS} or a regular expression: {error}"
        ) from None
    if not headings:
        raise ValueError(f"dataset.sections={sections}: the file has no such heading")
    ends = [heading.start() for heading in headings[1:]] + [len(content)]
    for heading, end in zip(headings, ends, strict=True):
        name = heading[1] if heading.re.groups and heading[1] is not None else heading[0]
        yield name.strip(), content[heading.end() : end]


def _pieces(numbers: np.ndarray, length: int) -> np.ndarray:
    """Pieces of `length + 1` characters, `[pieces, length + 1]`, each beginning with the last one of that before."""
    count = max(0, (len(numbers) - 1) // length)
    pieces: np.ndarray = numbers[np.arange(count)[:, None] * length + np.arange(length + 1)]
    return pieces


def _source(pieces: np.ndarray) -> TensorSource:
    whole = torch.from_numpy(pieces)
    return TensorSource(whole[:, :-1].contiguous(), whole[:, 1:].to(torch.int64))
