"""What client memory costs where it is larger than the RAM it may take: SCAFFOLD over 10^5 clients.

    python -m benchmarks.client_memory
    python -m benchmarks.client_memory --rounds 6 --population 1000 --budget 100000000

10^5 clients of 60 samples train McMahan's 2NN (199,210 parameters: a control variate is 797 kB), 100 of them a round,
with a budget of 1 GB. Runs start as `flrl-train` starts them, serial backend, one thread, a checkpoint every round of
which two are kept, each in a process of its own, so that its peak memory (`ru_maxrss`) is nobody else's. Shown are that
peak, the seconds of a round (`time/round_s`), of a checkpoint (with its writing of segments and the deletion of old
ones), and the bytes on disk beside those that the clients remember.

Then the same run is killed (SIGKILL) in the middle and resumed; it has to end with the same digest. The 6,000,000
samples are 60,000 of random pixels, which indices address modulo their number: no memory of the data is measured.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flrl.callbacks import Checkpoint
from flrl.data import Splits, TensorSource
from flrl.runs.checkpoint import kept_indexes, list_checkpoints, round_of
from flrl.types import ServerState

ROOT = Path(__file__).resolve().parents[1]
SAMPLES_EACH = 60
DISTINCT = 60_000
SECONDS = "checkpoint_s.jsonl"
GIGABYTE = 10**9


class Repeated:
    """A source that repeats a few samples."""

    labels = None

    def __init__(self, source: TensorSource, num_samples: int) -> None:
        self.source = source
        self.num_samples = num_samples

    def __len__(self) -> int:
        """Number of samples, counting repetitions."""
        return self.num_samples

    def batches(self, indices: np.ndarray, batch_size: int, *, reuse: bool = False) -> Iterator[Any]:
        """As for `Source`; nothing is kept, since hardly one of so many clients takes part twice."""
        return self.source.batches(indices % len(self.source), batch_size)

    def subset(self, indices: np.ndarray) -> TensorSource:
        """As `Source` says."""
        return self.source.subset(indices % len(self.source))


def pixels(*, num_samples: int, input_shape: Sequence[int], num_classes: int, seed: int) -> Splits:
    """Random pixels and classes."""
    generator = torch.Generator().manual_seed(seed)

    def source(samples: int) -> TensorSource:
        inputs = torch.randint(256, (samples, *input_shape), dtype=torch.uint8, generator=generator)
        return TensorSource(inputs, torch.randint(num_classes, (samples,), generator=generator))

    return Splits(Repeated(source(DISTINCT), num_samples), source(1000))


class TimedCheckpoint(Checkpoint):
    """Notes how long each checkpoint takes."""

    def _save(self, state: ServerState) -> None:
        started = time.perf_counter()
        super()._save(state)
        with (self._run.folder / SECONDS).open("a") as file:
            file.write(json.dumps({"round": state.round, "seconds": time.perf_counter() - started}) + "\n")


def command(options: argparse.Namespace, folder: Path) -> list[str]:
    """What starts or resumes the run in a folder."""
    overrides = [
        "dataset._target_=benchmarks.client_memory.pixels",
        "~dataset.test_samples",
        "~dataset.separation",
        "dataset.input_shape=[1,28,28]",
        "dataset.num_classes=10",
        "model.net.num_classes=10",  # the source has no labels to read it from
        "model.num_classes=10",
        f"dataset.num_samples={SAMPLES_EACH * options.population}",
        f"partition.num_clients={options.population}",
        f"strategy.sampler.num={options.cohort}",
        f"strategy.rounds={options.rounds}",
        f"client_store.budget_bytes={options.budget}",
        "callbacks.checkpoint._target_=benchmarks.client_memory.TimedCheckpoint",
        "~callbacks.progress",
        "evaluation.every=1000",
        "logger=none",
        "resume=auto",
        f"hydra.run.dir={folder}",
    ]
    groups = ["dataset=synthetic_classification", "model=mlp_2nn", "strategy=scaffold"]
    return [sys.executable, "-m", "flrl.train", *groups, *overrides]


def finished(options: argparse.Namespace, folder: Path, *, killed_after: int | None = None) -> int:
    """Run until the end, or SIGKILL after a round; returns the peak memory in bytes."""
    process = subprocess.Popen(command(options, folder), cwd=ROOT, stdout=subprocess.DEVNULL)
    while killed_after is not None and newest(folder) < killed_after:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself with {process.returncode}")
        time.sleep(0.05)
    if killed_after is not None:
        process.send_signal(signal.SIGKILL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if killed_after is None and process.returncode != 0:
        raise RuntimeError(f"the run ended with {process.returncode}")
    return usage.ru_maxrss * 1024


def newest(folder: Path) -> int:
    return max((round_of(path) for path in list_checkpoints(folder)), default=0)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def digest(folder: Path) -> str:
    return str(json.loads((folder / "summary.json").read_text())["digest"])


def remembered(folder: Path) -> tuple[int, int]:
    """Clients that remember something at the end, and the bytes of it."""
    index = kept_indexes(folder)[-1]
    elements = {shape: prod(shape) for kind in index.descriptions for _, _, shape in kind}
    assert len(elements) == 1  # one control variate each
    return len(index), 4 * sum(elements.values()) * len(index)


def show(folder: Path, peak: int) -> None:
    """What the undisturbed run cost."""
    rounds = [row["time/round_s"] for row in rows(folder / "metrics.jsonl") if row["round"] > 1]
    checkpoints = [row["seconds"] for row in rows(folder / SECONDS)]
    clients, alive = remembered(folder)
    on_disk, states = size(folder / "clients"), size(folder / "checkpoints")
    print(f"clients that remember     {clients:,}, {alive / GIGABYTE:.2f} GB together")
    print(f"peak memory               {peak / GIGABYTE:.2f} GB")
    print(f"a round                   {statistics.median(rounds):.2f} s, at most {max(rounds):.2f} s")
    print(f"a checkpoint              {statistics.median(checkpoints):.2f} s, at most {max(checkpoints):.2f} s")
    print(f"on disk                   {on_disk / GIGABYTE:.2f} GB, {on_disk / alive:.2f} times what is remembered")
    print(f"two checkpoints           {states / 10**6:.1f} MB", flush=True)


def main() -> None:
    options = parse_arguments()
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
        show(whole, finished(options, whole))
        finished(options, killed, killed_after=options.rounds // 2)
        after = newest(killed)
        peak = finished(options, killed)
        same = digest(whole) == digest(killed)
        print(f"killed after round {after}     resumed with a peak of {peak / GIGABYTE:.2f} GB; ", end="")
        print(f"digest {digest(killed)[:16]} is {'the same' if same else 'ANOTHER: ' + digest(whole)[:16]}")
        if not same:
            sys.exit(1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure client memory beyond its budget.")
    parser.add_argument("--rounds", type=int, default=32)
    parser.add_argument("--population", type=int, default=10**5)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--budget", type=int, default=GIGABYTE, help="bytes of tensors in RAM")
    parser.add_argument("--folder", type=Path, help="where the runs' folders are made")
    return parser.parse_args()


if __name__ == "__main__":
    main()
