"""Where the time of a client goes: its steps, with and without a recording, and what is besides.

    python -m benchmarks.steps --jobs A B C

For each job of `benchmarks.run`, on one client's batches, one thread: a step of a bare loop (autograd and
`torch.optim.SGD`), a replay of the recorded step, and of the fused one, all over prepared batches; then a whole client
as a worker trains it, fused, and adds its update to the sum: what of that is not steps, and what of it the exact sum
with its checks takes. Medians of repetitions in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.overhead import ROOT, processor
from benchmarks.run import ENGINES, JOBS, BareLoop, Framework, composed
from flrl import worker
from flrl.trainers.steps.graphs import runnable, with_sgd
from flrl.trainers.steps.safety import recorded_step
from flrl.types import Broadcast, ClientTask

LR = 1e-6
"""So small that the model stays what it is, repetition after repetition."""
_CLIENTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description="Time a client's steps, and what it costs besides.")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=["A", "B", "C"])
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"microseconds, one thread, {processor()}, torch {torch.__version__}\n")
    print("| job | bare step | recorded step | fused step | a client, fused | its steps | besides | of it the sum |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for job in arguments.jobs:
        medians, steps = measure(job, arguments.repetitions)
        bare, recorded, fused, client, adding = (1e6 * seconds for seconds in medians)
        found = [bare, recorded, fused, client, steps, client - steps * fused, adding]
        print(" | ".join(["", job, *(f"{value:.0f}" for value in found), ""]).strip(), flush=True)


def measure(job: str, repetitions: int) -> tuple[list[float], int]:
    """Seconds of a bare, a recorded and a fused step, of a client and of adding its update, and the client's steps."""
    small = ["logger=none", "paths.output_dir=.", f"paths.data_dir={ROOT / 'data'}", "strategy.rounds=1"]
    config = composed(
        [*JOBS[job], *ENGINES["traced, fused"], f"model.optimizer.lr={LR}", "trainer.local_epochs=1", *small]
    )
    bare, flrl = BareLoop(config), Framework(config, 1).worker
    client = bare.cohorts[0][0]
    inputs, targets = bare.clients[client]
    size, count = bare.batch_size, len(targets) // bare.batch_size
    inputs, targets = inputs[: size * count], targets[: size * count]
    batches = list(zip(inputs.split(size), targets.split(size), strict=True))
    parameters = flrl.model.trainable()
    recorded = recorded_step(flrl.trainer, flrl.model, batches[0], None)
    steppers = [runnable(with_sgd(recorded.graph, range(len(parameters)), fuse=fuse)) for fuse in (False, True)]
    task = ClientTask(1, client, len(targets), float(len(targets)))
    broadcast = Broadcast(1, flrl.model.vector.clone(), float(len(targets)))

    def replay(step: Callable[..., object]) -> None:
        with torch.inference_mode():
            for batch in batches:
                step(*parameters, *batch, -LR)

    sides: list[tuple[Callable[[], object], int]] = [
        (lambda: bare.train(bare.module.net, inputs, targets), count),
        *((lambda step=step: replay(step), count) for step in steppers),  # type: ignore[misc]
        (lambda: flrl.train(broadcast, [task] * _CLIENTS, lambda report: None), _CLIENTS),
    ]
    seconds: list[list[float]] = [[] for _ in [*sides, "adding"]]
    add, adding = worker._add, [0.0]

    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return add(*arguments)
        finally:
            adding[0] += time.perf_counter() - started

    for repetition in range(repetitions + 1):
        adding[0] = 0.0
        for place, (side, times) in enumerate(sides):
            started = time.perf_counter()
            with patch.object(worker, "_add", timed):
                side()
            if repetition:  # the first one warms up
                seconds[place].append((time.perf_counter() - started) / times)
        if repetition:
            seconds[-1].append(adding[0] / _CLIENTS)
    return [statistics.median(found) for found in seconds], count


if __name__ == "__main__":
    main()
