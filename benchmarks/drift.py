"""Drift on quadratics: how far from the optimum strategies stop, against the number of local steps.

    python -m benchmarks.drift --picture docs/drift.png

Three clients with 5, 3 and 2 samples minimise `a * (w - b)^2 / 2` with curvatures and minimisers of their own, number
by number in two dimensions, by full gradients in float64; the minimiser of the mean loss is known. Each strategy has
100 rounds at one learning rate, FedLin's being 50 of the paper's. Left: all clients take the same number of steps.
Right: they take 5, 3 and 2 steps in each epoch, as with batches of one sample.
"""

import argparse
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from flrl.backends import SerialBackend
from flrl.callbacks import Callbacks
from flrl.data import FederatedData, Splits, TensorSource
from flrl.evaluation import Evaluator
from flrl.process_setup import prepare
from flrl.sampling import AllClients
from flrl.strategies import FedAvg, FedDC, FedDyn, FedLin, FedNova, FedProx, Scaffold, Strategy
from flrl.trainers import EagerTrainer
from flrl.worker import Worker

STRATEGIES: dict[str, tuple[Any, str, str]] = {  # name: class with its settings, colour, line and marker
    "FedAvg": (FedAvg, "tab:blue", "-o"),
    "FedProx, mu 1": (partial(FedProx, mu=1.0), "tab:cyan", "-s"),
    "FedNova": (FedNova, "tab:purple", "--^"),
    "SCAFFOLD": (Scaffold, "tab:orange", "-o"),
    "FedDyn, alpha 3": (partial(FedDyn, alpha=3.0), "tab:green", "-s"),
    "FedLin": (FedLin, "tab:red", "--^"),
    "FedDC, alpha 3": (partial(FedDC, alpha=3.0), "tab:brown", ":D"),
}
SAMPLES = np.array([5, 3, 2])
CURVATURES = np.array([[1.0, 2.0], [4.0, 1.0], [0.5, 3.0]])
MINIMISERS = np.array([[-2.0, 1.0], [1.0, -3.0], [5.0, 2.0]])
OPTIMUM = (SAMPLES @ (CURVATURES * MINIMISERS)) / (SAMPLES @ CURVATURES)
LR = 0.1
EQUAL, UNEQUAL = (1, 2, 4, 8, 16), (1, 2, 4)
"""Local epochs of one step each, and of as many steps as a client has samples."""
FLOOR = 1e-12
"""Distances below it are drawn as it."""


class Quadratic(pl.LightningModule):
    """A sample is (a, b), two numbers each, and its loss half the sum of a * (w - b)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((2,), 3.0, dtype=torch.float64))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The mean loss of a batch."""
        curvatures, minimisers = batch[0].split(2, dim=1)
        return (curvatures * (self.w - minimisers) ** 2).sum(dim=1).mean() / 2

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the mean loss of a batch."""
        self.log("test/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=LR)


def distance(make: Any, *, local_epochs: int, batch_size: int, rounds: int) -> float:
    """The distance between the model after all rounds and the optimum."""
    strategy: Strategy = make(rounds=rounds, sampler=AllClients(), server_optimizer=partial(torch.optim.SGD, lr=1.0))
    samples = np.repeat(np.concatenate([CURVATURES, MINIMISERS], axis=1), SAMPLES, axis=0)
    source = TensorSource(torch.from_numpy(samples), torch.zeros(len(samples)))
    owners = np.repeat(np.arange(len(SAMPLES)), SAMPLES)
    data = FederatedData(Splits(source, source), lambda count, labels, rng: owners, seed=0)
    model = prepare(Quadratic(), threads=1, device="cpu")
    trainer = EagerTrainer(local_epochs=local_epochs, batch_size=batch_size)
    worker = Worker(model, data, trainer, strategy, Evaluator(every=rounds), seed=0)
    backend = SerialBackend()
    backend.start(worker)
    state = strategy.initialize(model.vector.clone(), model.layout)
    state, _ = strategy.fit(state, backend=backend, layout=model.layout, seed=0, callbacks=Callbacks())
    return float(np.linalg.norm(state.vector.numpy() - OPTIMUM))


def measure(rounds: int, equal: tuple[int, ...] = EQUAL, unequal: tuple[int, ...] = UNEQUAL) -> dict[str, Any]:
    """The distances of each strategy by numbers of local epochs, with equal and with unequal steps."""
    found: dict[str, Any] = {}
    for name, (make, _, _) in STRATEGIES.items():
        run = partial(distance, make, rounds=rounds)
        found[name] = {
            "equal": {epochs: run(local_epochs=epochs, batch_size=int(max(SAMPLES))) for epochs in equal},
            "unequal": {epochs: run(local_epochs=epochs, batch_size=1) for epochs in unequal},
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """The distances as a table in Markdown."""
    first = next(iter(found.values()))
    columns = [head for part in first for head in heads(part, first[part])]
    lines = [["steps", *columns], ["---", *["---:"] * len(columns)]]
    for name, parts in found.items():
        lines.append([name, *(f"{value:.1e}" for part in parts.values() for value in part.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def heads(part: str, epochs: Iterable[int]) -> list[str]:
    """The clients' numbers of local steps, by their epochs."""
    return [str(count) if part == "equal" else ", ".join(str(n * count) for n in SAMPLES) for count in epochs]


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Distance against steps, equal ones left and unequal ones right."""
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, part, scale in zip(axes, ("equal", "unequal"), (1.0, SAMPLES.mean()), strict=True):
        for name, (_, colour, style) in STRATEGIES.items():
            steps = [epochs * scale for epochs in found[name][part]]
            distances = [max(value, FLOOR) for value in found[name][part].values()]
            axis.plot(steps, distances, style, color=colour, label=name, alpha=0.8)
        axis.set(xscale="log", yscale="log", title=f"{part} numbers of steps")
        axis.set_xlabel("local steps of a client in a round" if part == "equal" else "local steps of the three clients")
        axis.set_xticks(steps, heads(part, found[name][part]))
        axis.minorticks_off()
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel(f"distance to the optimum, at least {FLOOR:.0e}")
    axes[1].legend(loc="center right", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="How far from the optimum strategies stop.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--picture", type=Path, default=Path("docs/drift.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.rounds)
    print(table(found))
    draw(found, arguments.picture)


if __name__ == "__main__":
    main()
