"""All that a machine with a GPU should answer about flrl, in one command.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --parts rounds digests --jobs C
    python -m benchmarks.gpu --device cpu --quick

The last one is the dry run: the same questions in small, on a CPU, in two or three minutes; its numbers mean nothing.
Jobs are B (CNN, 10 of 100 clients) and C (2NN, 100 of 1,000 clients) of `benchmarks.run`. MNIST is taken where it lies
already, else made-up samples of its shape, as in the dry run; nothing is fetched. Parts:

- rounds: seconds a round of all engines beside a bare PyTorch loop over tensors on the device, and pfl-research where
  `python -m benchmarks.peers.run pfl` has installed it;
- digests: whether engines end in the same bits twice in a process, in two, and what deterministic algorithms change;
- workers: several processes on one device, and whether they end in the digest of the serial backend;
- streams: whether clients on several CUDA streams would pay;
- graphs: a step as a replay, as a CUDA graph, and compiled;
- precision: TF32 and bfloat16, seconds and accuracy;
- memory: peak GPU memory of each engine;
- transfers: samples on the device, or sent there batch by batch.

Numbers are medians over repetitions in turn. What fails says so in its table, the rest goes on, and the exit code is 1.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import rounds, steps
from benchmarks.gpu.jobs import Settings, Table, has_mnist
from benchmarks.overhead import ROOT, processor

PARTS: dict[str, Callable[[Settings, str], Table]] = {
    "rounds": rounds.rounds,
    "digests": rounds.digests,
    "workers": rounds.workers,
    "streams": steps.streams,
    "graphs": steps.graphs,
    "precision": rounds.precision,
    "memory": rounds.memory,
    "transfers": rounds.transfers,
}


def main(arguments: Sequence[str] | None = None) -> None:
    asked = parse(arguments)
    torch.set_num_threads(1)
    settings = Settings(
        device=asked.device,
        quick=asked.quick,
        data=asked.data.resolve() if has_mnist(asked.data) and not asked.quick else None,
        repetitions=asked.repetitions or (1 if asked.quick else 3),
        rounds=asked.rounds or 2,
        environments=asked.environments.resolve(),
    )
    report = {"machine": machine(settings), "settings": vars_of(settings), "parts": {}}
    if asked.quick:
        report["machine"] = f"Dry run, numbers mean nothing: {report['machine']}"
    print(f"{report['machine']}\n", flush=True)
    failures = []
    for part in asked.parts:
        for job in asked.jobs:
            table = answered(part, job, settings)
            report["parts"][f"{part} {job}"] = vars(table)
            failures += [f"{part} {job}: {failure}" for failure in table.failures]
            print(table.markdown(), flush=True)
            write(report, asked.output)
    print(f"written to {asked.output} and {asked.output.with_suffix('.md')}")
    if failures:
        sys.exit("\n".join(["failed:", *failures]))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="All that a machine with a GPU should answer about flrl.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ..., or cpu for a dry run")
    parser.add_argument("--quick", action="store_true", help="everything in small")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--jobs", nargs="+", choices=["B", "C"], default=["B", "C"])
    parser.add_argument("--repetitions", type=int, help="3, or 1 with --quick")
    parser.add_argument("--rounds", type=int, help="of each training; 2 unless told")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder with MNIST/raw, if there is one")
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers", help="of pfl-research")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/gpu.json")
    asked = parser.parse_args(arguments)
    if asked.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device={asked.device}: torch finds no CUDA device here; --device cpu --quick is the dry run")
    for name in ("repetitions", "rounds"):
        if getattr(asked, name) is not None and getattr(asked, name) < 1:
            parser.error(f"--{name}: must be at least 1")
    return asked


def answered(part: str, job: str, settings: Settings) -> Table:
    """A part's table, or what became of it."""
    started = time.perf_counter()
    try:
        table = PARTS[part](settings, job)
    except Exception as error:
        table = Table(f"Job {job}: {part}", ["", "result"])
        table.fail(part, error)
    table.notes.append(f"This part took {time.perf_counter() - started:.0f} s.")
    return table


def machine(settings: Settings) -> str:
    """The device and what runs on it, in a line."""
    device = processor()
    if settings.cuda:
        properties = torch.cuda.get_device_properties(settings.device)
        device = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, {device}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("flrl", "torch", "pytorch-lightning"))
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return (
        f"{device}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {versions}, {settings.samples}, {date}"
    )


def vars_of(settings: Settings) -> dict[str, Any]:
    """Settings for the JSON."""
    return {name: getattr(settings, name) for name in ("device", "quick", "repetitions", "rounds", "samples")}


def write(report: dict[str, Any], path: Path) -> None:
    """The JSON, and its tables in Markdown beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    tables = [Table(**part).markdown() for part in report["parts"].values()]
    path.with_suffix(".md").write_text("\n".join([str(report["machine"]), "", *tables]))


if __name__ == "__main__":
    main()
