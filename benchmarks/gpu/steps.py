"""Measurements of single steps outside of flrl's engines: clients on several CUDA streams, CUDA graphs, compilation."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.jobs import NEEDS_CUDA, DeviceLoop, Settings, Table, config, federation, in_turn, wait_for
from flrl.seeding import isolated_randomness
from flrl.trainers.steps.replay import Replay
from flrl.trainers.steps.safety import recorded_step
from flrl.worker import Worker

LR = 1e-6
"""So small that the model stays what it is."""
Step = Callable[[Tensor, Tensor], object]


def streams(settings: Settings, job: str) -> Table:
    """A round's clients one after the other, or k at once on k streams, each with a model of its own."""
    table = Table(f"Job {job}: a round's local training on k CUDA streams, a bare loop", ["", "seconds a round"])
    loop = DeviceLoop(config(settings, job), settings.device)
    numbers = (1, 2, 4, 8) if settings.cuda else (1, 2)
    if not settings.cuda:
        table.notes.append("A CPU has no streams: in the dry run k clients take turns, step by step, on none.")
    sides = {f"k = {number}": _Streams(loop, number, settings.device) for number in numbers}
    for name, seconds in in_turn(dict(sides), settings.repetitions, table).items():
        table.rows.append([name, statistics.median(seconds)])
    return table


class _Streams:
    """The clients of a round, so many at a time."""

    def __init__(self, loop: DeviceLoop, number: int, device: str) -> None:
        self.loop, self.device = loop, device
        self.nets = [copy.deepcopy(loop.module.net) for _ in range(number)]
        cuda = torch.device(device).type == "cuda"
        self.streams = [torch.cuda.Stream(device) if cuda else None for _ in range(number)]

    def __call__(self) -> float:
        """Train them; the seconds it took."""
        wait_for(self.device)
        started = time.perf_counter()
        cohort, number = self.loop.cohorts[0], len(self.nets)
        for start in range(0, len(cohort), number):
            self.together(cohort[start : start + number])
        wait_for(self.device)
        return time.perf_counter() - started

    def together(self, clients: Sequence[int]) -> None:
        """Train clients at once: a step of each in turn."""
        loop, size = self.loop, self.loop.batch_size
        optimizers = []
        for net, _ in zip(self.nets, clients, strict=False):
            with torch.no_grad():
                for parameter, initial in zip(net.parameters(), loop.initial, strict=True):
                    parameter.copy_(initial)
            optimizers.append(torch.optim.SGD(net.parameters(), lr=loop.lr))
        wait_for(self.device)  # streams do not wait for what the default one was given before
        most = max(len(loop.clients[client][1]) for client in clients)
        for _ in range(loop.epochs):
            for start in range(0, most, size):
                for net, optimizer, stream, client in zip(self.nets, optimizers, self.streams, clients, strict=False):
                    inputs, targets = (samples[start : start + size] for samples in loop.clients[client])
                    if len(targets):
                        with nullcontext() if stream is None else torch.cuda.stream(stream):
                            optimizer.zero_grad()
                            nn.functional.cross_entropy(net(inputs), targets).backward()  # type: ignore[no-untyped-call]
                            optimizer.step()
        wait_for(self.device)


