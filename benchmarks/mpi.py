"""What a round under MPI costs beside the bare collective calls that move the same bytes.

    python -m benchmarks.mpi --ranks 2 3

Starts `mpiexec` for each number of processes. The model is McMahan's CNN (1,663,370 parameters), and every process has
one client, whose training is done at once: it returns an update that was made beforehand. Rounds take turns:

- raw: in the middle of a round, with all processes in step, `Bcast` of the float32 vector and `Reduce` of what flrl's
  exact sum holds, float64 `[2, 1663371]`, from and into buffers that are there already;
- pickled: likewise in the middle of a round, the `state_dict` as a list of tensors with `send` and `recv`, to each
  process and back, and their mean, as tutorials do it;
- flrl: a whole `Strategy` round of FedAvg, without evaluation; `MpiBackend.train` is timed within it, and after it the
  same round with one client on the serial backend: what process 0 does in a round that has nothing to do with MPI.

What counts are the ratios within a job.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.overhead import ROOT, processor
from flrl.backends import MpiBackend, SerialBackend
from flrl.backends.base import Backend, Received
from flrl.backends.mpi import launch
from flrl.backends.mpi.world import world
from flrl.callbacks import Callbacks
from flrl.data import FederatedData, Splits, TensorSource
from flrl.data.partitions import iid
from flrl.evaluation import Evaluator
from flrl.models import Classifier
from flrl.models.nets import mcmahan_cnn
from flrl.process_setup import prepare
from flrl.rounds import Rounds
from flrl.sampling import UniformSampler
from flrl.setup import Setup
from flrl.strategies import FedAvg
from flrl.trainers import ClientHooks, LocalProblem, Trainer
from flrl.trainers.problem import Trained
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState
from flrl.worker import Worker

TURNS = ("raw", "pickled", "flrl")
WARM_UP = 3
SERIAL = "serial round, one client"
ROWS = {
    "raw": "Bcast + Reduce",
    "train": "`MpiBackend.train`",
    "round": "whole round",
    "serial": SERIAL,
    "pickled": "pickled lists of tensors",
}


class TurnTaker(Trainer):
    """Trains nobody: in its turn it times the raw calls or the pickled lists, and returns what it made beforehand."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.update = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul_(1e-3)
        self.seconds: dict[str, list[float]] = {"raw": [], "pickled": []}
        self.vector = np.zeros(size, np.float32)
        self.parts = np.zeros((2, size + 1), np.float64)

    def check(self, setup: Setup) -> None:
        """Anything will do."""

    def fit(self, problem: LocalProblem, hooks: ClientHooks) -> Trained:
        """Take the turn of this round."""
        from mpi4py import MPI

        turn, comm = turn_of(problem.task.round), MPI.COMM_WORLD  # flrl has a communicator of its own
        if turn != "flrl":
            comm.Barrier()
            started = time.perf_counter()
            self.raw(comm) if turn == "raw" else self.pickled(comm, problem)
            self.seconds[turn].append(time.perf_counter() - started)
        return Trained(problem.start, self.update, {}, num_steps=0)

    def raw(self, comm: Any) -> None:
        """The same bytes as in a round of flrl."""
        from mpi4py import MPI

        comm.Bcast(self.vector)
        comm.Reduce(MPI.IN_PLACE if comm.rank == 0 else self.parts, self.parts)

    def pickled(self, comm: Any, problem: LocalProblem) -> None:
        """The same model, as it is sent when nobody thinks about it."""
        model = [tensor.clone() for tensor in problem.module.state_dict().values()]
        if comm.rank:
            comm.send(comm.recv(source=0), 0)
            return
        for rank in range(1, comm.size):
            comm.send(model, rank)
        models = [model] + [comm.recv(source=rank) for rank in range(1, comm.size)]
        problem.module.load_state_dict(
            {
                name: torch.stack(tensors).mean(0)
                for name, tensors in zip(problem.module.state_dict(), zip(*models, strict=True), strict=True)
            }
        )


def turn_of(round: int) -> str:
    return TURNS[round % len(TURNS)]


@dataclass(frozen=True)
class BareRecipe:
    """Workers for clients without training.

    Attributes:
        clients: how many; all take part in every round.
    """

    clients: int

    def data(self) -> FederatedData:
        """A few samples, which nobody looks at."""
        source = TensorSource(torch.zeros(10 * self.clients, 1, 28, 28), torch.zeros(10 * self.clients).long())
        return FederatedData(Splits(source, source), partial(iid, num_clients=self.clients, min_samples=1), seed=0)

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        """A worker with the CNN and FedAvg."""
        net, sgd = partial(mcmahan_cnn, input_shape=(1, 28, 28), num_classes=10), partial(torch.optim.SGD, lr=1.0)
        module = Classifier(net=net(), num_classes=10, optimizer=sgd)
        model = prepare(module, threads=threads, device=device)
        strategy = FedAvg(rounds=10**9, sampler=UniformSampler(), server_optimizer=sgd)
        return Worker(model, data, TurnTaker(model.layout.size), strategy, Evaluator(every=10**9), seed=0)


