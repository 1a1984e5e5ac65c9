"""What all peers share: the jobs, MNIST in memory, its partition, the models, a clock and the JSON.

Only torch, numpy and the standard library: this file is imported in every peer's own environment.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SEED = 0
MU = 0.01
"""Of proximal terms: FedProx's mu, Ditto's lambda."""
CLIP = 0.05
"""The bound of an update's norm under differential privacy: below every client's, so that all are clipped."""
MEAN, STD = 0.1307, 0.3081
TEST_BATCH_SIZE = 1000
Samples = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Job:
    """A federation: all clients have equally many samples, so that weighted and plain means are one.

    Attributes:
        model: a key of `MODELS`.
        clients: who share out the 60,000 training images.
        cohort: clients in a round.
        epochs: local ones, over the same batches in the same order.
        batch_size: of the clients.
        lr: of the clients' plain SGD; the server's is 1.
        rounds: unless asked for otherwise.
    """

    model: str
    clients: int
    cohort: int
    epochs: int
    batch_size: int
    lr: float
    rounds: int


JOBS = {
    "A": Job(model="softmax_regression", clients=2, cohort=2, epochs=1, batch_size=64, lr=0.001, rounds=5),
    "B": Job(model="mcmahan_cnn", clients=100, cohort=10, epochs=5, batch_size=10, lr=0.1, rounds=3),
    "C": Job(model="mlp_2nn", clients=1000, cohort=100, epochs=1, batch_size=10, lr=0.05, rounds=10),
}


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a peer is asked to do.

    Attributes:
        name: of the job.
        job: with the number of rounds asked for.
        workers: processes that train clients.
        strategy: the algorithm, by flrl's name.
        data: folder with MNIST's idx files, or with `MNIST/raw` in it.
        output: the JSON file to write.
    """

    name: str
    job: Job
    workers: int
    strategy: str
    data: Path
    output: Path


@dataclass(frozen=True, slots=True)
class Data:
    """MNIST in memory: normalised float32 images of shape `[n, 1, 28, 28]` and int64 labels of shape `[n]`.

    Attributes:
        clients: training samples, one entry a client.
        test: all test samples.
    """

    clients: list[Samples]
    test: Samples


class Clock:
    """The seconds of each round, of wall and of this process's time: `start` before the first, `lap` after each."""

    def __init__(self) -> None:
        self.laps: list[float] = []
        self.processor: list[float] = []
        self.last = (0.0, 0.0)

    def start(self) -> None:
        """Begin the first round."""
        self.last = time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """End a round and begin the next."""
        now = time.perf_counter(), time.process_time()
        self.laps.append(now[0] - self.last[0])
        self.processor.append(now[1] - self.last[1])
        self.last = now


def parse_arguments(*, max_workers: int = 1, strategies: Sequence[str] = ("fedavg",)) -> Arguments:
    """The arguments every peer takes; one thread per process is set here too.

    Args:
        max_workers: how many processes the peer can use, as it is run here.
        strategies: the algorithms that the peer's script can run.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", choices=JOBS, required=True)
    parser.add_argument("--workers", type=int, default=1, help="processes that train clients")
    parser.add_argument("--strategy", choices=strategies, default="fedavg")
    parser.add_argument("--rounds", type=int, help="as the job has it by default")
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's idx files")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    found = parser.parse_args()
    if not 1 <= found.workers <= max_workers:
        parser.error(f"--workers={found.workers}: must be at least 1 and at most {max_workers} here")
    job = JOBS[found.job]
    if found.rounds is not None:
        job = replace(job, rounds=found.rounds)
    if job.rounds < 1:
        parser.error(f"--rounds={job.rounds}: must be at least 1")
    torch.set_num_threads(1)
    return Arguments(found.job, job, found.workers, found.strategy, found.data.resolve(), found.output.resolve())


def load(folder: Path, job: Job) -> Data:
    """Read and normalise MNIST, and share it out: a permutation by the seed, cut into equal parts."""
    images, labels = read_split(folder, "train")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED))
    parts = order.view(job.clients, -1)
    return Data([(images[part], labels[part]) for part in parts], read_split(folder, "t10k"))


def read_split(folder: Path, split: str) -> Samples:
    """All images and labels of "train" or "t10k"."""
    raw = folder / "MNIST" / "raw"
    folder = raw if raw.is_dir() else folder
    pixels = read_idx(folder / f"{split}-images-idx3-ubyte")
    images = torch.from_numpy(pixels.astype(np.float32) / 255).unsqueeze(1).sub_(MEAN).div_(STD)
    return images, torch.from_numpy(read_idx(folder / f"{split}-labels-idx1-ubyte").astype(np.int64))


def read_idx(path: Path) -> np.ndarray:
    """An idx file of unsigned bytes: its shape is in the header."""
    content = path.read_bytes()
    dimensions = content[3]
    shape = np.frombuffer(content, dtype=">i4", count=dimensions, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def batches(samples: Samples, batch_size: int) -> list[Samples]:
    """Views of the samples, cut into batches in their order."""
    images, labels = samples
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def softmax_regression() -> nn.Sequential:
    """One linear layer: 7,850 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


def mlp_2nn() -> nn.Sequential:
    """The "2NN" of McMahan et al. (arXiv 1602.05629): 199,210 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    )


def mcmahan_cnn() -> nn.Sequential:
    """The CNN of McMahan et al. (arXiv 1602.05629): 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding="same"),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


MODELS = {"softmax_regression": softmax_regression, "mlp_2nn": mlp_2nn, "mcmahan_cnn": mcmahan_cnn}


def initial_model(job: Job) -> nn.Sequential:
    """The job's model; the same initial parameters for every peer."""
    torch.manual_seed(SEED)
    return MODELS[job.model]()


@torch.no_grad()
def accuracy(model: nn.Module, test: Samples) -> float:
    """The share of test samples that the model gets right; for peers without an evaluation of their own."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches(test, TEST_BATCH_SIZE))
    return right / len(test[1])


def write(arguments: Arguments, framework: str, package: str, clock: Clock | list[float], accuracy: float) -> None:
    """Write what was measured; a peer that trained another number of rounds than asked for is an error."""
    seconds, processor = (clock.laps, clock.processor) if isinstance(clock, Clock) else (clock, [])
    if len(seconds) != arguments.job.rounds:
        raise RuntimeError(f"{framework} trained {len(seconds)} rounds instead of {arguments.job.rounds}")
    report = {
        "framework": framework,
        "version": version(package),
        "job": arguments.name,
        "strategy": arguments.strategy,
        "settings": asdict(arguments.job),
        "workers": arguments.workers,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "processor_seconds": processor,
        "accuracy": accuracy,
        "torch": torch.__version__,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")
