"""Kills runs at random times and resumes them elsewhere: does each end as if nothing had happened?

    python -m benchmarks.chaos --kills 200

A kill is SIGKILL to any process of a run (main process, worker, rank, mpiexec). Every fourth comes at a time drawn
evenly from the length of an undisturbed run of that backend, its start included; the others within a fifth of a second
after a checkpoint drawn at random, since imports take most of a short run. What is left of the run has to end by
itself; then the same command with `resume=auto` finishes it on a backend drawn at random. Compared with the undisturbed
serial run: the final digest, every row of metrics.jsonl without `time/*`, every row of clients.jsonl.

The run is small but has all that a checkpoint must hold: cohorts drawn by round, a server optimizer with momentum,
clients that keep theirs, batch orders. Runs on `serial` are forks of a process that has paid for the imports;
`process` and `mpi` start as a user starts them. Three kills and resumes of five are on `serial`, where rounds take most
of the time; on the others imports do.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from flrl.runs.checkpoint import list_checkpoints
from tests.backends.launch import MPIEXEC, Launcher, Started

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 20
COMMAND = (
    "strategy=fedavgm", f"strategy.rounds={ROUNDS}", "strategy.sampler.num=6", "partition=dirichlet", "holdout=0.2",
    "evaluation.clients_every=5", "trainer.shuffle=true", "trainer.local_epochs=8", "trainer.keep_optimizer_state=true",
    "model.optimizer.momentum=0.9", "log_clients=true", "logger=none",
)  # fmt: skip
BACKENDS: dict[str, tuple[int, tuple[str, ...], int]] = {  # MPI processes, overrides, kills of every five
    "serial": (0, (), 3),
    "process": (0, ("backend=process", "backend.workers=2"), 1),
    "mpi": (3, ("backend=mpi",), 1),
}
GONE_WITHIN_S = 15.0
"""What a kill leaves of a run has to be gone after so many seconds."""


@dataclass(frozen=True, slots=True)
class Kill:
    """What was killed, and what came of it.

    Attributes:
        number: from 1.
        backend: of the run.
        at_s: seconds after its start.
        target: the process, empty if there was none any more.
        too_late: the run had ended, or ended as if nothing had happened.
        rounds: in the newest checkpoint at that time; 0 if there was none.
        gone_s: seconds until the last process had ended.
        resumed_on: the backend that finished it, empty if it came too late.
        differences: from the undisturbed run; empty if there are none.
    """

    number: int
    backend: str
    at_s: float
    target: str
    too_late: bool
    rounds: int
    gone_s: float
    resumed_on: str
    differences: tuple[str, ...]


class Chaos:
    """A launcher of runs, the backends in their turns, the undisturbed outcome and how long each takes to it."""

    def __init__(self, launcher: Launcher, folder: Path, turns: Sequence[str], seed: int) -> None:
        self.launcher, self.folder, self.turns, self.seed = launcher, folder, turns, seed
        self.seconds: dict[str, float] = {}
        self.expected = self.undisturbed("serial")
        for backend in sorted(set(turns) - {"serial"}):
            if found := differences(self.undisturbed(backend), self.expected):
                sys.exit(f"undisturbed runs on serial and {backend} differ: {found}")

    def undisturbed(self, backend: str) -> dict[str, Any]:
        """What a whole run comes to; notes how long it took."""
        folder, started = self.folder / backend, time.monotonic()
        with self.start(backend, folder) as run:
            run.wait()
        self.seconds[backend] = time.monotonic() - started
        if run.code != 0:
            sys.exit(f"the undisturbed run on {backend} ended with exit code {run.code}:\n{run.output}")
        return outcome(folder)

    def start(self, backend: str, folder: Path, *arguments: str) -> Any:
        """Start the run, or go on with it."""
        processes, own, _ = BACKENDS[backend]
        output = folder.with_name(f"{folder.name}.txt")
        command = (*COMMAND, *own, f"hydra.run.dir={folder}", *arguments)
        return self.launcher.start(*command, output=output, mpi=processes, forked=backend == "serial")

    def kill(self, number: int, backend: str) -> Kill:
        """One kill, and the resume."""
        rng = np.random.default_rng([self.seed, number])
        folder, started = self.folder / f"kill-{number:04d}", time.monotonic()
        with self.start(backend, folder) as run:
            if number % 4 == 0:
                time.sleep(rng.uniform(0, self.seconds[backend]))
            else:
                self.wait_for(int(rng.integers(1, ROUNDS)), run, folder)
                time.sleep(rng.uniform(0, 0.2))
            at_s = time.monotonic() - started
            target = self.strike(run, rng)
            struck, rounds = time.monotonic(), newest(folder)
            run.wait()
            gone_s = time.monotonic() - struck
        resumed_on = "" if run.code == 0 else str(rng.choice(self.turns))
        found = [f"{gone_s:.0f} s until all had ended"] if gone_s > GONE_WITHIN_S and target else []
        if resumed_on:
            with self.start(resumed_on, folder, "resume=auto") as run:
                run.wait()
        if run.code != 0:
            found.append(f"exit code {run.code} on {resumed_on}: {run.output[-2000:]}")
        else:
            found += differences(outcome(folder), self.expected)
        return Kill(number, backend, at_s, target, not resumed_on, rounds, gone_s, resumed_on, tuple(found))

    @staticmethod
    def wait_for(round: int, run: Started, folder: Path) -> None:
        """Wait for a round's checkpoint, or for the end of the run."""
        while newest(folder) < round and run.processes():
            time.sleep(0.005)

    def strike(self, run: Started, rng: np.random.Generator) -> str:
        """Kill one of the run's processes; says which one, nothing if there was none."""
        processes: dict[str, psutil.Process] = {}
        for process in sorted(run.processes(), key=lambda process: process.pid):
            if name := role(run, process):
                processes[f"worker {len(processes)}" if name == "worker" else name] = process
        if not processes:
            return ""
        name = str(rng.choice(sorted(processes)))
        try:
            processes[name].kill()
        except psutil.NoSuchProcess:
            return ""
        return name


