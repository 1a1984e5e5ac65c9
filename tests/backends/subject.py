"""A run that is ended over and over by faults, each start of it the resume after the one before."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flrl.runs.checkpoint import list_checkpoints, load_checkpoint
from tests.backends.launch import Launcher, Started

ROUNDS = 60
RUN = (
    "--config-dir=tests/conf", "trainer=faulty", "strategy=fedavgm", f"strategy.rounds={ROUNDS}", "log_clients=true",
    "trainer.keep_optimizer_state=true", "model.optimizer.momentum=0.9", "logger=none",
)  # fmt: skip
BACKENDS: dict[str, tuple[int, tuple[str, ...]]] = {  # MPI processes, and overrides
    "serial": (0, ()),
    "process": (0, ("backend=process", "backend.workers=2")),
    "mpi": (3, ("backend=mpi",)),
}
WHAT_RAISES = "RuntimeError: the client's disk is full of cats"


@dataclass
class Subject:
    """A run that is started over and over in one folder, on one backend."""

    launcher: Launcher
    folder: Path
    backend: str
    expected: list[dict[str, Any]]
    starts: int = 0

    def start(self, *overrides: str) -> Any:
        """Start it, or go on with it; what the trainer is to do is no setting of the run, but in a file."""
        self.starts += 1
        self.mark.unlink(missing_ok=True)
        orders = dict(override.removeprefix("trainer.").split("=") for override in overrides if "trainer." in override)
        numbers = {name: int(value) if value.isdigit() else value for name, value in orders.items()}
        Path(f"{self.mark}.orders").write_text(json.dumps(numbers))
        overrides = tuple(override for override in overrides if "trainer." not in override)
        processes, own = BACKENDS[self.backend]
        output = self.folder.with_name(f"{self.folder.name}-{self.starts}.txt")
        where = (f"trainer.mark={self.mark}", f"hydra.run.dir={self.folder}", "resume=auto")
        return self.launcher.start(*RUN, *own, *overrides, *where, output=output, mpi=processes)

    @property
    def mark(self) -> Path:
        """The file that records that the fault has happened, and when."""
        return self.folder.with_name(f"{self.folder.name}-mark")

    @property
    def rounds(self) -> int:
        """Complete rounds in metrics.jsonl."""
        return len(rows(self.folder))

    @property
    def saved(self) -> int:
        """The newest checkpoint's round."""
        found = list_checkpoints(self.folder)
        return load_checkpoint(found[-1], {}).round if found else 0

    def reaches(self, run: Started, round: int) -> None:
        """Wait until a round is complete."""
        run.until(lambda: self.rounds >= round or run.ended, f"round {round}")
        assert self.rounds >= round, run.output

    def check(self, *, saved: int | None = None) -> None:
        """All that is on disk is as in the undisturbed run; the newest checkpoint is that of a given round."""
        rounds = self.rounds
        assert rows(self.folder) == self.expected[:rounds]
        assert self.saved in ((rounds - 1, rounds) if saved is None else (saved,))
        state = load_checkpoint(list_checkpoints(self.folder)[-1], {})
        meta = json.loads((list_checkpoints(self.folder)[-1] / "state.json").read_text())
        assert meta["digest"] == self.expected[state.round - 1]["digest"]
        assert len(state.memory) == 10


def rows(folder: Path) -> list[dict[str, Any]]:
    """Each complete row of metrics.jsonl without times, with the clients' rows of the round."""
    if not (folder / "metrics.jsonl").exists():
        return []
    metrics = [json.loads(line) for line in lines(folder / "metrics.jsonl")]
    clients = [json.loads(line) for line in lines(folder / "clients.jsonl")]
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        | {"reports": [client for client in clients if client["round"] == row["round"]]}
        for row in metrics
    ]


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def causes(output: str) -> list[str]:
    return re.findall(r"^error: .*", output, re.MULTILINE)
