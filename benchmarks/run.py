"""Three federated jobs with every engine and backend, beside a bare PyTorch loop and, if asked for, other frameworks.

    python -m benchmarks.run
    python -m benchmarks.run --jobs A C --repetitions 5 --peers pfl fedlab

Jobs, on MNIST, plain SGD, samples in memory, test set evaluated after each round:

- A: `+experiment=mnist_fedavg`: softmax regression, 2 clients of 30,000, batch 64, 5 rounds;
- B: McMahan's CNN, 100 clients of 600, 10 a round, 5 local epochs, batch 10, 3 rounds;
- C: the 2NN, 1,000 clients of 60, 100 a round, batch 10, 10 rounds;
- S, if asked for: softmax regression, 1,000 clients of 60, 100 a round, batch 10, 5 rounds.

The bare loop takes the same SGD steps over tensors that were normalised and cut into clients beforehand, with autograd
and `torch.optim.SGD`, averages and evaluates. A number is the median over the rounds of the seconds of one round:
training, aggregation and evaluation, without imports, start-up and reading the data; of the repetitions the median,
the smallest and the largest are reported. Sides take turns; every other repetition goes backwards. All models are made
of one thread per process, except where the table says otherwise. What counts are the ratios within a run.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from torch import nn

from benchmarks.overhead import ROOT, processor, sized
from benchmarks.peers.common import JOBS as PEER_JOBS
from benchmarks.peers.run import PEERS, Run, measured
from flrl.backends import ProcessBackend, SerialBackend
from flrl.callbacks import Callbacks
from flrl.cli.pins import without_foreign
from flrl.config import CONF_DIR, TrainConfig
from flrl.recipe import Recipe
from flrl.sampling import UniformSampler

JOBS: dict[str, list[str]] = {
    "A": ["+experiment=mnist_fedavg"],
    "B": [
        "dataset=mnist",
        "model=mcmahan_cnn",
        "model.optimizer.lr=0.1",
        "partition.num_clients=100",
        "strategy/sampler=uniform",
        "strategy.sampler.num=10",
        "strategy.rounds=3",
        "trainer.local_epochs=5",
        "trainer.batch_size=10",
    ],
    "C": [
        "dataset=mnist",
        "model=mlp_2nn",
        "model.optimizer.lr=0.05",
        "partition.num_clients=1000",
        "strategy/sampler=uniform",
        "strategy.sampler.num=100",
        "strategy.rounds=10",
        "trainer.batch_size=10",
    ],
    "S": [
        "dataset=mnist",
        "model.optimizer.lr=0.05",
        "partition.num_clients=1000",
        "strategy/sampler=uniform",
        "strategy.sampler.num=100",
        "strategy.rounds=5",
        "trainer.batch_size=10",
    ],
}
CHANNELS_LAST = "trainer.memory_format=channels_last"
BF16 = "trainer.precision=bf16-mixed"
ENGINES: dict[str, list[str]] = {
    "eager": ["trainer=eager"],
    "traced": ["trainer=traced"],
    "traced, fused": ["trainer=traced", "trainer.fuse=true"],
    "vectorized": ["trainer=vectorized"],
    "traced, channels_last": ["trainer=traced", "trainer.fuse=true", CHANNELS_LAST],
    "traced, channels_last, bf16": ["trainer=traced", "trainer.fuse=true", CHANNELS_LAST, BF16],
}
OF_JOB = {
    "A": ["eager", "traced", "vectorized"],
    "B": ["eager", "traced", "traced, fused", "traced, channels_last"],
    "C": ["eager", "traced", "traced, fused", "vectorized"],
    "S": ["eager", "traced", "vectorized"],
}
"""Engines that are measured unless others are named.

