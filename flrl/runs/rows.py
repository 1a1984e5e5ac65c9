"""The tables of a run's folder: one row as JSON per line."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
CLIENTS = "clients.jsonl"
DIGESTS = "digests.jsonl"
ENVIRONMENTS = "environments.jsonl"
PRIVACY = "privacy.jsonl"
ERROR = "error.txt"
_NEEDED = {
    METRICS: ("round", "digest"),
    CLIENTS: ("round", "client_id"),
    DIGESTS: ("round", "parameters", "clients"),
    ENVIRONMENTS: ("after_round",),
}


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The number and row of each line of a table, from 1 on; None for a line that is damaged."""
    if path.exists():
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, _row(line, _NEEDED.get(path.name, ("round",)))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The complete rows of a table; a process that was killed may have left an incomplete one at the end."""
    return (row for _, row in read_lines(path) if row is not None)


def damaged_lines(path: Path) -> list[int]:
    """The numbers of the lines that are damaged, from 1 on."""
    return [number for number, row in read_lines(path) if row is None]


def append_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows at the end of a table, all or none.

    Raises:
        OSError: they cannot be written.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    except OSError:
        os.truncate(path, size)  # no incomplete row in the middle, should there be another attempt
        raise


def replace_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a table, completely or not at all."""
    replace_text(path, (json.dumps(row) + "\n" for row in rows))


def replace_text(path: Path, lines: Iterable[str]) -> None:
    """Replace a file, completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.writelines(lines)
    os.replace(partial, path)


def _row(line: bytes, needed: Sequence[str]) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:  # neither JSON nor text
        return None
    whole = isinstance(row, dict) and all(name in row for name in needed) and isinstance(row[needed[0]], int)
    return row if whole else None
