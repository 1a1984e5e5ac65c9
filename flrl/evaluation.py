"""Evaluating a model on the central test set and on each client's held-out part."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from math import ceil

import numpy as np
import pytorch_lightning as pl
import torch
from torchmetrics import Metric

from flrl.bound_model import BoundModel
from flrl.config import lower_is_better
from flrl.data.federated import FederatedData
from flrl.data.sources import Source
from flrl.lightning.hooks import overridden
from flrl.lightning.logs import LogCollector, Logged, counts_only, joined
from flrl.lightning.modes import evaluating
from flrl.lightning.stand_in import TrainerStandIn, attached
from flrl.lightning.steps import replaced, step_caller
from flrl.lightning.transfer import to_device
from flrl.seeding import SERVER, isolated_randomness, seed_for, seed_generators
from flrl.setup import Setup
from flrl.snapshot import Snapshot

log = logging.getLogger(__name__)
WORST_SHARE = 0.1
_TRIED_SAMPLES = 64


class Evaluator:
    """Evaluates models with the module's own `test_step` (else `validation_step`), after some of the rounds.

    Args:
        every: number of rounds between evaluations on the central test set; the last round is always evaluated.
        clients_every: number of rounds between evaluations on each client's held-out samples; 0 for never.
        finetune_steps: local steps after which each client's model is evaluated too, as finetuned; 0 for not at all.
        at_start: also evaluate the model before training, as round 0.
        batch_size: samples of an evaluation batch; it may change only the last bits of metrics.
        try_first: try the module's step on a small batch before the first round.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        every: int = 1,
        clients_every: int = 0,
        finetune_steps: int = 0,
        at_start: bool = False,
        batch_size: int = 1000,
        try_first: bool = True,
    ) -> None:
        for name, value, least in (
            ("every", every, 1),
            ("clients_every", clients_every, 0),
            ("finetune_steps", finetune_steps, 0),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"evaluation.{name}={value}: must be at least {least}")
        self.every = every
        self.clients_every = clients_every
        self.finetune_steps = finetune_steps
        self.at_start = at_start
        self.batch_size = batch_size
        self.try_first = try_first
        self._kept: tuple[BoundModel, Snapshot] | None = None

    def check(self, setup: Setup) -> None:
        """Raise ValueError if the module has no step to evaluate with, or clients are not evaluated as asked."""
        _step_name(setup.module)
        if self.clients_every and not setup.num_holding_out:
            raise ValueError("evaluation.clients_every needs held-out samples: set holdout, for example holdout=0.2")
        if self.finetune_steps and not self.clients_every:
            raise ValueError(
                f"evaluation.finetune_steps={self.finetune_steps}: clients are never evaluated: set "
                "evaluation.clients_every"
            )

    def try_out(self, model: BoundModel, data: FederatedData, *, seed: int = 0) -> None:
        """Evaluate a small batch of the central test set, so that errors of the step are raised before any round.

        The model is restored afterwards. An empty test set is a warning.
        """
        if not len(data.splits.test):
            log.warning("the test set is empty: no round is evaluated on it")
        elif self.try_first:
            vector = model.local.clone()
            indices = np.arange(min(_TRIED_SAMPLES, self.batch_size, len(data.splits.test)))
            try:
                with warnings.catch_warnings():  # some are due to the few samples, others will be repeated
                    warnings.simplefilter("ignore")
                    self.part(model, data.splits.test, indices, range(1), seed=seed)
            finally:
                model.load(vector)

    def due(self, round: int, rounds: int) -> tuple[bool, bool]:
        """Whether the central test set is evaluated after a round of `rounds`, and whether the clients' samples are."""
        last = round == rounds
        central = self.at_start if round == 0 else round % self.every == 0 or last
        clients = bool(self.clients_every) and round > 0 and (round % self.clients_every == 0 or last)
        return central, clients

    def num_batches(self, data: FederatedData) -> int:
        """Number of batches of the central test set."""
        return ceil(len(data.splits.test) / self.batch_size)

    def divisible(self, module: pl.LightningModule) -> bool:
        """Whether the test set can be evaluated in parts: no hooks around the epoch, metrics that keep only counts."""
        hooks = [f"on_{_step_name(module).removesuffix('_step')}_epoch_{end}" for end in ("start", "end")]
        metrics = [part for part in module.modules() if isinstance(part, Metric)]
        return not any(overridden(module, hook) for hook in hooks) and all(map(counts_only, metrics))

    def central(self, model: BoundModel, data: FederatedData, *, seed: int = 0) -> dict[str, float]:
        """The metrics that the module logs over the whole test set."""
        return self.run(model, data.splits.test, np.arange(len(data.splits.test)), seed=seed)

    def client(
        self,
        model: BoundModel,
        data: FederatedData,
        client_id: int,
        round: int = 0,
        *,
        train: bool = False,
        seed: int = 0,
    ) -> dict[str, float]:
        """The metrics that the module logs over one client's held-out (or training) samples, and `num_samples`.

        Samples are those of a round, which a shift may follow.
        """
        indices = (data.train_indices if train else data.holdout_indices)(client_id, round)
        seed = seed_for(seed, 0, client_id, "evaluation")
        return self.run(model, data.splits.train, indices, seed=seed) | {"num_samples": float(len(indices))}

    def run(self, model: BoundModel, source: Source, indices: np.ndarray, *, seed: int = 0) -> dict[str, float]:
        """The metrics that the module logs over the given samples, with the model's current vector."""
        batches = range(ceil(len(indices) / self.batch_size))
        return joined([self.part(model, source, indices, batches, seed=seed)], model.module)

    def part(
        self,
        model: BoundModel,
        source: Source,
        indices: np.ndarray,
        batches: range,
        *,
        seed: int = 0,
        reuse: bool = False,
    ) -> Logged:
        """The logs of the module over some of the batches of `indices`; pass all batches unless `divisible`.

        Args:
            model: the model, with the vector to evaluate.
            source: the source of the samples.
            indices: indices of all samples, int64 `[n]`.
            batches: numbers of the batches to evaluate.
            seed: seed of random numbers.
            reuse: whether the same samples will be evaluated repeatedly.

        Raises:
            ValueError: the module's step logs what cannot be reduced or joined.
        """
        module: pl.LightningModule = model.module  # type: ignore[assignment]
        log, size = LogCollector(), self.batch_size
        hook, device = f"on_{_step_name(module).removesuffix('_step')}_epoch", model.local.device
        model.put_back()
        metrics = [part for part in module.modules() if isinstance(part, Metric)]
        call = step_caller(getattr(module, _step_name(module)))
        chosen = indices[batches.start * size : batches.stop * size]
        numbered = enumerate(source.batches(chosen, size, reuse=reuse), batches.start)
        with evaluating(module):
            between = self._between(model) if self.divisible(module) else None
            with torch.inference_mode(), isolated_randomness(seed, device), contextlib.ExitStack() as whole:
                if between is None:
                    whole.enter_context(_observed(module, log))
                _call(module, f"{hook}_start")
                for batch_idx, batch in numbered:
                    # The random numbers of a batch do not depend on the batches evaluated before it.
                    seed_generators(seed_for(seed, 0, SERVER, f"batch {batch_idx}"))
                    log.batch_size = min(size, len(indices) - batch_idx * size)
                    with contextlib.nullcontext() if between is None else _observed(module, log):
                        call(to_device(module, batch, device), batch_idx)
                    if between is not None:
                        between()
                _call(module, f"{hook}_end")
                if between is None:
                    log.end_epoch(reset=True)
                logged = log.logged(module)
                for metric in metrics:
                    metric.reset()
        return logged

    def _between(self, model: BoundModel) -> Callable[[], None]:
        """A function that restores the module's state between two batches, which different workers may evaluate."""
        if self._kept is None or self._kept[0] is not model:
            spared = [*model.module.parameters(), *model.module.buffers()]
            self._kept = model, Snapshot(model.module, "module", spared=spared, left=(Metric,))
        snapshot, buffers = self._kept[1], [(buffer, buffer.clone()) for buffer in model.module.buffers()]

        def put_back() -> None:
            snapshot.restore()
            for buffer, before in buffers:
                buffer.copy_(before)

        return put_back


