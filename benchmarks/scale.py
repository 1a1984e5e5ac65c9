"""What a run costs as the population and the cohort grow: seconds per round, peak memory, start-up.

    python -m benchmarks.scale
    python -m benchmarks.scale --plot docs/scale.png

Population from 10^3 to 10^6 clients at a cohort of 100; cohort from 10 to 10^4 clients at a population of 10^5. Each
point is a run in a process of its own, so that its peak memory (`ru_maxrss`) is nobody else's: composed by Hydra,
started as `flrl-train` starts it, with the run's files and a checkpoint every round; serial backend, one thread, FedAvg
and, for client memory, SCAFFOLD. A round is timed from the end of one to the end of the next, callbacks and evaluation
included, by the clock and in processor time, which depends less on what else the machine does.

Every client has two samples of 32 uint8 features, 80 bytes with their classes, so that 10^6 clients hold 80 MB: little
beside the process itself, and shown apart. The model is softmax regression (330 parameters): a client's training takes
milliseconds, and whatever else a round does shows.

Start-up is timed in parts: making the dataset (not flrl's), sharing it out, making model and worker, writing the
partition. It is measured for each partition at 10^6 clients too.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from benchmarks.overhead import ROOT, processor
from benchmarks.scale_plot import draw
from flrl.callbacks import Callback, Callbacks, RunFolder, RunInfo
from flrl.cli.instantiation import make
from flrl.config import CONF_DIR, TrainConfig
from flrl.data import FederatedData, Splits, TensorSource
from flrl.layout import digest
from flrl.recipe import Recipe
from flrl.types import RoundRecord, ServerState

SAMPLES_EACH = 2
FEATURES = 32
CLASSES = 10
MEBIBYTE = 2**20


@dataclass(frozen=True, slots=True)
class Point:
    """One run.

    Attributes:
        population: clients.
        cohort: clients of a round.
        strategy: "fedavg", or "scaffold" for client memory.
        partition: a choice of `conf/partition/`.
        rounds: how many; the first one is not timed.
    """

    population: int
    cohort: int
    strategy: str
    partition: str = "iid"
    rounds: int = 6


def points() -> list[Point]:
    """All runs."""
    grid = [(10**exponent, 100) for exponent in (3, 4, 5, 6)] + [(10**5, cohort) for cohort in (10, 1000, 10**4)]
    runs = [
        Point(population, cohort, name, rounds=8 if cohort < 10**3 else 3)
        for name in ("fedavg", "scaffold")
        for population, cohort in grid
    ]
    return runs + [Point(10**6, 100, "fedavg", name) for name in ("dirichlet", "shards", "quantity_skew")]


def small_clients(*, num_samples: int, seed: int) -> Splits:
    """Random pixels and classes, and a thousand test samples of the like."""
    generator = torch.Generator().manual_seed(seed)

    def source(samples: int) -> TensorSource:
        pixels = torch.randint(256, (samples, FEATURES), dtype=torch.uint8, generator=generator)
        return TensorSource(pixels, torch.randint(CLASSES, (samples,), generator=generator))

    return Splits(source(num_samples), source(1000))


class Clock(Callback):
    """Time and memory after each part of the start and after each round; the last callback of a run."""

    def __init__(self) -> None:
        self.start: dict[str, float] = {}
        self.rounds: list[tuple[float, float]] = []
        self.held: dict[str, Any] = {"rounds": []}

    def mark(self, part: str) -> None:
        """A part of the start is done."""
        self.start[part] = time.process_time()
        self.held[part] = resident()
        self.held["start-up peak"] = peak()

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        """A round is done."""
        self.rounds.append((time.perf_counter(), time.process_time()))
        self.held["rounds"].append(resident())

    def summary(self) -> dict[str, Any]:
        """Medians of the rounds after the first one, processor time of each part of the start, bytes held."""
        rounds = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(self.rounds)]
        return {
            "round_s": statistics.median(wall for wall, _ in rounds),
            "round_cpu_s": statistics.median(cpu for _, cpu in rounds),
            "rounds_s": rounds,
            "start_cpu_s": {part: b - a for (_, a), (part, b) in pairwise(self.start.items())},
            "bytes": self.held | {"peak": peak()},
        }


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(point: Point) -> dict[str, Any]:
    """Run a point in this process, which must be a new one."""
    torch.set_num_threads(1)
    config, clock = composed(point), Clock()
    clock.mark("imports")
    splits = make(config, "dataset")
    clock.mark("dataset")
    data = FederatedData(splits, Recipe(config).partition(), seed=config["seed"], holdout=config["holdout"])
    clock.mark("partition")
    worker, backend = Recipe(config).worker(data, threads=1, device="cpu"), make(config, "backend")
    backend.start(worker)
    clock.mark("worker")
    layout = worker.model.layout
    with tempfile.TemporaryDirectory() as folder:
        callbacks = Callbacks([RunFolder(log_clients=False), *make(config, "callbacks").values(), clock])
        info = RunInfo("scale", Path(folder), worker.seed, point.rounds, (), config, "", model=worker.model, data=data)
        callbacks.setup(info)
        clock.mark("files")
        state, _ = worker.strategy.fit(
            worker.strategy.initialize(worker.model.vector.clone(), layout),
            backend=backend,
            layout=layout,
            seed=worker.seed,
            callbacks=callbacks,
        )
    size = splits.train.inputs.nbytes + splits.train.targets.nbytes
    return {**asdict(point), **clock.summary(), "dataset_bytes": size, "digest": digest(state.vector)}


def composed(point: Point) -> dict[str, Any]:
    """The default run with these clients; files and checkpoints, but nothing on the terminal."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    dataset = {
        "_target_": "benchmarks.scale.small_clients",
        "num_samples": SAMPLES_EACH * point.population,
        "seed": 0,
    }
    store.store(group="dataset", name="small_clients", node=dataset)
    overrides = [
        "dataset=small_clients",
        f"partition={point.partition}",
        f"partition.num_clients={point.population}",
        *(["partition.shards_per_client=2"] if point.partition == "shards" else []),
        f"model.net.input_shape=[{FEATURES}]",
        f"model.net.num_classes={CLASSES}",
        f"model.num_classes={CLASSES}",
        f"strategy={point.strategy}",
        f"strategy.rounds={point.rounds}",
        f"strategy.sampler.num={point.cohort}",
        "~callbacks.progress",
        "logger=none",
        "paths.output_dir=.",
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides)
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def apart(point: Point) -> dict[str, Any]:
    """A point, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--point", json.dumps(asdict(point))]
    found = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


HEAD = [
    "| strategy | partition | population | cohort | round | processor time | per client | peak memory "
    "| before the first round | dataset | start-up |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
]


def row(run: Mapping[str, Any]) -> str:
    """A point's line of the table."""
    held = run["bytes"]
    return (
        f"| {run['strategy']} | {run['partition']} | {run['population']:,} | {run['cohort']:,} "
        f"| {run['round_s']:.2f} s | {run['round_cpu_s']:.2f} s | {1e3 * run['round_cpu_s'] / run['cohort']:.1f} ms "
        f"| {held['peak'] / MEBIBYTE:.0f} MiB | {held['start-up peak'] / MEBIBYTE:.0f} MiB "
        f"| {run['dataset_bytes'] / MEBIBYTE:.0f} MiB | {startup(run):.2f} s |"
    )


def startup(run: Mapping[str, Any]) -> float:
    """Processor seconds before the first round, without imports and making the dataset."""
    return sum(seconds for name, seconds in run["start_cpu_s"].items() if name != "dataset")


def main() -> None:
    arguments = parse_arguments()
    if arguments.point is not None:
        print(json.dumps(measured(Point(**json.loads(arguments.point)))))
        return
    if arguments.draw_only:
        report = json.loads(arguments.output.read_text())
    else:
        report = {
            "processor": processor(),
            "cpus": os.cpu_count(),
            "versions": {name: version(name) for name in ("flrl", "torch", "numpy")},
            "load_average": os.getloadavg(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "points": [],
        }
        print(f"{report['processor']}, {report['cpus']} CPUs\n", *HEAD, sep="\n")
        for point in points():
            report["points"].append(apart(point))
            print(row(report["points"][-1]), flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    draw(report, arguments.plot)
    print(f"\n{arguments.output}, {arguments.plot}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure rounds and memory against population and cohort.")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/scale.json")
    parser.add_argument("--plot", type=Path, default=ROOT / "outputs/benchmarks/scale.png")
    parser.add_argument("--draw-only", action="store_true", help="plot what an earlier call has written to --output")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
