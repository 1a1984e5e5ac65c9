"""Cohorts from a file."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flrl.setup import Setup


class TraceSampler:
    """The cohorts that a file has, round by round; nothing is drawn. A round that is not there has an empty cohort.

    The file has JSON lines with `round` and either `clients`, a list of ids, or `client_id`, one of them, as in a run's
    `clients.jsonl`; or it is CSV with columns `round` and `client_id`, a row a client. Rounds are counted from 1.
    Clients that are not available are left out.

    Args:
        file: the file's path; it ends with `.csv`, or else has JSON lines.
        cycle: begin again after the last round of the file.

    Raises:
        ValueError: a line of the file is not as above.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, *, file: str | None, cycle: bool = False) -> None:
        self.file, self.cycle = file, cycle
        pairs = set() if file is None else set(_pairs(Path(file)))
        self._rounds, self._ids = np.array(sorted(pairs), np.int64).reshape(-1, 2).T.copy()

    def check(self, setup: Setup) -> None:
        """Raise ValueError if there is no file, or it ends too early, or it has clients that the federation has not."""
        if self.file is None or not len(self._ids):
            raise ValueError(f"strategy.sampler.file={self.file or 'null'}: must name a file with cohorts")
        last, rounds = int(self._rounds[-1]), setup.strategy.rounds
        if last < rounds and not self.cycle:
            raise ValueError(
                f"strategy.sampler.file={self.file}: its last round is {last}, strategy.rounds={rounds}; "
                "strategy.sampler.cycle=true begins again"
            )
        self._known(setup.num_clients)

    def largest(self, num_clients: int) -> int:
        """The size of the file's largest cohort."""
        return int(np.unique(self._rounds, return_counts=True)[1].max(initial=0))

    def __call__(self, num_clients: int, *, seed: int, round: int, available: np.ndarray | None = None) -> np.ndarray:
        """The round's client ids in the file, ascending; those that are available."""
        self._known(num_clients)
        if self.cycle and len(self._rounds):
            round = (round - 1) % int(self._rounds[-1]) + 1
        start, end = np.searchsorted(self._rounds, [round, round + 1])
        cohort = self._ids[start:end]
        return cohort if available is None else cohort[available[cohort]]

    def _known(self, num_clients: int) -> None:
        largest = int(self._ids.max(initial=-1))
        if largest >= num_clients:
            raise ValueError(
                f"strategy.sampler.file={self.file}: has client {largest}; there are {num_clients} clients, from 0"
            )


def _pairs(path: Path) -> Iterator[tuple[int, int]]:
    """Round and client id of each entry."""
    with path.open(newline="") as file:
        rows: Iterator[Any] = csv.DictReader(file) if path.suffix == ".csv" else map(_parsed, filter(str.strip, file))
        for number, row in enumerate(rows, start=2 if path.suffix == ".csv" else 1):
            try:
                round = int(row["round"])
                clients = row["clients"] if "clients" in row else [row["client_id"]]
                found = [(round, int(client)) for client in clients]
            except (KeyError, TypeError, ValueError):
                raise ValueError(_wrong(path, number)) from None
            if round < 1 or any(client < 0 for _, client in found):
                raise ValueError(_wrong(path, number))
            yield from found


def _parsed(line: str) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = json.loads(line)
    except ValueError:
        return None
    return found


def _wrong(path: Path, number: int) -> str:
    return (
        f"strategy.sampler.file={path}: line {number} must have round, from 1, and clients, ids from 0, "
        'as in {"round": 1, "clients": [0, 4]}, or client_id'
    )