@contextlib.contextmanager
def _observed(module: pl.LightningModule, log: LogCollector) -> Iterator[None]:
    with (
        replaced(module, log=log.log, log_dict=log.log_dict),
        attached(module, TrainerStandIn(1, 1, engine="evaluation")),
    ):
        yield


def summarize_clients(rows: list[dict[str, float]], prefix: str) -> dict[str, float]:
    """Statistics over clients of every metric but `num_samples`, named `<prefix>/<metric>_<statistic>`.

    Statistics: `mean`, `weighted_mean` (by samples), `std` (of the population), `worst10` (the mean over the worst
    tenth of the clients that have the metric, rounded up: the highest for losses and errors, else the lowest). The
    prefixes `test/` and `val/` are dropped.
    """
    summary: dict[str, float] = {}
    for name in sorted({name for row in rows for name in row} - {"num_samples"}):
        having = [row for row in rows if name in row]
        values = np.array([row[name] for row in having])
        weights = np.array([row["num_samples"] for row in having])
        short = short_name(name)
        ascending = np.sort(values)
        count = ceil(WORST_SHARE * len(values))
        worst = ascending[-count:] if lower_is_better(short) else ascending[:count]
        statistics: dict[str, float] = {
            "mean": values.mean(),
            "weighted_mean": (values * weights).sum() / weights.sum(),
            "std": values.std(),
            "worst10": worst.mean(),
        }
        summary |= {f"{prefix}/{short}_{statistic}": float(value) for statistic, value in statistics.items()}
    return summary


def short_name(metric: str) -> str:
    """A metric's name among those of clients: without `test/` and `val/`."""
    return metric.removeprefix("test/").removeprefix("val/")


def _step_name(module: pl.LightningModule) -> str:
    for name in ("test_step", "validation_step"):
        if overridden(module, name):
            return name
    raise ValueError(f"{type(module).__name__} has neither a test_step nor a validation_step to be evaluated with")


def _call(module: pl.LightningModule, hook: str) -> None:
    if overridden(module, hook):
        method: Callable[[], None] = getattr(module, hook)
        method()
