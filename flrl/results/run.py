"""A run's folder as an object: its configuration, its rows as pandas frames, its model."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from flrl.cli.arguments import merged
from flrl.data.federated import saved_indices
from flrl.errors import DamagedError
from flrl.runs.rows import CLIENTS, DIGESTS, ENVIRONMENTS, METRICS, read_rows
from flrl.runs.saved import read_config

if TYPE_CHECKING:
    from torch import nn

_SUMMARY, _PARTITION, _MODEL = "summary.json", "partition.npz", "model.safetensors"


@dataclass(frozen=True, eq=False)
class Run:
    """What a run has left in its folder; files are read when they are asked for, and once.

    Args:
        folder: the run's folder.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration."""
        return read_config(self.folder / ".hydra" / "config.yaml")

    @cached_property
    def choices(self) -> dict[str, str]:
        """The choice in each group, `{"strategy": "fedprox", ...}`."""
        return dict(self._environments[-1].get("choices", {})) if self._environments else {}

    @property
    def overrides(self) -> list[str]:
        """The run's own overrides, as they were given on the command line; those of a resume replace earlier ones."""
        return merged((row.get("overrides", []) for row in self._environments), self.config)

    @property
    def seed(self) -> int:
        """The run's `seed`."""
        return int(self.config["seed"])

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What is in `summary.json`; empty while the run has not finished."""
        path = self.folder / _SUMMARY
        if not path.exists():
            return {}
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise DamagedError(f"{path} cannot be read: {error}") from error
        return found

    @property
    def finished(self) -> bool:
        """Whether the run has reached its last round."""
        return (self.folder / _SUMMARY).exists()

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row for each round, in order, the columns of `metrics.jsonl`; the index is the round."""
        return _indexed(read_rows(self.folder / METRICS), "round")

    @cached_property
    def clients(self) -> pd.DataFrame:
        """A row for each round and client that took part; the index is the round and the client's number.

        Raises:
            FileNotFoundError: the run has not recorded them.
        """
        path = self.folder / CLIENTS
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: a run writes it with log_clients=true")
        return _indexed(read_rows(path), "round", "client_id")

    @cached_property
    def partition(self) -> list[np.ndarray]:
        """Each client's indices of training samples, those held out at the end of each."""
        path = self.folder / _PARTITION
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: a run writes it before its first round")
        with np.load(path) as saved:
            return np.split(saved_indices(saved)[:], saved["ends"][:-1])

    @cached_property
    def digests(self) -> pd.DataFrame:
        """A row for each round: checksums of the `parameters` by name, and of what the `clients` sent by number."""
        return _indexed(read_rows(self.folder / DIGESTS), "round")

    @property
    def digest(self) -> str:
        """The SHA-256 of the global model after the last round; empty before the first one."""
        return str(self.metrics["digest"].iloc[-1]) if len(self.metrics) else ""

    def model(self) -> "nn.Module":
        """The Lightning module with the final global model's weights, on the CPU.

        Raises:
            FileNotFoundError: the run has not finished, or the file has been removed.
            ValueError: the file is damaged.
        """
        from flrl.evaluate_run import load_weights
        from flrl.recipe import Recipe
        from flrl.runs.integrity import missing_model

        path = self.folder / _MODEL
        if not path.exists():
            raise FileNotFoundError(missing_model(self.folder))
        module: nn.Module = Recipe(self.config).module()
        load_weights(module, path)
        return module

    @cached_property
    def _environments(self) -> list[dict[str, Any]]:
        return [*read_rows(self.folder / ENVIRONMENTS)]

    def __repr__(self) -> str:
        rounds = f"{len(self.metrics)} of {self.config['strategy']['rounds']} rounds"
        return f"Run({str(self.folder)!r}, {rounds}, {' '.join(self.overrides)})"


def load(folder: str | Path) -> Run:
    """The run in a folder, finished or not.

    Raises:
        FileNotFoundError: there is no run in the folder.
    """
    folder = Path(folder)
    if not (folder / ".hydra" / "config.yaml").exists():
        below = len(_folders(folder))
        more = f"; it holds {below} runs: flrl.results.runs({str(folder)!r})" if below else ""
        raise FileNotFoundError(f"{folder}: there is no run in this folder{more}")
    return Run(folder)


def runs(*folders: str | Path) -> list[Run]:
    """The runs in folders and below them, each once, in the order of their names: of sweeps, for instance.

    Raises:
        FileNotFoundError: there is none in one of them.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        own = _folders(folder)
        if not own:
            raise FileNotFoundError(f"{folder}: there is no run in this folder nor below it")
        for path in own:
            found.setdefault(path.resolve(), path)
    return [Run(path) for path in found.values()]


def _folders(folder: Path) -> list[Path]:
    """Folders of runs, in the order of names, numbers by their value."""
    found = [path.parent for path in folder.rglob(METRICS) if (path.parent / ".hydra" / "config.yaml").exists()]
    return sorted(found, key=lambda path: [(len(part) if part.isdigit() else 0, part) for part in path.parts])


def frame(runs: Iterable[Run], *columns: str, of: Literal["metrics", "clients"] = "metrics") -> pd.DataFrame:
    """The rows of `metrics`, or of `clients`, of several runs below each other.

    Args:
        runs: the runs.
        columns: groups and keys of the configuration (`strategy`, `seed`, `model.optimizer.lr`), which become columns
            beside `run`, the run's folder, and `round`.
        of: which rows.

    Raises:
        ValueError: a run has neither such a group nor such a key.
        FileNotFoundError: a run has not recorded its clients.
    """
    parts = []
    for run in runs:
        own = (run.clients if of == "clients" else run.metrics).reset_index()
        for place, (name, value) in enumerate([("run", str(run.folder)), *((c, setting(run, c)) for c in columns)]):
            own.insert(place, name, [value] * len(own))
        parts.append(own)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def setting(run: Run, name: str) -> Any:
    """A run's choice in a group, or its value of a key with dots, as text where it is neither number nor text.

    Raises:
        ValueError: the run has neither.
    """
    if name in run.choices:
        return run.choices[name]
    value: Any = run.config
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            from flrl.cli.keys import either, keys_of, meant

            close = meant(name, [*dict.fromkeys([*run.choices, *keys_of(run.config)])])
            more = f"did you mean {either(close)}?" if close else f"groups: {', '.join(run.choices)}"
            raise ValueError(f"{name}: neither a group nor a key of {run.folder}; {more}")
        value = value[part]
    return value if isinstance(value, bool | int | float | str) or value is None else json.dumps(value)


def _indexed(rows: Iterable[Mapping[str, Any]], *index: str) -> pd.DataFrame:
    found = pd.DataFrame(list(rows))
    return found.set_index(list(index)) if len(found) else pd.DataFrame(columns=[*index, "digest"]).set_index([*index])