class Timed:
    """A backend, and the seconds that its last `train` took."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.seconds = backend, 0.0
        self.sizes, self.evaluate = backend.sizes, backend.evaluate

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Received:
        """Train the cohort."""
        started = time.perf_counter()
        result = self.backend.train(broadcast, tasks, on_report)
        self.seconds = time.perf_counter() - started
        return result


def measure(rounds: int, output: Path) -> None:
    """In process 0: all rounds, and their seconds into a file."""
    here = world()
    assert here is not None
    launch.prepare("flrl.backends.MpiBackend")
    recipe, alone = BareRecipe(here.comm.size), BareRecipe(1)
    backend, serial = MpiBackend(threads=1), SerialBackend(threads=1)
    worker = recipe.worker(backend.share(recipe.data()), threads=1, device="cpu")
    backend.start(worker, recipe)
    serial.start(alone.worker(alone.data(), threads=1, device="cpu"))
    timed, trainer = Timed(backend), worker.trainer
    assert isinstance(trainer, TurnTaker)
    seconds: dict[str, list[float]] = {"train": [], "round": [], "serial": []}
    state = ServerState(0, worker.model.vector.clone())
    for _ in range((rounds + WARM_UP) * len(TURNS)):
        before, began = state, time.perf_counter()
        state = one_round(worker, before, timed)
        if turn_of(state.round) == "flrl":
            seconds["round"].append(time.perf_counter() - began)
            seconds["train"].append(timed.seconds)
            began = time.perf_counter()
            one_round(worker, before, serial)
            seconds["serial"].append(time.perf_counter() - began)
    backend.close()
    output.write_text(json.dumps({name: runs[WARM_UP:] for name, runs in (trainer.seconds | seconds).items()}))


def one_round(worker: Worker, state: ServerState, backend: Backend) -> ServerState:
    everybody = worker.strategy.weight_of_all(backend.sizes)
    rounds = Rounds(worker.strategy, backend, worker.model.layout, Callbacks(), seed=0, sampling_seed=0)
    return rounds._round(state, everybody)[0]


def main() -> None:
    arguments = parse_arguments()
    if arguments.inside is not None:
        launch.run_under_mpi(lambda: measure(arguments.rounds, arguments.inside))
        return
    reports = {}
    for ranks in arguments.ranks:
        before = os.getloadavg()
        seconds = start(ranks, arguments.rounds)
        reports[ranks] = described(seconds) | {"load_average": [before, os.getloadavg()]}
        print(table(ranks, reports[ranks]), flush=True)
    report = {
        "reports": reports,
        "rounds": arguments.rounds,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "versions": {name: version(name) for name in ("flrl", "torch", "mpi4py", "openmpi")},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {arguments.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what a round costs beside Bcast and Reduce.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3], help="processes of each job")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of each kind")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs/benchmarks/mpi.json")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or min(arguments.ranks) < 2:
        parser.error("--rounds must be at least 1, --ranks at least 2")
    return arguments


def start(ranks: int, rounds: int) -> dict[str, list[float]]:
    """Run a job, and read what its process 0 has written."""
    own = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMPI_MCA_btl": "self,sm"}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "seconds.json"
        command = ["mpiexec", "--oversubscribe", "-n", str(ranks), sys.executable, "-m", "benchmarks.mpi"]
        subprocess.run(
            [*command, "--rounds", str(rounds), "--inside", output], check=True, cwd=ROOT, env=own | os.environ
        )
        return json.loads(output.read_text())  # type: ignore[no-any-return]


def described(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """The seconds, and the ratios that count."""
    over = [whole - serial for whole, serial in zip(seconds["round"], seconds["serial"], strict=True)]
    ratios = {name: ratio(runs, seconds["raw"]) for name, runs in {**seconds, "round - serial": over}.items()}
    return {"seconds": seconds, "ratios": ratios}


def ratio(runs: Sequence[float], raw: Sequence[float]) -> dict[str, float]:
    """To the raw calls: of the medians, and the median over the turns."""
    turns = [a / b for a, b in zip(runs, raw, strict=True)]
    return {"of_medians": statistics.median(runs) / statistics.median(raw), "median": statistics.median(turns)}


def table(ranks: int, report: dict[str, Any]) -> str:
    """A job's report in Markdown."""
    before, after = (" ".join(f"{load:.2f}" for load in loads) for loads in report["load_average"])
    lines = [
        f"{ranks} processes, {processor()}, {os.cpu_count()} CPUs; load average {before}, afterwards {after}",
        "",
        "| | median | min to max | / raw |",
        "|---|---:|---:|---:|",
    ]
    for name, title in ROWS.items():
        runs = [1e3 * value for value in report["seconds"][name]]
        lines.append(
            f"| {title} | {statistics.median(runs):.1f} ms | {min(runs):.1f} to {max(runs):.1f} ms "
            f"| {report['ratios'][name]['of_medians']:.2f} |"
        )
    over = report["ratios"]["round - serial"]
    lines.append(f"| whole round minus serial round | | | {over['of_medians']:.2f} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
