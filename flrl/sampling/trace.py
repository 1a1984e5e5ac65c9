"""Cohorts from a file."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flrl.setup import Setup


class TraceSampler:
    """The cohorts that a file has, round by round; nothing is drawn. A round that is not there has an empty cohort.

    The file has JSON lines with `round` and either `clients`, a list of ids, or `client_id`, one of them, as in a run's
    `clients.jsonl`; or it is CSV with columns `round` and `client_id`, a row a client. Rounds are counted from 1. The
    last one is the largest that a line has, also one with an empty list. Clients that are not available are left out.

    Args:
        file: the file's path; it ends with `.csv`, or else has JSON lines.
        cycle: begin again after the last round of the file.

    Raises:
        ValueError: the file cannot be read, or a line of it is not as above.
    """

    def __init__(self, *, file: str | None, cycle: bool = False) -> None:
        self.file, self.cycle = file, cycle
        pairs: set[tuple[int, int]] = set()
        self._last = 0
        for round, clients in () if file is None else _cohorts(Path(file)):
            self._last = max(self._last, round)
            pairs.update((round, client) for client in clients)
        self._rounds, self._ids = np.array(sorted(pairs), np.int64).reshape(-1, 2).T.copy()

    def check(self, setup: Setup) -> None:
        """Raise ValueError if there is no file, or it ends too early, or it has clients that the federation has not."""
        if self.file is None or not len(self._ids):
            raise ValueError(f"strategy.sampler.file={self.file or 'null'}: must name a file with cohorts")
        rounds = setup.strategy.rounds
        if self._last < rounds and not self.cycle:
            raise ValueError(
                f"strategy.sampler.file={self.file}: its last round is {self._last}, strategy.rounds={rounds}; "
                "strategy.sampler.cycle=true begins again"
            )
        self._known(setup.num_clients)

    def largest(self, num_clients: int) -> int:
        """The size of the file's largest cohort."""
        return int(np.unique(self._rounds, return_counts=True)[1].max(initial=0))

    def __call__(self, num_clients: int, *, seed: int, round: int, available: np.ndarray | None = None) -> np.ndarray:
        """The round's client ids in the file, ascending; those that are available."""
        self._known(num_clients)
        if self.cycle and self._last:
            round = (round - 1) % self._last + 1
        start, end = np.searchsorted(self._rounds, [round, round + 1])
        cohort = self._ids[start:end]
        return cohort if available is None else cohort[available[cohort]]

    def _known(self, num_clients: int) -> None:
        largest = int(self._ids.max(initial=-1))
        if largest >= num_clients:
            raise ValueError(
                f"strategy.sampler.file={self.file}: has client {largest}; there are {num_clients} clients, from 0"
            )


_MOST = 2**63 - 1


def _cohorts(path: Path) -> Iterator[tuple[int, list[int]]]:
    """Round and client ids of each line."""
    rows = _csv_rows if path.suffix == ".csv" else _json_rows
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"strategy.sampler.file={path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"strategy.sampler.file={path}: is no text in UTF-8: byte {error.start}") from None
    for number, round, clients in rows(path, text):
        whole = all(type(value) is int and value <= _MOST for value in (round, *clients))  # True is an int too
        if not whole or round < 1 or min(clients, default=0) < 0:
            raise _wrong(path, number)
        yield round, clients


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Any, list[Any]]]:
    """The number of each line, its round, and its clients."""
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            clients = row["clients"] if "clients" in row else [row["client_id"]]
            round = row["round"]
        except (KeyError, TypeError, ValueError):
            raise _wrong(path, number) from None
        if not isinstance(clients, list):
            raise _wrong(path, number)
        yield number, round, clients


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Any, list[Any]]]:
    """The same of CSV."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:  # more values than columns
                raise _wrong(path, reader.line_num)
            yield reader.line_num, _whole(row.get("round")), [_whole(row.get("client_id"))]
    except csv.Error:
        raise _wrong(path, reader.reader.line_num) from None


def _whole(value: str | None) -> int | None:
    """The number that a text of decimal digits is; None for any other."""
    text = (value or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _wrong(path: Path, number: int) -> ValueError:
    form = 'clients, ids from 0, as in {"round": 1, "clients": [0, 4]}, or client_id'
    if path.suffix == ".csv":
        form = "client_id, from 0, in columns of these names"
    return ValueError(
        f"strategy.sampler.file={path}: line {number} must have round, from 1, and {form}; whole numbers below 2**63"
    )
