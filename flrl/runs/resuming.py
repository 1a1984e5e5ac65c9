"""Finding the state to resume a run from: the newest checkpoint that is valid and whose rounds have all their rows."""

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flrl.clients import ClientStore
from flrl.errors import DamagedError
from flrl.layout import digest
from flrl.runs.checkpoint import list_checkpoints, load_checkpoint, round_of
from flrl.runs.rows import CLIENTS, DIGESTS, ERROR, METRICS, damaged_lines, read_lines, read_rows, replace_rows
from flrl.types import RoundRecord, ServerState

_TABLES = (METRICS, CLIENTS, DIGESTS)
_SHOWN = 10
_UNCHANGED = "; nothing was changed"


@dataclass(frozen=True, slots=True)
class Resumption:
    """The state to resume from.

    Attributes:
        state: the state.
        history: the records of its rounds.
        dropped: newer checkpoints and tables with damaged lines, which are left out, each with the reason.
    """

    state: ServerState
    history: list[RoundRecord]
    dropped: Mapping[Path, str]

    def notes(self) -> list[str]:
        """A sentence on each file that is left out."""
        return [f"{path} {what}" for path, what in self.dropped.items()]

    def set_aside(self) -> list[str]:
        """Rename or copy the files that are left out, and rewrite the tables; returns a sentence on each."""
        notes = []
        for path, what in self.dropped.items():
            aside = _free(path)
            if path.is_dir():
                os.rename(path, aside)
            else:
                shutil.copy2(path, aside)
                replace_rows(path, read_rows(path))
            notes.append(f"{path} {what}; kept as {aside.name}")
        return notes


def is_finished(folder: Path, rounds: int) -> bool:
    """Whether the run in a folder has ended, without an error, after that many rounds."""
    path = folder / "summary.json"
    return path.exists() and not (folder / ERROR).exists() and json.loads(path.read_text()).get("rounds") == rounds


def source_of(resume: str | None, folder: Path) -> Path | None:
    """The folder that `resume` names, whether or not there is something to go on from; None for none."""
    return folder if resume == "auto" else Path(resume) if resume else None


def run_to_resume(resume: str | None, folder: Path) -> Path | None:
    """The run's folder to resume from; None to start from the beginning.

    Args:
        resume: the setting: a folder, "auto" for `folder`, or None.
        folder: this run's folder.

    Raises:
        ValueError: the run in it is finished, and has no checkpoints.
    """
    source = source_of(resume, folder)
    if source is not None and (source / "summary.json").exists() and not list_checkpoints(source):
        raise ValueError(f"{source} holds a finished run without checkpoints: there is nothing to resume from")
    return source if source is not None and list_checkpoints(source) else None


def last_good(folder: Path, identity: Mapping[str, Any], store: ClientStore | None = None) -> Resumption:
    """The newest valid checkpoint whose rounds all have complete rows.

    If tables besides `metrics.jsonl` have lost rows of all checkpoints, the newest valid one is taken all the same.

    Args:
        folder: the run's folder.
        identity: what the checkpoint's run must have in common with this one.
        store: keeps the client memory.

    Raises:
        ValueError: there is none; or a checkpoint is of another run, or of another history than `metrics.jsonl`.
    """
    history = _records(folder)
    lost = _lost_details(folder, history)
    dropped: dict[Path, str] = {}
    second: Resumption | None = None
    for path in reversed(list_checkpoints(folder)):
        try:
            state = load_checkpoint(path, identity, store)
            records = _until(history, state.round, folder)
            for client_id in state.memory:
                state.memory[client_id]  # reads it, and raises where it is not what was written
        except DamagedError as error:
            reason = str(error).removeprefix(f"{path} is ").removesuffix(_UNCHANGED)
            dropped[path] = f"is left out: {reason}"
            continue
        if records[-1].digest != digest(state.vector):
            raise ValueError(f"{path} is not the state after round {state.round} of {folder}{_UNCHANGED}")
        found = Resumption(state, records, dict(dropped))
        needed = [f"{folder / name} lacks rows of round {r}" for name, r in lost.items() if r <= state.round]
        if not needed:
            return _with_tables(found, folder)
        second = second or found
        dropped[path] = f"is left out: {' and '.join(needed)}"
    if second is not None:
        return _with_tables(second, folder)
    reasons = "; ".join(f"{path.name} {reason}" for path, reason in dropped.items())
    raise ValueError(f"{folder} has no checkpoint to go on from ({reasons}){_UNCHANGED}")


def _records(folder: Path) -> list[RoundRecord]:
    """The records of all complete rows."""
    records = []
    for row in read_rows(folder / METRICS):
        metrics = {n: math.nan if v is None else float(v) for n, v in row.items() if n not in ("round", "digest")}
        records.append(RoundRecord(round=row["round"], metrics=metrics, digest=row["digest"]))
    return records


def _until(history: Sequence[RoundRecord], rounds: int, folder: Path) -> list[RoundRecord]:
    records = [record for record in history if record.round <= rounds]
    found = [record.round for record in records if record.round > 0]
    if found != list(range(1, rounds + 1)):
        held = str(found) if len(found) <= _SHOWN else f"{len(found)} others"
        raise DamagedError(f"{folder / METRICS} should hold rounds 1 to {rounds}, it holds {held}")
    return records


def _lost_details(folder: Path, history: Sequence[RoundRecord]) -> dict[str, int]:
    """For each table besides `metrics.jsonl` that has lost rows in damaged lines, the first round that lacks some."""
    last = max((record.round for record in history), default=0)
    clients = {record.round: int(record.metrics.get("clients/num", 0)) for record in history}
    lost = {}
    for name, wanted in ((DIGESTS, dict.fromkeys(clients, 1)), (CLIENTS, clients)):
        counts: Counter[int] = Counter()
        spans: list[list[int]] = []  # first and last round that each damaged line may belong to
        before = 1
        for _, row in read_lines(folder / name):
            if row is None:
                spans.append([before, last])
                continue
            before = row["round"]
            counts[before] += 1
            for span in spans:
                span[1] = min(span[1], before)
        rounds = {round for first, end in spans for round in range(first, end + 1)}
        missing = [round for round in sorted(rounds) if counts[round] < wanted.get(round, 0)]
        if missing:
            lost[name] = missing[0]
    return lost


def _with_tables(found: Resumption, folder: Path) -> Resumption:
    """The same state, with `dropped` for the checkpoints after it and for tables with damaged lines."""
    dropped = {path: reason for path, reason in found.dropped.items() if round_of(path) > found.state.round}
    for name in _TABLES:
        lines = damaged_lines(folder / name)
        if lines:
            which = ", ".join(map(str, lines[:_SHOWN])) + (", ..." if len(lines) > _SHOWN else "")
            dropped[folder / name] = f"is taken without its damaged lines: {which}"
    return Resumption(found.state, found.history, dropped)


def _free(path: Path) -> Path:
    """A path beside this one that does not exist."""
    number, aside = 1, path.with_name(f"{path.name}.damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.damaged{number}")
    return aside
