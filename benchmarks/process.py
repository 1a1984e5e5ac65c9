"""What worker processes on one machine bring, and what they cost: speed, memory, and cores while they wait.

    python -m benchmarks.process

- Speed: ten clients of 600 samples of MNIST train McMahan's CNN (batches of 10, learning rate 0.1, one thread). Rounds
  on the serial backend and on the process backend with two workers take turns; without evaluation.
- Memory: jobs on the serial backend and with 1, 2 and 4 workers, one controller after the other, each in a process of
  its own; the kernel's numbers at the moment when all processes together hold most. Two jobs have all of MNIST, another
  a gigabyte of uint8 pixels, which cannot be overlooked and of which every worker reads its clients' part. PSS shares
  out memory among the processes that map it: its sum is what the job takes. USS is what a process has to itself.
- Idle: processor seconds of two workers that wait for ten seconds.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.overhead import ROOT, processor
from flrl.backends import ProcessBackend, SerialBackend
from flrl.callbacks import Callbacks
from flrl.data import FederatedData, Splits, TensorSource
from flrl.data.datasets import mnist
from flrl.data.partitions import iid
from flrl.evaluation import Evaluator
from flrl.layout import digest
from flrl.models import Classifier
from flrl.models.nets import mcmahan_cnn, softmax_regression
from flrl.process_setup import prepare
from flrl.rounds import Rounds
from flrl.sampling import UniformSampler
from flrl.strategies import FedAvg
from flrl.trainers import EagerTrainer
from flrl.types import ServerState
from flrl.worker import Worker

MEBIBYTE = 2**20
NETS = {"cnn": mcmahan_cnn, "softmax": softmax_regression}
Backend = SerialBackend | ProcessBackend


@dataclass(frozen=True, slots=True)
class Job:
    """A job's workers: a recipe, as `flrl.recipe.Recipe` is one.

    Attributes:
        dataset: a gigabyte of "synthetic" pixels, or "mnist".
        folder: where MNIST is.
        net: "cnn" or "softmax".
        clients: who share out the samples; all take part in every round.
        samples: of each client; all there are if None.
        batch_size: of the clients.
        epochs: local ones.
        lr: of the clients.
    """

    dataset: str
    folder: str
    net: str
    clients: int
    samples: int | None
    batch_size: int
    epochs: int
    lr: float

    def data(self) -> FederatedData:
        """The samples, shared out."""
        splits = a_gigabyte() if self.dataset == "synthetic" else digits(self.folder)
        if self.samples is not None:
            wanted = torch.arange(self.clients * self.samples).numpy()
            splits = Splits(splits.train.subset(wanted), splits.test)
        return FederatedData(splits, partial(iid, num_clients=self.clients, min_samples=1), seed=0)

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        """A worker with plain federated averaging."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = NETS[self.net](input_shape=(1, 28, 28), num_classes=10)
        module = Classifier(net=net, num_classes=10, optimizer=partial(torch.optim.SGD, lr=self.lr))
        strategy = FedAvg(rounds=10**9, sampler=UniformSampler(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
        trainer = EagerTrainer(local_epochs=self.epochs, batch_size=self.batch_size)
        model = prepare(module, threads=threads, device=device)
        return Worker(model, data, trainer, strategy, Evaluator(every=10**9), seed=0)


def digits(folder: str) -> Splits:
    return mnist(data_dir=folder, mean=[0.1307], std=[0.3081])


def a_gigabyte() -> Splits:
    """2^30 bytes of pixels, all of them written, so that they are in memory."""
    pixels = torch.randint(256, (2**30 // 784, 1, 28, 28), dtype=torch.uint8)
    targets = torch.zeros(len(pixels), dtype=torch.int64)
    return Splits(TensorSource(pixels, targets), TensorSource(pixels[:100].clone(), targets[:100].clone()))


class Run:
    """A backend with its workers, and the state of its server."""

    def __init__(self, job: Job, backend: Backend) -> None:
        self.backend = backend
        self.worker = job.worker(backend.share(job.data()), threads=1, device="cpu")
        backend.start(self.worker, job)
        self.state = ServerState(0, self.worker.model.vector.clone())

    def round(self) -> float:
        """One round, and its seconds."""
        started = time.perf_counter()
        strategy, layout = self.worker.strategy, self.worker.model.layout
        rounds = Rounds(strategy, self.backend, layout, Callbacks(), seed=0, sampling_seed=0)
        self.state, _ = rounds._round(self.state, strategy.weight_of_all(self.backend.sizes))
        return time.perf_counter() - started


# Speed.


def speed(job: Job, repetitions: int) -> dict[str, Any]:
    """Rounds on both backends in turns, after one of each that is not timed."""
    before = os.getloadavg()
    runs = {"serial": Run(job, SerialBackend(threads=1)), "process": Run(job, ProcessBackend(workers=2, threads=1))}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name in list(runs)[:: 1 if repetition % 2 == 0 else -1]:
            seconds[name].append(runs[name].round())
    digests = {name: digest(run.state.vector) for name, run in runs.items()}
    for run in runs.values():
        run.backend.close()
    seconds = {name: values[1:] for name, values in seconds.items()}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "epochs": job.epochs,
        "seconds": seconds,
        "ratio_of_medians": medians["serial"] / medians["process"],
        "median_of_ratios": statistics.median(
            a / b for a, b in zip(seconds["serial"], seconds["process"], strict=True)
        ),
        "digests": digests,
        "load_average": [before, os.getloadavg()],
    }


def speed_table(report: dict[str, Any]) -> str:
    lines = [
        f"Rounds of ten clients with {report['epochs']} local epochs; {load(report)}",
        "",
        "| | median | min to max |",
        "|---|---:|---:|",
    ]
    for name, seconds in report["seconds"].items():
        lines.append(f"| {name} | {statistics.median(seconds):.2f} s | {min(seconds):.2f} to {max(seconds):.2f} s |")
    same = "equal" if len(set(report["digests"].values())) == 1 else "DIFFERENT"
    ratios = f"{report['ratio_of_medians']:.2f} (ratio of medians), {report['median_of_ratios']:.2f} (median of ratios)"
    return "\n".join([*lines, "", f"Speedup {ratios}; final models: {same}.", ""])


# Memory.


class Sampler(threading.Thread):
    """Looks at the memory of a process and its children, and keeps what it saw when they held most together."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.over = psutil.Process(process), threading.Event()
        self.peak: dict[str, dict[str, int]] = {}

    def run(self) -> None:
        """Look until it is stopped."""
        while not self.over.wait(0.1):
            seen = {}
            for index, process in enumerate([self.process, *self.process.children()]):
                try:
                    if "resource_tracker" in " ".join(process.cmdline()):
                        continue
                    memory = process.memory_full_info()
                except (psutil.Error, OSError):
                    continue
                name = "controller" if index == 0 else f"worker {len(seen) - 1}"
                seen[name] = {"pss": memory.pss, "uss": memory.uss, "rss": memory.rss}
            if total(seen) > total(self.peak):
                self.peak = seen


def total(seen: dict[str, dict[str, int]]) -> int:
    return sum(memory["pss"] for memory in seen.values())


def memory(job: Job, workers: int, rounds: int) -> dict[str, dict[str, int]]:
    """The processes of a job at its peak, once the controller has loaded its data; 0 workers are the serial backend."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    controller = spawn.Process(target=controller_of, args=(job, workers, rounds, there))
    controller.start()
    there.close()
    try:
        here.recv()  # all workers are ready; what loading needed for a moment is not counted
        sampler = Sampler(controller.pid or 0)
        sampler.start()
        here.send(None)
        here.recv()
    finally:
        here.close()
        controller.join()
    sampler.over.set()
    sampler.join()
    return sampler.peak


def controller_of(job: Job, workers: int, rounds: int, line: Connection) -> None:
    """A job in a process of its own."""
    run = Run(job, ProcessBackend(workers=workers, threads=1) if workers else SerialBackend(threads=1))
    line.send(None)
    line.recv()
    for _ in range(rounds):
        run.round()
    time.sleep(0.5)
    line.send(None)
    run.backend.close()


def memory_table(title: str, peaks: dict[int, dict[str, dict[str, int]]]) -> str:
    lines = [
        f"{title}, MiB",
        "",
        "| | total PSS | more than serial | controller PSS | USS | RSS | worker PSS | USS | RSS |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for workers, seen in peaks.items():
        sizes = [f"{total(seen) / MEBIBYTE:.0f}", f"{(total(seen) - total(peaks[0])) / MEBIBYTE:.0f}"]
        sizes += cells([seen["controller"]])
        sizes += cells([memory for name, memory in seen.items() if name != "controller"])
        lines.append(f"| {f'{workers} workers' if workers else 'serial'} | " + " | ".join(sizes) + " |")
    return "\n".join([*lines, ""])


def cells(processes: Sequence[dict[str, int]]) -> list[str]:
    """The largest of each of the three numbers."""
    return [f"{max(p[kind] for p in processes) / MEBIBYTE:.0f}" if processes else "" for kind in ("pss", "uss", "rss")]


# Idle.


def idle(job: Job, seconds: float) -> list[float]:
    """Processor seconds that each of two workers takes while it waits."""
    run = Run(job, ProcessBackend(workers=2, threads=1))
    run.round()
    workers = [p for p in psutil.Process().children() if "resource_tracker" not in " ".join(p.cmdline())]
    before = [sum(worker.cpu_times()[:2]) for worker in workers]
    time.sleep(seconds)
    after = [sum(worker.cpu_times()[:2]) for worker in workers]
    run.backend.close()
    return [b - a for a, b in zip(before, after, strict=True)]


def load(report: dict[str, Any]) -> str:
    before, after = (" ".join(f"{value:.2f}" for value in loads) for loads in report["load_average"])
    return f"load average {before}, afterwards {after}"


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    folder = str(arguments.data_dir)
    cnn = Job("mnist", folder, "cnn", clients=10, samples=600, batch_size=10, epochs=1, lr=0.1)
    softmax = Job("mnist", folder, "softmax", clients=10, samples=None, batch_size=64, epochs=1, lr=0.001)
    large = Job("synthetic", folder, "softmax", clients=100, samples=None, batch_size=4096, epochs=1, lr=0.001)
    report: dict[str, Any] = {
        "processor": processor(),
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("flrl", "torch")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    print(f"{report['processor']}, {report['cpus']} CPUs\n")
    if "speed" in arguments.only:
        report["speed"] = []
        for epochs in arguments.epochs:
            job = Job("mnist", folder, "cnn", clients=10, samples=600, batch_size=10, epochs=epochs, lr=0.1)
            report["speed"].append(speed(job, arguments.repetitions))
            print(speed_table(report["speed"][-1]), flush=True)
    if "memory" in arguments.only:
        report["memory"] = {}
        for title, job, rounds in (
            ("A gigabyte of pixels, softmax regression", large, 1),
            ("MNIST, softmax regression", softmax, 3),
            ("MNIST, McMahan's CNN", cnn, 1),
        ):
            report["memory"][title] = {workers: memory(job, workers, rounds) for workers in (0, 1, 2, 4)}
            print(memory_table(title, report["memory"][title]), flush=True)
    if "idle" in arguments.only:
        report["idle"] = idle(softmax, 10.0)
        waiting = ", ".join(f"{seconds:.3f} s" for seconds in report["idle"])
        print(f"Processor seconds of two workers that wait for 10 s: {waiting}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {arguments.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what worker processes bring and cost.")
    parts = ("speed", "memory", "idle")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="what to measure")
    parser.add_argument("--epochs", type=int, nargs="+", default=[1], help="local epochs, a measurement of each")
    parser.add_argument("--repetitions", type=int, default=5, help="timed rounds on each backend")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data", help="where MNIST is, or is put")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/process.json")
    arguments = parser.parse_args()
    if arguments.repetitions < 1 or min(arguments.epochs) < 1:
        parser.error("--repetitions and --epochs must be at least 1")
    return arguments


if __name__ == "__main__":
    main()
