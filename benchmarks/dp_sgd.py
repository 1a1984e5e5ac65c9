"""Seconds of a step of DP-SGD: flrl's engines beside Opacus, on the same nets, batches and noise.

    pip install opacus    # comes with flrl's extra dev
    python -m benchmarks.dp_sgd
    python -m benchmarks.dp_sgd --quick

Every side draws Poisson batches, clips the gradients of single samples, adds noise and steps SGD, in one thread. Sides
take turns; medians of repetitions of so many steps, after five that are not counted, in which steps are recorded.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

import numpy as np
import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.overhead import processor
from flrl.bound_model import BoundModel
from flrl.data import TensorSource
from flrl.models import Classifier
from flrl.models.nets import dp_cnn, mlp_2nn, softmax_regression
from flrl.trainers import EagerTrainer, LocalProblem, TracedTrainer, Trainer
from flrl.trainers.private import DPSGD
from flrl.trainers.problem import NoHooks
from flrl.types import Broadcast, ClientTask

SHAPE = {"input_shape": [1, 28, 28], "num_classes": 10}
NETS: dict[str, Callable[[], nn.Module]] = {
    "softmax regression": partial(softmax_regression, **SHAPE),
    "2NN": partial(mlp_2nn, **SHAPE),
    "CNN of 26,010 parameters": partial(dp_cnn, **SHAPE),
}
NORM, NOISE, RATE = 1.5, 1.3, 0.25
WARM_UP = 5


def ours(
    kind: Callable[..., Trainer], net: nn.Module, source: TensorSource, size: int, steps: int
) -> Callable[[], None]:
    """Training of one client with an engine."""
    optimizer = partial(torch.optim.SGD, lr=RATE)
    model = BoundModel(Classifier(net=net, num_classes=10, optimizer=optimizer))
    trainer = kind(batch_size=size, local_steps=steps, private=DPSGD(max_norm=NORM, noise_multiplier=NOISE))
    sent = Broadcast(1, model.vector.clone(), 1.0)
    indices = np.arange(len(source))
    problem = LocalProblem.of(model, source, indices, ClientTask(1, 0, len(source), 1.0), sent, seed=0)
    return lambda: void(trainer.fit(problem, NoHooks()))


def opacus(net: nn.Module, source: TensorSource, size: int, steps: int) -> Callable[[], None]:
    """The same steps with Opacus."""
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    loader = DataLoader(TensorDataset(source.inputs, source.targets), batch_size=size)
    module, stepping, batches = PrivacyEngine().make_private(
        module=net, optimizer=optimizer, data_loader=loader, noise_multiplier=NOISE, max_grad_norm=NORM
    )
    # Opacus' loader collates sample by sample, which takes longer than the step: its batches are drawn by indexing.
    rate, generator = batches.sample_rate, torch.Generator().manual_seed(0)

    def train() -> None:
        for _ in range(steps):
            chosen = torch.rand(len(source), generator=generator) < rate
            stepping.zero_grad()
            nn.functional.cross_entropy(module(source.inputs[chosen]), source.targets[chosen]).backward()
            stepping.step()

    return train


def void(_: object) -> None:
    """Drop a result."""


def main() -> None:
    """Print a table of milliseconds a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps of the smallest net")
    parser.add_argument("--only", default="", help="nets whose names have this in them")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="opacus")
    warnings.filterwarnings("ignore", message=".*backward hook.*")
    repetitions, steps = (1, 5) if arguments.quick else (arguments.repetitions, arguments.steps)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6000, 1, 28, 28, generator=generator)
    source = TensorSource(inputs, torch.randint(10, (6000,), generator=generator))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {processor()}, torch {torch.__version__}, ms a step")
    print("| net | batch | eager | traced | Opacus | traced / Opacus |\n|---|---|---|---|---|---|")
    for name, make in list(NETS.items())[: 1 if arguments.quick else None]:
        if arguments.only not in name:
            continue
        for size in (32, 240):
            sides = {
                "eager": ours(EagerTrainer, make(), source, size, steps),
                "traced": ours(TracedTrainer, make(), source, size, steps),
                "opacus": opacus(make(), source, size, steps),
            }
            taken: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(WARM_UP + repetitions):
                for side, train in sides.items():
                    started = time.perf_counter()
                    train()
                    taken[side].append(1e3 * (time.perf_counter() - started) / steps)
            found = {side: statistics.median(times[WARM_UP:]) for side, times in taken.items()}
            columns = " | ".join(f"{value:.2f}" for value in found.values())
            print(f"| {name} | {size} | {columns} | {found['traced'] / found['opacus']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
