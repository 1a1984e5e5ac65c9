"""Chooses an engine by trying all that can train a module, before the first round."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn

from flrl.data.sources import Source
from flrl.layout import BoundModel
from flrl.trainers.base import LocalProblem, Trainer
from flrl.trainers.eager import EagerTrainer
from flrl.trainers.traced import WORTH_RECORDING, TracedTrainer
from flrl.trainers.vectorized import VectorizedTrainer
from flrl.types import Broadcast, ClientTask, ClientUpdate

log = logging.getLogger(__name__)
_STEPS = WORTH_RECORDING + 4
_REPETITIONS = 3
_CANNOT = "trainer=auto: %s cannot train this: %s"
_ENOUGH_S = 1.0
"""A trial that takes so long is not repeated."""


class AutoTrainer(EagerTrainer):
    """Stands for the fastest engine; `choose` finds it before the first round, and the run's config then names it.

    A choice by the clock may differ from run to run, and so may the last bits: to repeat a run, name its engine.
    Arguments as for `flrl.trainers.base.Trainer`; a `memory_format` of "channels_last" is tried where a module has
    convolutions, whatever is given here.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.options = options

    def candidates(self, model: BoundModel, cohort: int) -> list[tuple[type[Trainer], dict[str, Any]]]:
        """Engines and their arguments that can train a model, of which so many clients may train side by side."""
        module: pl.LightningModule = model.module  # type: ignore[assignment]
        formats = ["contiguous"]
        if any(isinstance(part, nn.Conv2d | nn.ConvTranspose2d) for part in module.modules()):
            formats.append("channels_last")
        engines: list[tuple[type[Trainer], dict[str, Any]]] = [
            (EagerTrainer, {}),
            (TracedTrainer, {}),
            (TracedTrainer, {"fuse": True}),
        ]
        kinds = [(kind, {**self.options, "memory_format": name, **own}) for kind, own in engines for name in formats]
        stack = {**self.options, "memory_format": "contiguous"}
        widest = VectorizedTrainer().clients_at_once(model, cohort)
        # What memory allows may be more than what the caches hold.
        widths = [None, *(width for width in (widest // 4, widest // 16) if width > 1)]
        kinds += [(VectorizedTrainer, {**stack, "width": width}) for width in widths]
        found = []
        for kind, options in kinds:
            try:
                kind(**options).check(module)
            except ValueError:
                continue
            found.append((kind, options))
        return found


def fastest(
    trainer: AutoTrainer,
    model: BoundModel,
    source: Source,
    *,
    check: Callable[[Trainer], None],
    train: Callable[[Sequence[LocalProblem], Trainer], Sequence[ClientUpdate]],
    broadcast: Broadcast,
    cohort: int,
) -> dict[str, Any]:
    """The configuration of the engine that takes least time a step on samples of a source; says so in the log.

    Args:
        trainer: gives the arguments.
        model: as it is initialised; it is put back.
        source: of samples.
        check: raises ValueError for an engine that the strategy cannot use.
        train: a strategy's `train_together`.
        broadcast: what the strategy sends in the first round.
        cohort: clients in a round: no more of them train side by side.
    """
    module: pl.LightningModule = model.module  # type: ignore[assignment]
    vector = model.vector.clone()
    seconds: dict[str, float] = {}
    configs: dict[str, dict[str, Any]] = {}
    failure: Exception | None = None
    for kind, options in trainer.candidates(model, cohort):
        candidate = kind(**options)
        parts = [
            kind.__name__.removesuffix("Trainer").lower(),
            "fused" if options.get("fuse") else "",
            options["memory_format"].replace("contiguous", ""),
            f"width={options['width']}" if options.get("width") else "",
        ]
        name = " ".join(part for part in parts if part)
        try:
            check(candidate)
            seconds[name] = _seconds_a_step(candidate, model, broadcast, source, train, cohort)
        except Exception as error:
            log.log(logging.DEBUG if isinstance(error, ValueError) else logging.WARNING, _CANNOT, name, error)
            failure = error
            continue
        configs[name] = {"_target_": f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}", **options}
    model.load(vector)
    if not seconds:
        reason = f"trainer=auto: no engine can train {type(module).__name__} ({failure}): use trainer=lightning"
        raise ValueError(reason) from failure
    best = min(seconds, key=lambda name: seconds[name])
    others = ", ".join(f"{name} {1e3 * value:.2f}" for name, value in seconds.items() if name != best)
    log.warning("trainer=auto takes %s: %.2f ms a client's step (%s)", best, 1e3 * seconds[best], others)
    return configs[best]


def _seconds_a_step(
    trainer: Trainer,
    model: BoundModel,
    broadcast: Broadcast,
    source: Source,
    train: Callable[[Sequence[LocalProblem], Trainer], Sequence[ClientUpdate]],
    cohort: int,
) -> float:
    size = min(len(source), trainer.batch_size)
    steps = min(_STEPS, max(1, len(source) // size))
    clients = min(cohort, trainer.clients_at_once(model, cohort))
    problems = []
    for client in range(clients):
        indices = (np.arange(size * steps) + client * size) % len(source)
        task = ClientTask(1, client, len(indices), 1.0)
        problems.append(LocalProblem(model, source, indices, task, broadcast, seed=0))
    train(problems, trainer)  # records, compiles, warms up
    taken = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        updates = train(problems, trainer)
        if model.vector.device.type == "cuda":
            torch.cuda.synchronize(model.vector.device)
        taken.append((time.perf_counter() - started) / sum(max(1, update.num_steps) for update in updates))
        if taken[-1] * steps * clients > _ENOUGH_S:
            break
    return min(taken)
