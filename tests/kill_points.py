"""Runs flrl-train in forked children that kill themselves (SIGKILL) at a given point. Started by test_resume.py.

A process of its own, because forking needs one without threads; imports are paid for once.

    python -m tests.kill_points FOLDER POINT...      with POINT = <where>:<round>
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import flrl.run
import flrl.runs.checkpoint
from flrl.callbacks import RunFolder
from flrl.rounds import Rounds
from flrl.train import main

COMMAND = [
    "strategy=fedavgm", "strategy.rounds=5", "strategy.sampler.num=3", "partition=dirichlet", "logger=csv",
    "trainer.shuffle=true", "trainer.keep_optimizer_state=true", "model.optimizer.momentum=0.9", "log_clients=true",
]  # fmt: skip


def run(folder: Path, *arguments: str, kill: tuple[str, int] | None = None) -> int:
    """A run in a child; returns its exit code, minus the signal if it was killed."""
    child = os.fork()
    if child == 0:
        sys.stdout = open(os.devnull, "w")
        if kill is not None:
            arm(*kill)
        sys.argv = ["flrl-train", *COMMAND, f"hydra.run.dir={folder}", *arguments]
        code = 1
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def arm(where: str, round: int) -> None:
    """Make this process kill itself at a point of a round."""
    seen = {"count": 0}

    def strike(*args: Any) -> None:
        seen["count"] += 1
        if seen["count"] == round:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def struck(*args: Any, **kwargs: Any) -> Any:
            strike()
            return original(*args, **kwargs)

        setattr(owner, name, struck)

    owner, name = {
        "training": (Rounds, "_round"),
        "metrics": (RunFolder, "on_round_end"),
        "checkpoint": (flrl.runs.checkpoint, "_write_synced"),  # twice a round: the tensors, then the json
        "rename": (flrl.runs.checkpoint.os, "rename"),
        "pruning": (flrl.runs.checkpoint, "sync"),
        "summary": (RunFolder, "on_fit_end"),
    }[where]
    before(owner, name)


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal: every round's digest and losses, the summary's digest, the clients' rows."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clients = [json.loads(line) for line in (folder / "clients.jsonl").read_text().splitlines()]
    return {
        "rounds": [[row["round"], row["digest"], row["test/loss"], row["train/loss"]] for row in rows],
        "clients": [[row["round"], row["client_id"], row["train/loss"]] for row in clients],
        "digest": json.loads((folder / "summary.json").read_text())["digest"],
        "csv": (folder / "csv" / "metrics.csv").read_text().count("\n"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    results: dict[str, Any] = {"undisturbed": [run(base / "undisturbed"), None, outcome(base / "undisturbed")]}
    for point in sys.argv[2:]:
        where, round = point.split(":")
        folder = base / f"{where}-{round}"
        killed = run(folder, kill=(where, int(round)))
        resumed = run(folder, "resume=auto")
        results[point] = [killed, resumed, outcome(folder)]
    print(json.dumps(results))
