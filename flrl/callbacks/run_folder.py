"""The files of a run: metrics, clients, digests, partition, final model, summary."""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safetensors.torch import save_file

from flrl.callbacks.base import Callback, RunInfo
from flrl.data import pictures
from flrl.data.statistics import partition_statistics
from flrl.layout import ParameterLayout, checksum, digest
from flrl.runs.environment import sources
from flrl.runs.rows import (
    CLIENTS,
    DIGESTS,
    ENVIRONMENTS,
    ERROR,
    METRICS,
    append_rows,
    read_rows,
    replace_rows,
    replace_text,
)
from flrl.seeding import Seeds
from flrl.target import summary_of
from flrl.types import ClientReport, RoundRecord, ServerState

log = logging.getLogger(__name__)
_FIRST = ("test/loss", "test/accuracy", "train/loss")
_COUNTS = ("comm/", "clients/num", "clients/rejected", "transforms/", "aggregator/rejected", "adversary/num")


class RunFolder(Callback):
    """Writes the run's files; metrics row by row, the model and the summary at the end.

    Args:
        log_clients: also write `clients.jsonl`, a row per client and round.
        sections: give further parts of the summary once the run has ended.
    """

    def __init__(self, *, log_clients: bool = False, sections: Sequence[Callable[[], Mapping[str, Any]]] = ()) -> None:
        self.log_clients = log_clients
        self.sections = sections
        self._run: RunInfo
        self._written = 0
        self._started = time.perf_counter()

    def setup(self, run: RunInfo) -> None:
        """Write the partition, and its picture."""
        self._run = run
        run.data.save(run.folder / "partition.npz")
        pictures.save_partition(run.data, run.folder / "partition.png")

    def on_fit_start(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Write the tables anew, with the rows of the rounds before a resumed state."""
        (self._run.folder / ERROR).unlink(missing_ok=True)
        replace_rows(self._run.folder / METRICS, [row_of(record) for record in history])
        self._written = len(history)
        earlier = self._run.resumed_from or self._run.folder
        for name in [DIGESTS, *([CLIENTS] if self.log_clients else [])]:
            kept = (row for row in read_rows(earlier / name) if row["round"] <= state.round)
            replace_rows(self._run.folder / name, kept if state.round else ())
        before = [row for row in read_rows(earlier / ENVIRONMENTS) if row["after_round"] < state.round]
        now = {"after_round": state.round, "command": self._run.command, **self._run.environment}
        replace_rows(self._run.folder / ENVIRONMENTS, [*before, now])
        log.info("%s: from round %d to round %d: %s", self._run.name, state.round, self._run.rounds, self._run.command)

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Append the round's rows."""
        for record in history[self._written :]:
            if self.log_clients and record.reports:
                append_rows(self._run.folder / CLIENTS, [client_row(record.round, report) for report in record.reports])
            if record.round == state.round:
                append_rows(self._run.folder / DIGESTS, [digest_row(record, state, self._run.model.layout)])
            append_rows(self._run.folder / METRICS, [row_of(record)])
            shown = (f"{name} {record.metrics[name]:.6g}" for name in sorted(record.metrics))
            log.info("round %d: %s  digest %s", record.round, "  ".join(shown), record.digest)
            self._written += 1

    def on_exception(self, state: ServerState, history: Sequence[RoundRecord], error: BaseException) -> None:
        """Write the error into `error.txt`, and append rows that an interrupt has left out."""
        with (self._run.folder / ERROR).open("a") as file:
            file.write(f"after round {state.round}: {type(error).__name__}: {error}\n")
        log.info("stopped after round %d: %s: %s", state.round, type(error).__name__, error)
        self.on_round_end(state, history)

    def on_fit_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """Write the final model and the summary."""
        run = self._run
        partial = run.folder / ".model.safetensors.partial"
        save_file(run.model.state_dict(state.vector), partial)
        saved = hashlib.sha256(partial.read_bytes()).hexdigest()
        *before, environment = read_rows(run.folder / ENVIRONMENTS)
        if "sources" in environment:  # including modules imported after the start
            environment["sources"] = sources() | environment["sources"]
            replace_rows(run.folder / ENVIRONMENTS, [*before, environment])
        summary = {
            "name": run.name,
            "seed": run.seed,
            "seeds": asdict(Seeds.of({**run.config, "seed": run.seed})),
            "rounds": state.round,
            "digest": digest(state.vector),
            "model": saved,
            "metrics": row_of(history[-1]) if history else {},
            **summary_of(run.config, map(row_of, history)),
            **{name: part for section in self.sections for name, part in section().items()},
            "wall_time_s": round(time.perf_counter() - self._started, 3),
            "partition": run.data.hash,
            "partition_statistics": partition_statistics(run.data),
            "resumed_from": None if run.resumed_from is None else str(run.resumed_from),
            **{name: value for name, value in environment.items() if name != "after_round"},
        }
        # An earlier summary, of fewer rounds, would not match the new model.
        (run.folder / "summary.json").unlink(missing_ok=True)
        os.replace(partial, run.folder / "model.safetensors")
        replace_text(run.folder / "summary.json", [json.dumps(summary, indent=2) + "\n"])
        log.info("finished after round %d: digest %s", state.round, summary["digest"])


def row_of(record: RoundRecord) -> dict[str, Any]:
    """A record as a row of `metrics.jsonl`; values that are not finite become null."""
    names = [name for name in _FIRST if name in record.metrics]
    names += sorted(name for name in record.metrics if name not in _FIRST)
    return {"round": record.round} | {n: _number(n, record.metrics[n]) for n in names} | {"digest": record.digest}


def digest_row(record: RoundRecord, state: ServerState, layout: ParameterLayout) -> dict[str, Any]:
    """A row of `digests.jsonl`: checksums of each parameter and of each client's update, to locate differences.

    `malicious` and `filtered` are there if they are not empty: ids of the clients that misbehaved, and of those whose
    updates a rule that selects has left out.
    """
    those = {
        "malicious": [report.client_id for report in record.reports if report.malicious],
        "filtered": [report.client_id for report in record.reports if report.filtered],
    }
    return {
        "round": record.round,
        "parameters": {entry.name: checksum([state.vector[entry.slice]]) for entry in layout.entries},
        "clients": {str(report.client_id): report.checksum for report in record.reports},
        **{name: ids for name, ids in those.items() if ids},
    }


def client_row(round: int, report: ClientReport) -> dict[str, Any]:
    """A client's report as a row of `clients.jsonl`."""
    return {
        "round": round,
        "client_id": report.client_id,
        "num_samples": report.num_samples,
        "num_steps": report.num_steps,
        "weight": report.weight,
        **{name: _number(name, value) for name, value in sorted(report.metrics.items())},
        "comm/up_bytes": report.up_bytes,
        "rejected": report.rejected,
        "malicious": report.malicious,
        "filtered": report.filtered,
    }


def _number(name: str, value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    return int(value) if name.startswith(_COUNTS) and value == int(value) else value
