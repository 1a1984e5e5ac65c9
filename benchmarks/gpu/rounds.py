"""Measurements of whole rounds: engines, peers, digests, several workers on one GPU, precision, memory, transfers."""

import gc
import json
import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.jobs import (
    NEEDS_CUDA,
    DeviceLoop,
    Federation,
    Settings,
    Table,
    config,
    federation,
    in_turn,
    seconds_of,
)
from benchmarks.gpu.jobs import write_idx as write_made_up
from benchmarks.overhead import ROOT
from benchmarks.peers.common import JOBS as PEER_JOBS
from benchmarks.peers.run import Run, measured, python
from flrl.data import TensorSource

BARE = "bare loop"
WIDTHS = {"B": (2, 5, 10), "C": (10, 25, 50, 100)}
LEFT_OUT = ("traced, compiled", "other widths")
"""Of the digests in a dry run."""
BF16 = "trainer.precision=bf16-mixed"
PRECISIONS: dict[str, tuple[str, bool, list[str]]] = {
    "32-true": ("highest", False, []),
    "32-true, TF32 in convolutions": ("highest", True, []),
    "32-true, TF32": ("high", True, []),
    "bf16-mixed": ("highest", False, [BF16]),
}
"""What `torch.set_float32_matmul_precision` and `torch.backends.cudnn.allow_tf32` are given, and overrides."""
PROCESSES = {"traced": ["trainer=traced"], "vectorized": ["trainer=vectorized"]}


def engines(settings: Settings, job: str, *, fewer: bool = False) -> dict[str, list[str]]:
    """All engines as overrides, by name; without `LEFT_OUT` if there are to be fewer."""
    widths = WIDTHS[job][:1] if settings.quick else WIDTHS[job]
    found = {
        "eager": ["trainer=eager"],
        "traced": ["trainer=traced"],
        "traced, fused": ["trainer=traced", "trainer.fuse=true"],
        "traced, compiled": ["trainer=traced", "trainer.compile=true"],
        "vectorized": ["trainer=vectorized"],
        **{f"vectorized, width {width}": ["trainer=vectorized", f"trainer.width={width}"] for width in widths},
        "lightning": ["trainer=lightning"],
    }
    return {name: own for name, own in found.items() if not (fewer and ("compiled" in name or "width" in name))}


def rounds(settings: Settings, job: str) -> Table:
    """Seconds a round of all engines, beside the bare loop and pfl-research."""
    table = Table(f"Job {job}: seconds a round", ["", "median", "/ bare loop", "accuracy"])
    bare = DeviceLoop(config(settings, job), settings.device)
    sides: dict[str, Callable[[], Any]] = {BARE: lambda: bare(threads=1)}
    for name, overrides in engines(settings, job).items():
        sides[name] = Late(lambda overrides=overrides: Federation(config(settings, job, *overrides), settings.device))  # type: ignore[misc]
    with peer(settings, job, table) as pfl:
        results = in_turn(sides | pfl, settings.repetitions, table)
    for name, runs in results.items():
        median = seconds_of(runs)
        table.rows.append([name, median, median / seconds_of(results[BARE]), f"{100 * runs[-1]['accuracy']:.2f} %"])
    return table


class Late:
    """A side that is made when it is first called, so that what cannot be made is a row and no end."""

    def __init__(self, make: Callable[[], Callable[[], Any]]) -> None:
        self.make, self.made = make, None

    def __call__(self) -> Any:
        """Make it, or take what was made, and call it."""
        self.made = self.made or self.make()  # type: ignore[assignment]
        return self.made()  # type: ignore[misc]


@contextmanager
def peer(settings: Settings, job: str, table: Table) -> Iterator[dict[str, Callable[[], Any]]]:
    """pfl-research as a side where it is installed; else the table says that it is not."""
    if settings.quick or not python(settings.environments / "pfl").exists():
        why = (
            "the quick jobs are not its jobs" if settings.quick else "`python -m benchmarks.peers.run pfl` installs it"
        )
        table.notes.append(f"pfl-research is left out: {why}.")
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        if settings.data is None:
            write_made_up(Path(folder))
        arguments = Namespace(
            environments=settings.environments,
            data=settings.data or Path(folder),
            rounds=settings.rounds,
            timeout=1200,
        )

        def side() -> dict[str, Any]:
            with patch.dict(os.environ, PFL_PYTORCH_DEVICE=settings.device):
                found = measured(Run("pfl", job, 1), arguments)
            if "error" in found:
                raise RuntimeError(found["error"].strip().splitlines()[-1])
            return found

        assert job in PEER_JOBS
        yield {"pfl-research": side}