Left out of B: vectorized, whose convolutions of client batches take many times as long on a CPU, and bfloat16, which
does where the processor has no arithmetic for it.
"""
BARE = "bare loop"
Side = Callable[[], dict[str, Any]]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "jobs": {},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("flrl", "torch")},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for job in arguments.jobs:
        report["jobs"][job] = measure(job, arguments)
        print(table(report, job), flush=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    included = [json.loads(path.read_text())["jobs"] for path in arguments.include]
    jobs = {job: results for jobs in [report["jobs"], *included] for job, results in jobs.items()}
    plot(dict(sorted(jobs.items())), arguments.output.with_suffix(".png"))
    print(f"written to {arguments.output}")


def parse_arguments() -> Namespace:
    parser = argparse.ArgumentParser(description="Time federated jobs with every engine beside a bare PyTorch loop.")
    parser.add_argument("--jobs", nargs="*", choices=JOBS, default=["A", "B", "C"])
    parser.add_argument("--include", nargs="*", type=Path, default=[], help="earlier reports, whose jobs are drawn too")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, help="all that make sense for a job by default")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="1 is the serial backend")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="as each job has it by default")
    parser.add_argument("--cohort", type=int, help="clients a round in B and C, for a shorter run without peers")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="installed by `benchmarks.peers.run`")
    parser.add_argument("--environments", type=Path, default=ROOT / ".peers", help="of the peers")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where MNIST is, or is put")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds after which a peer is given up")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/run.json")
    arguments = parser.parse_args()
    if min(arguments.repetitions, *arguments.workers) < 1:
        parser.error("--repetitions and --workers must be at least 1")
    return arguments


def measure(job: str, arguments: Namespace) -> dict[str, Any]:
    """All sides of a job in turn: for each, its repetitions' seconds a round and the accuracy it ended with."""
    shared = ["logger=none", "paths.output_dir=.", f"paths.data_dir='{arguments.data}'"]
    rounds = [] if arguments.rounds is None else [f"strategy.rounds={arguments.rounds}"]
    if arguments.cohort is not None and job != "A":
        rounds.append(f"strategy.sampler.num={arguments.cohort}")
    config = composed([*JOBS[job], *shared, *rounds])
    bare = BareLoop(config)
    sides: dict[str, Side] = {BARE: lambda: bare(threads=1), f"{BARE}, 2 threads": lambda: bare(threads=2)}
    backends = []
    for engine in arguments.engines or OF_JOB[job]:
        for workers in arguments.workers:
            side = Framework(composed([*JOBS[job], *ENGINES[engine], *shared, *rounds]), workers)
            backends.append(side.backend)
            sides[f"{engine}, {workers} worker{'s' * (workers > 1)}"] = side
    for side in sides.values():
        side()  # records, compiles, prepares samples
    for peer in arguments.peers if job in PEER_JOBS else ():
        for workers in range(1, PEERS[peer] + 1):
            sides[f"{peer}, {workers} worker{'s' * (workers > 1)}"] = Peer(Run(peer, job, workers), arguments)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for repetition in range(arguments.repetitions):
        for name in list(sides)[:: 1 if repetition % 2 == 0 else -1]:
            gc.collect()
            result = sides[name]() | {"load": os.getloadavg()[0]}
            if "error" in result:
                print(f"job {job}, {name}: failed, left out of this repetition: {result['error']}", flush=True)
            else:
                results[name].append(result)
    for backend in backends:
        backend.close()
    return {name: runs for name, runs in results.items() if runs}