def role(run: Started, process: psutil.Process) -> str:
    """What a process is to its run; nothing for Python's own, whose end does not matter."""
    try:
        command, rank = process.cmdline(), process.environ().get("OMPI_COMM_WORLD_RANK")
    except psutil.Error:
        return ""
    if any("resource_tracker" in word for word in command):
        return ""
    if rank is not None:
        return f"rank {rank}"
    if process.pid == run.process:
        return "mpiexec" if "--oversubscribe" in command else "main"
    return "worker"


def newest(folder: Path) -> int:
    """The round of the newest checkpoint; 0 if there is none."""
    found = list_checkpoints(folder)
    return int(found[-1].name.removeprefix("round-")) if found else 0


def outcome(folder: Path) -> dict[str, Any]:
    """All that must be as in the undisturbed run."""
    metrics, clients = (read(folder / name) for name in ("metrics.jsonl", "clients.jsonl"))
    rows = [{name: value for name, value in row.items() if not name.startswith("time/")} for row in metrics]
    digest = json.loads((folder / "summary.json").read_text())["digest"]
    return {"digest": digest, "metrics.jsonl": rows, "clients.jsonl": clients}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The parts of an outcome that differ, by name."""
    return [name for name in expected if found[name] != expected[name]]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    backends = [name for name in options.backends if name != "mpi" or Path(MPIEXEC).exists()]
    if backends != options.backends:
        print("without mpi: there is no mpiexec (pip install 'flrl[dev]')")
    turns = [name for name in BACKENDS if name in backends for _ in range(BACKENDS[name][2])]
    launcher, kills = Launcher(), []
    with tempfile.TemporaryDirectory(prefix="flrl-chaos-") as folder:
        chaos = Chaos(launcher, Path(folder), turns, options.seed)
        lengths = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in chaos.seconds.items())
        print(f"undisturbed: {lengths}; digest {chaos.expected['digest']}", flush=True)
        for number, backend in enumerate(islice(cycle(turns), options.kills), 1):
            kills.append(chaos.kill(number, backend))
            print(progress(kills[-1], options.kills), flush=True)
    launcher.close()
    print(f"\n{table(kills)}")
    write(options, chaos, kills)
    if any(kill.differences for kill in kills):
        sys.exit("not every run ended as if nothing had happened")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill runs at random times and resume them elsewhere.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of what is killed when, and resumed where")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/chaos.json")
    options = parser.parse_args(arguments)
    if options.kills < 1:
        parser.error(f"--kills={options.kills}: must be at least 1")
    return options


def progress(kill: Kill, kills: int) -> str:
    """A kill in one line."""
    line = f"{kill.number:>{len(str(kills))}}/{kills}  {kill.backend:<7}  {kill.at_s:5.1f} s  "
    if kill.too_late:
        return line + "too late" + (f": {'; '.join(kill.differences)}" if kill.differences else "")
    came_to = "; ".join(kill.differences) or "undisturbed"
    return line + f"{kill.target}, round {kill.rounds} saved, gone in {kill.gone_s:.1f} s, {kill.resumed_on}: {came_to}"


def table(kills: Sequence[Kill]) -> str:
    """The kills by backend, in Markdown."""
    lines = [
        "| backend | kills | resumed to the undisturbed digest | of them killed before the first checkpoint "
        "| came too late | failed |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for backend in [*dict.fromkeys(kill.backend for kill in kills), "all"]:
        mine = [kill for kill in kills if backend in (kill.backend, "all")]
        resumed = [kill for kill in mine if not kill.too_late and not kill.differences]
        early, late = sum(kill.rounds == 0 for kill in resumed), sum(kill.too_late for kill in mine)
        failed = sum(bool(kill.differences) for kill in mine)
        lines.append(f"| {backend} | {len(mine)} | {len(resumed)} | {early} | {late} | {failed} |")
    return "\n".join(lines)


def write(options: argparse.Namespace, chaos: Chaos, kills: Sequence[Kill]) -> None:
    """All that was done, as JSON."""
    report = {
        "seed": options.seed,
        "digest": chaos.expected["digest"],
        "undisturbed_s": chaos.seconds,
        "kills": [asdict(kill) for kill in kills],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("flrl", "torch")},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {options.output}")


if __name__ == "__main__":
    main()
