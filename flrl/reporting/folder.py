"""What a report reads from a run's folder: its tables, and what a reader should be warned of."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flrl.cli.arguments import config_dirs, key_of, merged
from flrl.runs.rows import CLIENTS, DIGESTS, ENVIRONMENTS, METRICS, damaged_lines, read_rows
from flrl.runs.saved import read_config

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
_OF_A_RUN = ("round", "digest")
_NO_METRICS = ("round", "client_id", "rejected", "malicious", "filtered")
_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")
_WARNING = re.compile(r"\S+ \S+ (?:WARNING|ERROR|CRITICAL) (.*)")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The content of a run's folder.

    Attributes:
        folder: the folder.
        config: the resolved configuration.
        rows: `metrics.jsonl`.
        summary: `summary.json`; empty if the run has not finished.
        environments: `environments.jsonl`.
        digests: `digests.jsonl`.
    """

    folder: Path
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    environments: Sequence[Mapping[str, Any]]
    digests: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, folder: Path, key: str = "run") -> "RunFiles":
        """Read a run's folder.

        Args:
            folder: the folder.
            key: the setting that named it, for the message.

        Raises:
            FileNotFoundError: there is no run in it.
            ValueError: no round has been completed, or a file is damaged.
        """
        saved = folder / ".hydra" / "config.yaml"
        if not saved.exists():
            raise FileNotFoundError(f"{key}={folder}: there is no run in this folder ({saved} is missing)")
        rows = list(read_rows(folder / METRICS))
        if not rows:
            raise ValueError(f"{key}={folder}: no round has been completed there")
        summary = folder / "summary.json"
        return cls(
            folder=folder,
            config=read_config(saved),
            rows=rows,
            summary=json.loads(summary.read_text()) if summary.exists() else {},
            environments=list(read_rows(folder / ENVIRONMENTS)),
            digests=list(read_rows(folder / DIGESTS)),
        )

    @property
    def rounds(self) -> list[int]:
        """The rounds that have a row, ascending."""
        return [row["round"] for row in self.rows]

    def metrics(self) -> dict[str, list[Any]]:
        """The values of each metric by round; None where a row does not have it, or where it was not finite."""
        names = dict.fromkeys(name for row in self.rows for name in row if name not in _OF_A_RUN)
        return {name: [row.get(name) for row in self.rows] for name in names}

    @property
    def command(self) -> str:
        """The command line that trains the same again, into a folder of its own."""
        words = [word for word in self.overrides if key_of(word) not in _FOLDERS]
        lines = (shlex.split(row.get("command", "")) for row in self.environments or [self.summary])
        folders = dict.fromkeys(f"--config-dir={folder}" for line in lines for folder in config_dirs(line))
        return shlex.join(["python", "-m", "flrl.train", *folders, *words])

    @property
    def overrides(self) -> list[str]:
        """The overrides of the command line; those of a resume replace earlier ones."""
        return merged((row.get("overrides", []) for row in self.environments or [self.summary]), self.config)

    def client_quantiles(self) -> dict[str, dict[int, list[float]]]:
        """The `QUANTILES` of each metric over a round's clients, by metric and round, from `clients.jsonl`."""
        values: dict[str, dict[int, list[float]]] = {}
        for row in read_rows(self.folder / CLIENTS):
            for name, value in row.items():
                if name not in _NO_METRICS and isinstance(value, int | float):
                    values.setdefault(name, {}).setdefault(row["round"], []).append(value)
        return {
            name: {round: [float(q) for q in np.quantile(of, QUANTILES)] for round, of in rounds.items()}
            for name, rounds in values.items()
        }

    def attacks(self) -> list[dict[str, Any]]:
        """The results of `flrl-attack`, with the name of the folder that each is in."""
        paths = sorted((self.folder / "attacks").glob("*/*/result.json"))
        return [{"folder": str(path.parent.relative_to(self.folder)), **json.loads(path.read_text())} for path in paths]

    def warnings(self) -> list[str]:
        """What a reader should know before believing the numbers, a sentence each."""
        found = []
        if not self.summary:
            planned = self.config.get("strategy", {}).get("rounds", "?")
            found.append(f"The run has not finished: its last round is {self.rounds[-1]} of {planned}.")
        error = self.folder / "error.txt"
        if error.exists():
            found += [f"It was stopped {line}" for line in error.read_text(errors="replace").splitlines() if line]
        for name in (METRICS, CLIENTS, DIGESTS, ENVIRONMENTS):
            lines = damaged_lines(self.folder / name)
            if lines:
                found.append(f"{name}: damaged lines are left out: {_listed(lines)}.")
        for name, values in self.metrics().items():
            nulls = [
                row["round"] for row, value in zip(self.rows, values, strict=True) if value is None and name in row
            ]
            if nulls:
                found.append(f"{name} was not finite in round {_listed(nulls)}.")
        rejected = sum(row.get("clients/rejected") or 0 for row in self.rows)
        if rejected:
            found.append(f"{rejected} updates of clients were left out (clients/rejected).")
        if any((row.get("git") or {}).get("dirty") for row in self.environments):
            found.append("Tracked files differed from the commit that the environment names.")
        if len(self.environments) > 1:
            found.append(f"Resumed after round {_listed([r['after_round'] for r in self.environments[1:]])}.")
        found += [f"{path.name}: a resume has left this damaged file out." for path in self.folder.rglob("*.damaged")]
        log = self.folder / "train.log"
        lines_of_log = log.read_text(errors="replace").splitlines() if log.exists() else []
        matches = (_WARNING.match(line) for line in lines_of_log)
        return list(dict.fromkeys([*found, *(match[1] for match in matches if match)]))


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
