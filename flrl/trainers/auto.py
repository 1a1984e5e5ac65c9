"""`trainer=auto`: chooses an engine by timing all that can train the module, before the first round."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from flrl.bound_model import BoundModel
from flrl.data.sources import Source
from flrl.setup import Setup
from flrl.trainers.base import Trainer
from flrl.trainers.eager import EagerTrainer
from flrl.trainers.problem import LocalProblem
from flrl.trainers.steps.replay import WORTH_RECORDING
from flrl.trainers.traced import TracedTrainer
from flrl.trainers.vectorized import VectorizedTrainer
from flrl.types import Broadcast, ClientTask, ClientUpdate

log = logging.getLogger(__name__)
TARGET = "flrl.trainers.choose_engine"
_STEPS = WORTH_RECORDING + 4
_REPETITIONS = 3
_CANNOT = "trainer=auto: %s cannot train this: %s"
_ENOUGH_S = 1.0
"""Seconds; a trial that takes longer is not repeated."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A task on which engines are timed.

    Attributes:
        model: the initial model; its vector is restored afterwards.
        source: the training samples of all clients.
        setup: the run's parts; each engine in turn is the trainer in it.
        train: makes clients' updates, as `flrl.strategies.running.train_clients` does.
        broadcast: what the strategy sends in the first round.
        cohort: number of clients in a round, which limits the size of client batches.
        public: the samples that the server and all clients have; None if there are none.
    """

    model: BoundModel
    source: Source
    setup: Setup
    train: Callable[[Sequence[LocalProblem], Trainer], Sequence[ClientUpdate]]
    broadcast: Broadcast
    cohort: int
    public: Source | None = None


def choose_engine(trial: Trial, **options: Any) -> dict[str, Any]:
    """The configuration of the engine that takes least time per step; logs the times.

    A choice by measured time may differ from run to run, and so may the last bits: to repeat a run, name its engine.

    Args:
        trial: the task to time engines on.
        options: as for `flrl.trainers.base.Trainer`; `memory_format` is ignored: both formats are tried where a module
            has convolutions.

    Returns:
        `_target_` and arguments of the engine.

    Raises:
        ValueError: no engine but `LightningTrainer` can train the module.
    """
    if options.get("private") is not None:
        raise ValueError("trainer.private: trainer=auto does not try private steps: use trainer=traced")
    vector = trial.model.local.clone()
    seconds: dict[str, float] = {}
    configs: dict[str, dict[str, Any]] = {}
    failure: Exception | None = None
    for kind, own in _candidates(trial, options):
        name = _name(kind, own)
        try:
            candidate = kind(**own)
            replace(trial.setup, trainer=candidate).check()
            seconds[name] = _seconds_a_step(candidate, trial)
        except Exception as error:
            log.log(logging.DEBUG if isinstance(error, ValueError) else logging.WARNING, _CANNOT, name, error)
            failure = error
            continue
        configs[name] = {"_target_": f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}", **own}
    trial.model.load(vector)
    if not seconds:
        name = type(trial.setup.module).__name__
        raise ValueError(f"trainer=auto: no engine can train {name} ({failure}): use trainer=lightning") from failure
    best = min(seconds, key=lambda name: seconds[name])
    others = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in seconds.items() if name != best)
    log.warning("trainer=auto takes %s: %.2f ms a client's step (%s)", best, 1e3 * seconds[best], others)
    return configs[best]


def _candidates(trial: Trial, options: Mapping[str, Any]) -> list[tuple[type[Trainer], dict[str, Any]]]:
    """The engines to try: class and arguments of each."""
    formats = ["contiguous"]
    if any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in trial.setup.module.modules()):
        formats.append("channels_last")
    engines: list[tuple[type[Trainer], dict[str, Any]]] = [
        (EagerTrainer, {}),
        (TracedTrainer, {}),
        (TracedTrainer, {"fuse": True}),
    ]
    found = [(kind, {**options, "memory_format": name, **own}) for kind, own in engines for name in formats]
    widest = VectorizedTrainer().clients_at_once(trial.model, trial.cohort)
    # Smaller client batches may fit the caches where the largest does not.
    widths = [None, *(width for width in (widest // 4, widest // 16) if width > 1)]
    return found + [(VectorizedTrainer, {**options, "memory_format": "contiguous", "width": w}) for w in widths]


def _name(kind: type[Trainer], options: Mapping[str, Any]) -> str:
    parts = [
        kind.__name__.removesuffix("Trainer").lower(),
        "fused" if options.get("fuse") else "",
        options["memory_format"].replace("contiguous", ""),
        f"width={options['width']}" if options.get("width") else "",
    ]
    return " ".join(part for part in parts if part)


def _seconds_a_step(trainer: Trainer, trial: Trial) -> float:
    source, model = trial.source, trial.model
    size = min(len(source), trainer.batch_size)
    steps = min(_STEPS, max(1, len(source) // size))
    clients = min(trial.cohort, trainer.clients_at_once(model, trial.cohort))
    problems = []
    for client in range(clients):
        indices = (np.arange(size * steps) + client * size) % len(source)
        task = ClientTask(1, client, len(indices), 1.0)
        problems.append(LocalProblem.of(model, source, indices, task, trial.broadcast, seed=0, public=trial.public))
    trial.train(problems, trainer)  # records, compiles, warms up
    taken = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        updates = trial.train(problems, trainer)
        if model.local.device.type == "cuda":
            torch.cuda.synchronize(model.local.device)
        taken.append((time.perf_counter() - started) / sum(max(1, update.num_steps) for update in updates))
        if taken[-1] * steps * clients > _ENOUGH_S:
            break
    return min(taken)
