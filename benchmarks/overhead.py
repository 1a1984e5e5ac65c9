"""What a round of flrl costs beside the bare loop that takes the same SGD steps.

    python benchmarks/overhead.py

Both sides train the federation of `conf/experiment/mnist_fedavg.yaml` on one thread:

- the bare loop: tensors that were shuffled, normalised and cut into clients beforehand, an `nn.Sequential`,
  `torch.optim.SGD`, cross-entropy, and a mean of the parameters;
- flrl: `Strategy.fit` on the serial backend with the eager trainer, without callbacks. Every repetition has a worker of
  its own, so that gathering the clients' samples from uint8 pixels and normalising them is timed, as a run pays for it;
  updates go through the exact sum.

Reading the files and evaluation are timed on neither side. The sides take turns, each first in every other repetition;
what counts is the ratio. That both did the same work is checked by the models they end with.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from torch import Tensor, nn

from flrl.backends import SerialBackend
from flrl.callbacks import Callbacks
from flrl.cli.from_data import filled
from flrl.cli.instantiation import make
from flrl.config import CONF_DIR, TrainConfig
from flrl.recipe import Recipe
from flrl.types import ServerState
from flrl.worker import Worker

ROOT = Path(__file__).resolve().parents[1]
LARGEST_DIFFERENCE = 1e-6
SIDES = ("bare loop", "flrl")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One training: the seconds it took and the model it ended with, shape `[layout.size]`."""

    seconds: float
    vector: Tensor


class BareLoop:
    """Federated averaging in the fewest lines of PyTorch, over the same batches and from the same initial model."""

    def __init__(self, worker: Worker, config: dict[str, Any]) -> None:
        data = worker.data
        self.batch_size = config["trainer"]["batch_size"]
        self.rounds = config["strategy"]["rounds"]
        self.lr = config["model"]["optimizer"]["lr"]
        clients = [data.train_indices(client_id) for client_id in range(data.num_clients)]
        self.clients = [next(iter(data.splits.train.batches(indices, len(indices)))) for indices in clients]
        weight, bias = worker.model.layout.unflatten(worker.model.vector).values()
        self.initial = [weight.clone(), bias.clone()]
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0]))

    def __call__(self) -> Outcome:
        """Train all rounds."""
        started = time.perf_counter()
        parameters = list(self.model.parameters())
        total = sum(len(targets) for _, targets in self.clients)
        server = self.initial
        for _ in range(self.rounds):
            mean = [torch.zeros_like(tensor) for tensor in server]
            for inputs, targets in self.clients:
                with torch.no_grad():
                    for parameter, tensor in zip(parameters, server, strict=True):
                        parameter.copy_(tensor)
                self.train(inputs, targets)
                with torch.no_grad():
                    for tensor, parameter in zip(mean, parameters, strict=True):
                        tensor.add_(parameter, alpha=len(targets) / total)
            server = mean
        return Outcome(time.perf_counter() - started, torch.cat([tensor.flatten() for tensor in server]))

    def train(self, inputs: Tensor, targets: Tensor) -> None:
        """One client's local epoch."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        for start in range(0, len(targets), self.batch_size):
            batch = slice(start, start + self.batch_size)
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(inputs[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()


class Framework:
    """The same through flrl; `time/train_s` is a round from its cohort to its new model."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self) -> Outcome:
        """Train all rounds with a new worker: nothing that an earlier repetition prepared is left."""
        worker = made(self.config)
        backend = SerialBackend(threads=1)
        backend.start(worker)
        state, history = worker.strategy.fit(
            worker.strategy.initialize(worker.model.vector.clone(), worker.model.layout),
            backend=backend,
            layout=worker.model.layout,
            seed=worker.seed,
            callbacks=Callbacks(),
        )
        return Outcome(sum(record.metrics["time/train_s"] for record in history), state.vector)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    config = composed(arguments.data_dir)
    worker = made(config)
    bare, flrl = SIDES
    outcomes = take_turns({bare: BareLoop(worker, config), flrl: Framework(config)}, arguments.repetitions)
    report = described(outcomes, worker, config)
    print(table(report))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {arguments.output}")
    if report["largest_difference"] > LARGEST_DIFFERENCE:
        sys.exit(f"the two models differ by {report['largest_difference']:.1e}: this was not the same work")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what flrl costs beside a bare PyTorch loop.")
    parser.add_argument("--repetitions", type=int, default=7, help="timed trainings of each side")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/overhead.json")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where MNIST is, or is put")
    arguments = parser.parse_args()
    if arguments.repetitions < 1:
        parser.error(f"--repetitions={arguments.repetitions}: must be at least 1")
    return arguments


def composed(data_dir: Path) -> dict[str, Any]:
    """The configuration of the main job, evaluated after its last round only."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    overrides = [
        "+experiment=mnist_fedavg",
        "evaluation.every=1000",
        "paths.output_dir=.",
        f"paths.data_dir='{data_dir}'",
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", overrides)
    return sized(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def sized(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose model is as large as its dataset asks for."""
    return filled(config, make(config, "dataset"))


def made(config: dict[str, Any]) -> Worker:
    """A worker with data of its own."""
    recipe = Recipe(config)
    return recipe.worker(recipe.data(), threads=1, device="cpu")


def take_turns(sides: dict[str, Callable[[], Outcome]], repetitions: int) -> dict[str, list[Outcome]]:
    """Each side once untimed, then all in turn, each first in every other repetition."""
    for train in sides.values():
        train()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in sides}
    for repetition in range(repetitions):
        for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
            gc.collect()
            outcomes[name].append(sides[name]())
    return outcomes


def described(outcomes: dict[str, list[Outcome]], worker: Worker, config: dict[str, Any]) -> dict[str, Any]:
    """All that was measured, and where."""
    rounds, batch_size = config["strategy"]["rounds"], config["trainer"]["batch_size"]
    steps = rounds * int(np.ceil(worker.data.sizes / batch_size).sum())
    seconds = {name: [outcome.seconds for outcome in runs] for name, runs in outcomes.items()}
    bare, flrl = (seconds[name] for name in SIDES)
    last_bare, last_flrl = (outcomes[name][-1].vector for name in SIDES)
    return {
        "steps": steps,
        "seconds": seconds,
        "ratio_of_medians": statistics.median(flrl) / statistics.median(bare),
        "median_of_ratios": statistics.median(b / a for a, b in zip(bare, flrl, strict=True)),
        "test_accuracy": {
            name: worker.examiner.evaluate(ServerState(rounds, runs[-1].vector), rounds=rounds)["test/accuracy"]
            for name, runs in outcomes.items()
        },
        "largest_difference": float((last_flrl - last_bare).abs().max()),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("flrl", "torch", "pytorch-lightning", "numpy")},
    }


def processor() -> str:
    """The processor's name, if the system has it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    lines = [
        f"{report['steps']} SGD steps, one thread, {report['processor']}, {report['cpus']} CPUs; {versions}",
        "",
        "| | median | min to max | per step | test accuracy |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, seconds in report["seconds"].items():
        median = statistics.median(seconds)
        lines.append(
            f"| {name} | {median:.3f} s | {min(seconds):.3f} to {max(seconds):.3f} s "
            f"| {1e6 * median / report['steps']:.1f} µs | {100 * report['test_accuracy'][name]:.2f} % |"
        )
    lines += [
        "",
        f"flrl / bare loop: {report['ratio_of_medians']:.3f} (ratio of medians), "
        f"{report['median_of_ratios']:.3f} (median of the ratios of {len(report['seconds'][SIDES[0]])} repetitions).  ",
        f"Largest difference between the two final models: {report['largest_difference']:.1e}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
