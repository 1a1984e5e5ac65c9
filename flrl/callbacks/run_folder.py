"""The files of a run: metrics, clients, digests, partition, final model, summary."""

import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import flrl
from flrl.callbacks.base import Callback, RunInfo
from flrl.layout import ParameterLayout, checksum, digest
from flrl.types import ClientReport, RoundRecord, ServerState

METRICS = "metrics.jsonl"
CLIENTS = "clients.jsonl"
DIGESTS = "digests.jsonl"
ERROR = "error.txt"
_FIRST = ("test/loss", "test/accuracy", "train/loss")
_COUNTS = ("comm/", "clients/num", "clients/rejected", "transforms/")


class RunFolder(Callback):
    """Writes the run's files; metrics row by row, the model and the summary at the end.

    Args:
        log_clients: also write `clients.jsonl`, a row per client and round.
    """

    def __init__(self, *, log_clients: bool = False) -> None:
        self.log_clients = log_clients
        self._run: RunInfo
        self._written = 0
        self._started = time.perf_counter()

    def setup(self, run: RunInfo) -> None:
        """Write the partition."""
        self._run = run
        run.data.save(run.folder / "partition.npz")

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Begin the files anew, with the rows of the rounds before a resumed state."""
        (self._run.folder / ERROR).unlink(missing_ok=True)
        _replace(self._run.folder / METRICS, [row_of(record) for record in history])
        self._written = len(history)
        for name in [DIGESTS, *([CLIENTS] if self.log_clients else [])]:
            source = (self._run.resumed_from or self._run.folder) / name
            kept = (row for row in read_rows(source) if row["round"] <= state.round)
            _replace(self._run.folder / name, kept if state.round else ())

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Append the round's rows."""
        for record in history[self._written :]:
            if self.log_clients and record.reports:
                _append(self._run.folder / CLIENTS, [client_row(record.round, report) for report in record.reports])
            if record.round == state.round:
                _append(self._run.folder / DIGESTS, [digest_row(record, state, self._run.model.layout)])
            _append(self._run.folder / METRICS, [row_of(record)])
            self._written += 1

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Note why the run ends, and append what an interrupt has left out."""
        with (self._run.folder / ERROR).open("a") as file:
            file.write(f"after round {state.round}: {type(error).__name__}: {error}\n")
        self.on_round_end(state, history)

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Write the final model and the summary."""
        run = self._run
        partial = run.folder / ".model.safetensors.partial"
        save_file(run.model.state_dict(state.vector), partial)
        os.replace(partial, run.folder / "model.safetensors")
        summary = {
            "name": run.name,
            "seed": run.seed,
            "rounds": state.round,
            "digest": digest(state.vector),
            "metrics": row_of(history[-1]) if history else {},
            "wall_time_s": round(time.perf_counter() - self._started, 3),
            "partition": run.data.hash,
            "command": run.command,
            "resumed_from": None if run.resumed_from is None else str(run.resumed_from),
            "versions": {"flrl": flrl.__version__, "python": platform.python_version()}
            | {name: version(name) for name in ("torch", "pytorch-lightning", "numpy", "hydra-core")},
        }
        _write(run.folder / "summary.json", [json.dumps(summary, indent=2) + "\n"])


def row_of(record: RoundRecord) -> dict[str, Any]:
    """A record as a row of `metrics.jsonl`; what is not finite becomes null."""
    names = [name for name in _FIRST if name in record.metrics]
    names += sorted(name for name in record.metrics if name not in _FIRST)
    return {"round": record.round} | {n: _number(n, record.metrics[n]) for n in names} | {"digest": record.digest}


def digest_row(record: RoundRecord, state: ServerState, layout: ParameterLayout) -> dict[str, Any]:
    """Where to look for a difference: checksums of each parameter after a round, and of what each client sent."""
    return {
        "round": record.round,
        "parameters": {entry.name: checksum([state.vector[entry.slice]]) for entry in layout.entries},
        "clients": {str(report.client_id): report.checksum for report in record.reports},
    }


def client_row(round: int, report: ClientReport) -> dict[str, Any]:
    """A client's report as a row of `clients.jsonl`."""
    return {
        "round": round,
        "client_id": report.client_id,
        "num_samples": report.num_samples,
        "num_steps": report.num_steps,
        **{name: _number(name, value) for name, value in sorted(report.metrics.items())},
        "comm/up_bytes": report.up_bytes,
        "rejected": report.rejected,
    }


def read_history(folder: Path, rounds: int) -> list[RoundRecord]:
    """The records of a run folder up to a round.

    Raises:
        ValueError: a round's row is missing.
    """
    records = []
    for row in read_rows(folder / METRICS):
        if row["round"] <= rounds:
            metrics = {n: math.nan if v is None else float(v) for n, v in row.items() if n not in ("round", "digest")}
            records.append(RoundRecord(round=row["round"], metrics=metrics, digest=row["digest"]))
    found = [record.round for record in records if record.round > 0]
    if found != list(range(1, rounds + 1)):
        raise ValueError(f"{folder / METRICS} should hold rounds 1 to {rounds}, it holds {found}")
    return records


def _number(name: str, value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if name.startswith(_COUNTS) else value


def read_rows(path: Path) -> Iterable[dict[str, Any]]:
    """The complete rows of a file; a kill can leave half a row at its end."""
    if path.exists():
        with path.open() as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    except OSError:
        os.truncate(path, size)  # no half row in the middle, should there be another attempt
        raise


def _replace(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    _write(path, (json.dumps(row) + "\n" for row in rows))


def _write(path: Path, lines: Iterable[str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w") as file:
        file.writelines(lines)
    os.replace(partial, path)
