"""Jobs B and C of `benchmarks.run` on any device, with MNIST or without, and tables of what was found."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.run import JOBS, BareLoop, composed
from flrl.backends import ProcessBackend, SerialBackend
from flrl.callbacks import Callbacks
from flrl.data import Splits, TensorSource
from flrl.recipe import Recipe

NEEDS_CUDA = "needs CUDA"
"""The cell of what a dry run cannot do."""
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SMALL = {"B": (20, 2, 1), "C": (40, 8, 1)}
"""Clients, clients a round and local epochs of the quick jobs, whose clients have 20 samples."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What all parts are given.

    Attributes:
        device: where models train.
        quick: jobs so small that they can be tried on a CPU.
        data: folder of MNIST; None takes made-up samples of its shape.
        repetitions: of everything that is timed.
        rounds: of each training.
        environments: of other frameworks.
    """

    device: str
    quick: bool
    data: Path | None
    repetitions: int
    rounds: int
    environments: Path

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU to be asked."""
        return torch.device(self.device).type == "cuda"

    @property
    def samples(self) -> str:
        """What the models are trained on, in words."""
        return "made-up samples of MNIST's shape" if self.data is None else f"MNIST from {self.data}"


def has_mnist(folder: Path) -> bool:
    """Whether MNIST's files are there already."""
    return all((folder / "MNIST" / "raw" / name).exists() for name in FILES)


@dataclass
class Table:
    """What one part found.

    Attributes:
        title: the question, with what the numbers are.
        header: names of the columns.
        rows: cells; numbers are for the JSON, and written with three digits.
        notes: what has to be known besides.
        failures: what did not work, by name.
    """

    title: str
    header: Sequence[str]
    rows: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def try_row(self, name: str, cells: Callable[[], Sequence[Any]]) -> None:
        """Add a row, or one with the reason that it failed."""
        try:
            self.rows.append([name, *cells()])
        except Exception as error:
            self.fail(name, error)

    def fail(self, name: str, error: Exception) -> None:
        """Add the row of something that failed."""
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        self.failures.append(f"{name}: {reason}")
        self.rows.append([name, f"failed: {reason}", *[""] * (len(self.header) - 2)])

    def markdown(self) -> str:
        """The table as it is printed."""
        lines = [f"## {self.title}", "", _line(self.header), "|---|" + "---:|" * (len(self.header) - 1)]
        return "\n".join([*lines, *map(_line, self.rows), "", *(f"{note}\n" for note in self.notes)])


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(_word, cells))} |"


def _word(cell: Any) -> str:
    if not isinstance(cell, float):
        return str(cell).replace("|", "/")
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"