def composed(overrides: Sequence[str], dataset: dict[str, Any] | None = None) -> dict[str, Any]:
    """A resolved configuration, with another dataset if one is given."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config: dict[str, Any] = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)  # type: ignore[assignment]
    experiment = next((o.removeprefix("+experiment=") for o in overrides if o.startswith("+experiment=")), None)
    config = without_foreign(config, {"experiment": experiment}, [CONF_DIR], overrides)
    return sized(config if dataset is None else {**config, "dataset": dataset})


class BareLoop:
    """Federated averaging in the fewest lines of PyTorch, over the same batches and from the same initial model."""

    def __init__(self, config: dict[str, Any]) -> None:
        recipe = Recipe(config)
        self.data, self.module = recipe.data(), recipe.module()
        self.rounds, self.lr = config["strategy"]["rounds"], config["model"]["optimizer"]["lr"]
        self.batch_size, self.epochs = config["trainer"]["batch_size"], config["trainer"]["local_epochs"]
        sampler = config["strategy"]["sampler"]
        num = sampler.get("num") or self.data.num_clients
        draw = UniformSampler(num=num) if num < self.data.num_clients else None
        every = list(range(self.data.num_clients))
        self.cohorts = [
            every if draw is None else draw(self.data.num_clients, seed=config["seed"], round=r + 1).tolist()
            for r in range(self.rounds)
        ]
        self.clients = {c: self._tensors(c) for cohort in self.cohorts for c in cohort}
        test = self.data.splits.test
        self.test = next(iter(test.batches(torch.arange(len(test)).numpy(), len(test))))
        self.initial = [parameter.detach().clone() for parameter in self.module.net.parameters()]

    def _tensors(self, client: int) -> Any:
        indices = self.data.train_indices(client)
        return next(iter(self.data.splits.train.batches(indices, len(indices))))

    def __call__(self, *, threads: int) -> dict[str, Any]:
        """Train all rounds."""
        torch.set_num_threads(threads)
        net: nn.Module = self.module.net
        parameters, server, seconds = list(net.parameters()), self.initial, []
        for cohort in self.cohorts:
            started = time.perf_counter()
            total = sum(len(self.clients[client][1]) for client in cohort)
            mean = [torch.zeros_like(tensor) for tensor in server]
            for client in cohort:
                inputs, targets = self.clients[client]
                self._load(parameters, server)
                self.train(net, inputs, targets)
                with torch.no_grad():
                    for tensor, parameter in zip(mean, parameters, strict=True):
                        tensor.add_(parameter, alpha=len(targets) / total)
            server = mean
            self._load(parameters, server)
            accuracy = self.evaluate(net)
            seconds.append(time.perf_counter() - started)
        torch.set_num_threads(1)
        return {"seconds": seconds, "accuracy": accuracy}

    @staticmethod
    @torch.no_grad()
    def _load(parameters: Sequence[nn.Parameter], server: Sequence[torch.Tensor]) -> None:
        for parameter, tensor in zip(parameters, server, strict=True):
            parameter.copy_(tensor)

    def train(self, net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """One client."""
        optimizer = torch.optim.SGD(net.parameters(), lr=self.lr)
        for _ in range(self.epochs):
            for start in range(0, len(targets), self.batch_size):
                batch = slice(start, start + self.batch_size)
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(inputs[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    @torch.no_grad()
    def evaluate(self, net: nn.Module) -> float:
        """Accuracy on the test set, in batches of 1,000."""
        inputs, targets = self.test
        parts = zip(inputs.split(1000), targets.split(1000), strict=True)
        return sum(int((net(x).argmax(1) == y).sum()) for x, y in parts) / len(targets)


class Framework:
    """A job through flrl, on workers that are started once."""

    def __init__(self, config: dict[str, Any], workers: int) -> None:
        self.recipe = Recipe(config)
        self.backend: Any = SerialBackend() if workers == 1 else ProcessBackend(workers=workers)
        self.worker = self.recipe.worker(self.backend.share(self.recipe.data()), threads=1, device="cpu")
        self.initial = self.worker.model.vector.clone()
        self.backend.start(self.worker, self.recipe)

    def __call__(self) -> dict[str, Any]:
        """Train all rounds."""
        strategy, layout = self.worker.strategy, self.worker.model.layout
        state = strategy.initialize(self.initial, layout)
        _, history = strategy.fit(
            state, backend=self.backend, layout=layout, seed=self.worker.seed, callbacks=Callbacks()
        )
        seconds = [record.metrics["time/round_s"] for record in history]
        return {"seconds": seconds, "accuracy": history[-1].metrics["test/accuracy"], "digest": history[-1].digest}


class Peer:
    """A job through another framework, in a process of its own."""

    def __init__(self, run: Run, arguments: Namespace) -> None:
        self.run, self.arguments = run, arguments

    def __call__(self) -> dict[str, Any]:
        """Train all rounds; the seconds are those the peer's script measures, imports and start-up left out.

        A peer that fails gives an `error` instead.
        """
        return measured(self.run, self.arguments)


def seconds_a_round(results: Sequence[dict[str, Any]]) -> list[float]:
    """Of each repetition."""
    return [statistics.median(result["seconds"]) for result in results]


def table(report: dict[str, Any], job: str) -> str:
    """A job's sides in Markdown, the fastest last."""
    results = report["jobs"][job]
    bare = statistics.median(seconds_a_round(results[BARE]))
    lines = [
        f"Job {job}, {report['processor']}, {report['cpus']} CPUs, {report['date'][:10]}, torch "
        f"{report['versions']['torch']}",
        "",
        "| | a round, median | min to max | / bare loop | accuracy |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, runs in sorted(results.items(), key=lambda item: -statistics.median(seconds_a_round(item[1]))):
        seconds = seconds_a_round(runs)
        median = statistics.median(seconds)
        lines.append(
            f"| {name} | {median:.3f} s | {min(seconds):.3f} to {max(seconds):.3f} s | {median / bare:.2f} "
            f"| {100 * runs[-1]['accuracy']:.2f} % |"
        )
    return "\n".join([*lines, ""])


def plot(jobs: dict[str, dict[str, list[dict[str, Any]]]], path: Path) -> None:
    """One panel a job: a bar a side."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    heights = [len(results) for results in jobs.values()]
    figure, panels = pyplot.subplots(
        len(jobs), 1, figsize=(8, 0.9 * len(jobs) + 0.24 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for (job, results), panel in zip(jobs.items(), panels[:, 0], strict=True):
        rows = sorted(results.items(), key=lambda item: -statistics.median(seconds_a_round(item[1])))
        medians = [statistics.median(seconds_a_round(runs)) for _, runs in rows]
        spread = [
            [median - min(seconds_a_round(runs)), max(seconds_a_round(runs)) - median]
            for median, (_, runs) in zip(medians, rows, strict=True)
        ]
        kinds = [BARE, *PEERS]
        colours = [
            "tab:gray" if name.startswith(BARE) else "tab:orange" if name.split(",")[0] in kinds else "tab:blue"
            for name, _ in rows
        ]
        panel.barh([name for name, _ in rows], medians, xerr=list(zip(*spread, strict=True)), color=colours)
        panel.set_title(f"Job {job}", loc="left")
        panel.set_xlabel("seconds a round")
        panel.margins(y=0.01)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
