"""What `backend.portable` costs: seconds of a round with and without it.

    python -m benchmarks.portable --turns 3 --rounds 15

Whole runs of the main job take turns, each in a process of its own, since libraries choose their kernels once. A round
is all that lies between the ends of two rounds: training, aggregation, evaluation. Medians over the rounds of all
turns, but the first two of each; processor time beside wall time, as it hardly depends on what else is running.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.overhead import ROOT, processor
from flrl.callbacks import Callback

WARM_UP = 2
JOBS = {
    "main job": ("+experiment=mnist_fedavg",),
    "McMahan's CNN, 10 clients of 60 samples, no evaluation": (
        "+experiment=mnist_fedavg", "model=mcmahan_cnn", "partition.num_clients=100", "strategy.sampler.num=10",
        "holdout=0.9", "evaluation.every=1000",
    ),
}  # fmt: skip


class Clock(Callback):
    """Prints wall and processor time after each round."""

    def on_round_end(self, state: Any, history: Sequence[Any]) -> None:
        """Print them."""
        print(json.dumps([time.perf_counter(), time.process_time()]), flush=True)


def rounds_of(job: Sequence[str], portable: bool, rounds: int, data_dir: str) -> list[tuple[float, float]]:
    """Wall and processor seconds of each round of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "flrl.train", *job,
            f"strategy.rounds={rounds}", f"backend.portable={str(portable).lower()}",
            "logger=none", "callbacks=none", "+callbacks.clock._target_=benchmarks.portable.Clock",
            f"hydra.run.dir={folder}/run", f"paths.data_dir={data_dir}",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    ends = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    pairs = list(zip(ends[WARM_UP - 1 :], ends[WARM_UP:], strict=False))
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairs]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--data-dir", default=str(ROOT / "data"))
    options = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {processor()}")
    print("| a round of | without | portable | / without | processor time, / without |\n|---|---:|---:|---:|---:|")
    for name, job in JOBS.items():
        found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        for _ in range(options.turns):
            for portable, seconds in found.items():
                seconds += rounds_of(job, portable, options.rounds, options.data_dir)
        (wall, cpu), (held_wall, held_cpu) = (
            [statistics.median(column) for column in zip(*seconds, strict=True)] for seconds in found.values()
        )
        print(f"| {name} | {wall:.3f} s | {held_wall:.3f} s | {held_wall / wall:.2f} | {held_cpu / cpu:.2f} |")


if __name__ == "__main__":
    main()