def graphs(settings: Settings, job: str) -> Table:
    """A step in all its forms."""
    table = Table(f"Job {job}: microseconds a step", ["", "median"])
    found = config(settings, job, "trainer=traced", f"model.optimizer.lr={LR}")
    fused = config(settings, job, "trainer=traced", "trainer.fuse=true")
    loop = DeviceLoop(found, settings.device)
    inputs, targets = loop.clients[loop.cohorts[0][0]]
    batches = list(zip(inputs.split(loop.batch_size), targets.split(loop.batch_size), strict=True))[:20]
    with federation(found, settings.device) as plain, federation(fused, settings.device) as other:
        made: dict[str, Callable[[], Step]] = {
            "bare step": lambda: _bare(loop.module.net),
            "bare step, reduce-overhead": lambda: _bare(_compiled(copy.deepcopy(loop.module.net))),
            "replay": lambda: _replay(plain.worker, batches[0]),
            "replay, fused": lambda: _replay(other.worker, batches[0]),
            "recording, reduce-overhead": lambda: _recording(plain.worker, batches[0]),
            "replay as a CUDA graph": lambda: _graph(_replay(plain.worker, batches[0]), batches[0]),
            "replay, fused, as a CUDA graph": lambda: _graph(_replay(other.worker, batches[0]), batches[0]),
        }
        graphed = "bare step, make_graphed_callables"
        if settings.cuda:
            made[graphed] = lambda: _bare(_graphed(loop.module.net, batches[0][0]))
        else:
            table.notes.append("A CPU has no CUDA graphs: in the dry run the step that would be captured is called.")
        sides: dict[str, Callable[[], Any]] = {}
        for name, make in made.items():
            try:
                sides[name] = _Timed(make(), batches, settings)
            except Exception as error:
                table.fail(name, error)
        for name, seconds in in_turn(sides, settings.repetitions, table).items():
            table.rows.append([name, 1e6 * statistics.median(seconds)])
    if not settings.cuda:
        table.rows.append([graphed, NEEDS_CUDA])
    return table


class _Timed:
    """Some batches, repeated."""

    def __init__(self, step: Step, batches: Sequence[tuple[Tensor, Tensor]], settings: Settings) -> None:
        self.step, self.batches, self.device = step, batches, settings.device
        self.times = 1 if settings.quick else 10

    def __call__(self) -> float:
        """Seconds a step."""
        wait_for(self.device)
        started = time.perf_counter()
        for _ in range(self.times):
            for inputs, targets in self.batches:
                self.step(inputs, targets)
        wait_for(self.device)
        return (time.perf_counter() - started) / (self.times * len(self.batches))


def _bare(net: nn.Module) -> Step:
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, mode="reduce-overhead", dynamic=False)  # type: ignore[return-value]


def _graphed(net: nn.Module, inputs: Tensor) -> nn.Module:
    return torch.cuda.make_graphed_callables(copy.deepcopy(net), (inputs,))  # type: ignore[no-any-return]


def _recorded(worker: Worker, batch: tuple[Tensor, Tensor]) -> Replay:
    trainer: Any = worker.trainer
    with isolated_randomness(0, worker.model.local.device):
        return Replay(recorded_step(trainer, worker.model, batch, None), worker.model, trainer)


def _replay(worker: Worker, batch: tuple[Tensor, Tensor]) -> Step:
    """As `trainer=traced` takes it."""
    replay = _recorded(worker, batch)

    def step(*tensors: Tensor) -> object:
        with torch.inference_mode():
            return replay.with_sgd(*replay.tensors, *tensors, -LR)

    return step


def _recording(worker: Worker, batch: tuple[Tensor, Tensor]) -> Step:
    """Gradients compiled with CUDA graphs, which take no parameters that are stepped in place; steps besides."""
    trainer: Any = worker.trainer
    with isolated_randomness(0, worker.model.local.device):
        recorded = recorded_step(trainer, worker.model, batch, None)
    replay = Replay(recorded, worker.model, trainer)
    gradients_of = torch.compile(recorded.graph, mode="reduce-overhead", dynamic=False)
    kept = 1 + len(replay.logged)

    def step(*tensors: Tensor) -> None:
        with torch.no_grad():
            values = gradients_of(*replay.tensors, *tensors)
            torch._foreach_add_(replay.stepped, list(values[kept:]), alpha=-LR)

    return step


def _graph(step: Step, batch: tuple[Tensor, Tensor]) -> Step:
    """A step captured once over inputs that stay where they are; batches are copied there."""
    inputs, targets = (tensor.clone() for tensor in batch)
    replay = _captured(step, inputs, targets) if inputs.is_cuda else partial(step, inputs, targets)

    def replayed(new_inputs: Tensor, new_targets: Tensor) -> None:
        inputs.copy_(new_inputs)
        targets.copy_(new_targets)
        replay()

    return replayed


def _captured(step: Step, inputs: Tensor, targets: Tensor) -> Callable[[], object]:
    """A step over these tensors as a CUDA graph; calling it replays the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capturing asks for a step or two before, outside of the default stream
        for _ in range(3):
            step(inputs, targets)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(inputs, targets)
    return graph.replay
