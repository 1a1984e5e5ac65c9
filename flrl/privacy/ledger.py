"""The ledger of a run: a line for each round that is about to be released, written before it is.

A round is charged before its clients train. A run that is killed after that, and resumed, finds the line: with noise
that follows from the seed the round is repeated to the bit and counts once, with secure noise it counts again.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flrl.clients.segment import sync
from flrl.errors import DamagedError
from flrl.runs.rows import PRIVACY, damaged_lines, read_rows, replace_rows


@dataclass(frozen=True, slots=True)
class Ledger:
    """The file `privacy.jsonl` in a run's folder.

    Attributes:
        path: the file's.
    """

    path: Path

    @classmethod
    def begun(cls, folder: Path, rows: Iterable[Mapping[str, Any]]) -> "Ledger":
        """The ledger of a run's folder, with the rows so far."""
        ledger = cls(folder / PRIVACY)
        replace_rows(ledger.path, rows)
        sync(ledger.path)
        sync(folder)
        return ledger

    def charge(self, round: int, clients: Sequence[int] | None) -> dict[str, Any]:
        """Write a round into the ledger; it is on the disk when this returns.

        Args:
            round: about to be released.
            clients: the ids of its clients, if the mechanism is counted by them.
        """
        row = {"round": round} | ({} if clients is None else {"clients": [*map(int, clients)]})
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return row


def charges(folder: Path | None, round: int) -> list[dict[str, Any]]:
    """The rows of the ledger in a run's folder, after so many complete rounds; none if there is no such run.

    Raises:
        DamagedError: a line in the middle is damaged, or there is none of a complete round.
    """
    if folder is None or (round == 0 and not (folder / PRIVACY).exists()):
        return []
    path = folder / PRIVACY
    rows, damaged = list(read_rows(path)), damaged_lines(path)
    wrong = [number for number, row in enumerate(rows, 1) if not _is_row(row)]
    if wrong:
        raise DamagedError(f"{path} is damaged in row {wrong[0]}: round and clients must be whole numbers from 0 on")
    lost = sorted({*range(1, round + 1)} - {row["round"] for row in rows})
    if lost or (damaged and damaged[0] <= len(rows)):
        what = f"has nothing of round {lost[0]}" if lost else f"is damaged in line {damaged[0]}"
        raise DamagedError(f"{path} {what}: without it, it is not known what has been released")
    return rows


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether a row has what a ledger's row has."""
    clients = row.get("clients", [])
    numbers = [row.get("round"), *clients] if isinstance(clients, list) else [None]
    return all(type(number) is int and number >= 0 for number in numbers)