def digests(settings: Settings, job: str) -> Table:
    """Whether an engine ends in the same bits twice, and how far from eager."""
    header = ["", "twice in a process", "in two processes", "deterministic algorithms", "largest difference to eager"]
    table = Table(f"Job {job}: the same digest (the last column is a number, the others say whether it is)", header)
    if settings.quick:
        table.notes.append(f"{' and '.join(LEFT_OUT)} are not asked for in the dry run: `rounds` has trained them.")
    with ThreadPoolExecutor() as pool:  # side by side: nothing is timed, and the device is as busy as it may be
        runs = [pool.submit(_other_process, settings, job, deterministic=which) for which in (False, False, True)]
    first, second, third = (run.result() for run in runs)
    for name, found in first.items():
        failed = [run[name]["error"] for run in (first, second, third) if "error" in run[name]]
        if failed:
            table.fail(name, RuntimeError(failed[0]))
            continue
        own = found["digests"]
        same = [own[0] == own[1], own[0] == second[name]["digests"][0], len(set(third[name]["digests"])) == 1]
        table.rows.append([name, *("yes" if yes else "no" for yes in same), found["difference"]])
        if third[name]["warned"]:
            table.notes.append(f"{name}: no deterministic algorithm for {', '.join(third[name]['warned'])}.")
    return table


def _other_process(settings: Settings, job: str, *, deterministic: bool) -> dict[str, Any]:
    """What `benchmarks.gpu.digests` finds in a process of its own."""
    asked = {
        "job": job,
        "deterministic": deterministic,
        "device": settings.device,
        "quick": settings.quick,
        "data": None if settings.data is None else str(settings.data),
        "rounds": settings.rounds,
    }
    command = [sys.executable, "-m", "benchmarks.gpu.digests", json.dumps(asked)]
    more = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if deterministic else {}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | more, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no word"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def workers(settings: Settings, job: str) -> Table:
    """Several processes on one GPU."""
    table = Table(f"Job {job}: processes on one device", ["", "seconds a round", "digest of serial"])
    one = "cuda:0" if settings.device == "cuda" else settings.device
    numbers, kinds = ((0, 2), ["traced"]) if settings.quick else ((0, 1, 2, 4), list(PROCESSES))
    for name, overrides in ((kind, PROCESSES[kind]) for kind in kinds):
        serial: dict[str, Any] = {}
        for number in numbers:

            def cells(
                number: int = number, overrides: list[str] = overrides, serial: dict[str, Any] = serial
            ) -> list[Any]:
                with federation(config(settings, job, *overrides), one, number) as side:
                    side()
                    runs = [side() for _ in range(settings.repetitions)]
                serial.setdefault("digest", runs[0]["digest"])
                same = {run["digest"] for run in runs} == {serial["digest"]}
                return [seconds_of(runs), "yes" if same else "no"]

            processes = f"{number} process{'es' * (number > 1)}" if number else "serial"
            table.try_row(f"{name}, {processes}", cells)
    return table


def precision(settings: Settings, job: str) -> Table:
    """Rounding: seconds and accuracy."""
    table = Table(f"Job {job}: precision", ["", "seconds a round", "accuracy"])
    if not settings.cuda:
        table.notes.append("A CPU has no TF32: in the dry run its rows do what those without it do.")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for engine, (name, (matmul, convolutions, own)) in product(PROCESSES, PRECISIONS.items()):

        def cells(
            engine: str = engine, matmul: str = matmul, convolutions: bool = convolutions, own: list[str] = own
        ) -> list[Any]:
            torch.set_float32_matmul_precision(matmul)
            torch.backends.cudnn.allow_tf32 = convolutions
            with federation(config(settings, job, *PROCESSES[engine], *own), settings.device) as side:
                side()
                runs = [side() for _ in range(settings.repetitions)]
            return [seconds_of(runs), f"{100 * runs[-1]['accuracy']:.2f} %"]

        table.try_row(f"{engine}, {name}", cells)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    return table


def memory(settings: Settings, job: str) -> Table:
    """The most memory that an engine takes, samples and start included."""
    table = Table(f"Job {job}: peak GPU memory", ["", "allocated, MiB", "reserved, MiB"])
    for name, overrides in engines(settings, job).items():

        def cells(overrides: list[str] = overrides) -> list[Any]:
            gc.collect()
            if settings.cuda:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            with federation(config(settings, job, *overrides), settings.device) as side:
                side()
            if not settings.cuda:
                return [NEEDS_CUDA, NEEDS_CUDA]
            return [torch.cuda.max_memory_allocated() / 2**20, torch.cuda.max_memory_reserved() / 2**20]

        table.try_row(name, cells)
    return table


def transfers(settings: Settings, job: str) -> Table:
    """Samples that lie on the device, or are sent there batch by batch."""
    table = Table(f"Job {job}: where samples are", ["", "seconds a round"])
    if not settings.cuda:
        table.notes.append("On a CPU both are the same.")
    for name, overrides in PROCESSES.items():
        for where, context in (
            ("on the device", nullcontext()),
            ("sent by batch", patch.object(TensorSource, "move_to")),
        ):

            def cells(overrides: list[str] = overrides, context: Any = context) -> list[float]:
                with context, federation(config(settings, job, *overrides), settings.device) as side:
                    side()
                    return [seconds_of([side() for _ in range(settings.repetitions)])]

            table.try_row(f"{name}, {where}", cells)
    return table
