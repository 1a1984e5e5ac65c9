"""Trainers and callbacks that fail on purpose, for runs that are started in processes of their own."""

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import flrl.runs.checkpoint
from flrl.callbacks import Callback
from flrl.trainers import ClientHooks, EagerTrainer, LocalProblem, Trained
from flrl.types import ClientTask


class FaultyTrainer(EagerTrainer):
    """Does something bad while it trains one client in one round, until a file records that it has been done.

    Args:
        fault: "raise", "exit", "kill" (SIGKILL to itself), "stop" (SIGSTOP), "sleep"; in all rounds: "always" raises,
            "slow" lets every client sleep for 0.2 s.
        client_id: whose training.
        round: in which round.
        mark: a file: the fault happens only where it is not there, and is written before; null fails every time.

    A file `<mark>.orders` has the word over fault, client and round: a resume may not change a trainer's settings.
    """

    def __init__(
        self, *, fault: str, client_id: int = 3, round: int = 3, mark: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.fault, self.client_id, self.round, self.mark = fault, client_id, round, mark
        if mark is not None and Path(f"{mark}.orders").exists():
            vars(self).update(json.loads(Path(f"{mark}.orders").read_text()))

    def fit(self, problem: LocalProblem, hooks: ClientHooks) -> Trained:
        if self.fault == "slow":
            time.sleep(0.0 if self.mark is not None and Path(self.mark).exists() else 0.2)
        elif self._here(problem.task) and self._due():
            self._fail()
        return super().fit(problem, hooks)

    def _here(self, task: ClientTask) -> bool:
        return task.client_id == self.client_id and (task.round == self.round or self.fault == "always")

    def _due(self) -> bool:
        if self.mark is None:
            return True
        if Path(self.mark).exists():
            return False
        Path(self.mark).write_text("")
        return True

    def _fail(self) -> None:
        if self.fault in ("raise", "always"):
            raise RuntimeError("the client's disk is full of cats")
        if self.fault == "exit":
            os._exit(7)
        if self.fault in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)
        time.sleep(3600 if self.fault == "sleep" else 0)


class FullDisk(Callback):
    """From a round on, nothing can be written into checkpoints any more, until a file exists."""

    def __init__(self, *, round: int = 3, mark: str) -> None:
        self.round, self.mark = round, mark

    def on_round_start(self, round: int, cohort: Any) -> None:
        if round == self.round and not Path(self.mark).exists():
            Path(self.mark).write_text("")
            flrl.runs.checkpoint._write_synced = _no_space


def _no_space(path: Path, data: bytes) -> None:
    path.write_bytes(data[: len(data) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