@cache
def pictures(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Made-up uint8 images `[number, 28, 28]` and their classes: a coarse pattern for each class under much noise."""
    patterns = np.random.default_rng(0).integers(0, 160, size=(10, 7, 7)).repeat(4, axis=1).repeat(4, axis=2)
    rng = np.random.default_rng(seed)
    labels = np.arange(number) % 10
    noise = rng.integers(-128, 128, size=(number, 28, 28), dtype=np.int16)
    return np.clip(patterns[labels] + noise, 0, 255).astype(np.uint8), labels.astype(np.uint8)


def mnist_shaped(*, train: int, test: int) -> Splits:
    """Made-up samples as a dataset, normalised as MNIST is."""

    def source(number: int, seed: int) -> TensorSource:
        images, labels = pictures(number, seed)
        tensors = torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64))
        return TensorSource(*tensors, mean=[0.1307], std=[0.3081])

    return Splits(source(train, 1), source(test, 2))


def write_idx(folder: Path) -> None:
    """Put made-up samples where other frameworks look for MNIST."""
    for names, number, seed in ((FILES[:2], 60_000, 1), (FILES[2:], 10_000, 2)):
        for name, array in zip(names, pictures(number, seed), strict=True):
            head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes()
            (folder / name).write_bytes(head + array.tobytes())


def config(settings: Settings, job: str, *overrides: str) -> dict[str, Any]:
    """The configuration of a job."""
    small = []
    train, test = 60_000, 10_000
    if settings.quick:
        clients, cohort, epochs = SMALL[job]
        train, test = clients * 20, 200
        small = [f"partition.num_clients={clients}", f"strategy.sampler.num={cohort}"]
        small += [f"trainer.local_epochs={epochs}"]
    shared = ["logger=none", "paths.output_dir=.", f"strategy.rounds={settings.rounds}"]
    if settings.data is not None:
        shared.append(f"paths.data_dir='{settings.data}'")
    made_up = {"_target_": "benchmarks.gpu.jobs.mnist_shaped", "train": train, "test": test}
    return composed([*JOBS[job], *small, *shared, *overrides], made_up if settings.data is None else None)


class DeviceLoop(BareLoop):
    """The bare loop over tensors that lie on the device."""

    def __init__(self, found: dict[str, Any], device: str) -> None:
        super().__init__(found)
        self.clients = {client: _moved(samples, device) for client, samples in self.clients.items()}
        self.test = _moved(self.test, device)
        self.initial = [tensor.to(device) for tensor in self.initial]
        self.module.to(device)

    def evaluate(self, net: nn.Module) -> float:
        """Accuracy on the test set; the sum is read once."""
        inputs, targets = self.test
        with torch.no_grad():
            parts = zip(inputs.split(1000), targets.split(1000), strict=True)
            return int(sum((net(x).argmax(1) == y).sum() for x, y in parts)) / len(targets)


def _moved(samples: tuple[Tensor, Tensor], device: str) -> tuple[Tensor, Tensor]:
    return samples[0].to(device), samples[1].to(device)


class Federation:
    """A job through flrl on a device, on workers that are started once; it begins anew whenever it is called."""

    def __init__(self, found: dict[str, Any], device: str, workers: int = 0) -> None:
        self.recipe = Recipe(found)
        backend: Any = ProcessBackend(workers=workers, device=device) if workers else SerialBackend(device=device)
        self.backend = backend
        self.worker = self.recipe.worker(backend.share(self.recipe.data()), threads=1, device=device)
        self.initial = self.worker.model.vector.detach().cpu().clone()
        try:
            backend.start(self.worker, self.recipe)
        except BaseException:
            backend.close()
            raise

    def __call__(self) -> dict[str, Any]:
        """Train all rounds."""
        strategy, layout = self.worker.strategy, self.worker.model.layout
        state, history = strategy.fit(
            strategy.initialize(self.initial, layout),
            backend=self.backend,
            layout=layout,
            seed=self.worker.seed,
            callbacks=Callbacks(),
        )
        return {
            "seconds": [record.metrics["time/round_s"] for record in history],
            "accuracy": history[-1].metrics["test/accuracy"],
            "digest": history[-1].digest,
            "vector": state.vector,
        }


@contextmanager
def federation(found: dict[str, Any], device: str, workers: int = 0) -> Iterator[Federation]:
    """A federation whose workers end with the block."""
    made = Federation(found, device, workers)
    try:
        yield made
    finally:
        made.backend.close()


def in_turn(sides: dict[str, Callable[[], Any]], repetitions: int, table: Table) -> dict[str, list[Any]]:
    """What the sides give, repetition after repetition, every other one backwards.

    A side is called once before; one that fails gets its row in the table, and is left out.
    """
    working = {}
    for name, side in sides.items():
        try:
            side()  # records, compiles, prepares samples
            working[name] = side
        except Exception as error:
            table.fail(name, error)
    results: dict[str, list[Any]] = {name: [] for name in working}
    for repetition in range(repetitions):
        for name in list(working)[:: 1 if repetition % 2 == 0 else -1]:
            results[name].append(working[name]())
    return results


def seconds_of(runs: Sequence[dict[str, Any]]) -> float:
    """The median over repetitions of the median round."""
    return statistics.median(statistics.median(run["seconds"]) for run in runs)


def wait_for(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
