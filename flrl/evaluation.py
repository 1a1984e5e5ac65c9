"""Evaluating a model on the central test set and on each client's held-out part."""

from collections.abc import Callable
from math import ceil

import numpy as np
import pytorch_lightning as pl
import torch

from flrl.data.federated import FederatedData
from flrl.data.sources import Source
from flrl.layout import BoundModel
from flrl.lightning_hooks import overridden
from flrl.trainers.base import to_device
from flrl.trainers.modules import LogCollector, replaced, step_caller
from flrl.trainers.stand_in import TrainerStandIn, attached

WORST_SHARE = 0.1
LOWER_IS_BETTER = ("loss", "error", "mse", "mae", "perplexity")


class Evaluator:
    """Says what is evaluated after which rounds, with the module's own `test_step` (else `validation_step`).

    Args:
        every: evaluate on the central test set after each such number of rounds, and after the last one.
        clients_every: likewise on each client's held-out samples; 0 never does.
        at_start: also evaluate the model before training, as round 0.
        batch_size: of evaluation batches; it does not change the metrics but in their last bits.
    """

    def __init__(
        self, *, every: int = 1, clients_every: int = 0, at_start: bool = False, batch_size: int = 1000
    ) -> None:
        for name, value, least in (
            ("every", every, 1),
            ("clients_every", clients_every, 0),
            ("batch_size", batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"evaluation.{name}={value}: must be at least {least}")
        self.every = every
        self.clients_every = clients_every
        self.at_start = at_start
        self.batch_size = batch_size

    def check(self, module: pl.LightningModule, data: FederatedData) -> None:
        """Raise ValueError if the module or the data do not have what is to be evaluated."""
        _step_name(module)
        if self.clients_every and not any(len(data.holdout_indices(c)) for c in range(data.num_clients)):
            raise ValueError("evaluation.clients_every needs held-out samples: set holdout, for example holdout=0.2")

    def due(self, round: int, rounds: int) -> tuple[bool, bool]:
        """Whether the central test set, and the clients' held-out parts, are evaluated after a round."""
        last = round == rounds
        central = self.at_start if round == 0 else round % self.every == 0 or last
        clients = bool(self.clients_every) and round > 0 and (round % self.clients_every == 0 or last)
        return central, clients

    def central(self, model: BoundModel, data: FederatedData) -> dict[str, float]:
        """What the module logs over the whole test set."""
        return self.run(model, data.splits.test, np.arange(len(data.splits.test)))

    def client(
        self, model: BoundModel, data: FederatedData, client_id: int, *, train: bool = False
    ) -> dict[str, float]:
        """What the module logs over one client's held-out (or training) samples, and `num_samples`."""
        indices = data.train_indices(client_id) if train else data.holdout_indices(client_id)
        return self.run(model, data.splits.train, indices) | {"num_samples": float(len(indices))}

    def run(self, model: BoundModel, source: Source, indices: np.ndarray) -> dict[str, float]:
        """What the module logs over the given samples, with the model's present vector."""
        module: pl.LightningModule = model.module  # type: ignore[assignment]
        name = _step_name(module)
        log, call = LogCollector(), step_caller(getattr(module, name))
        modes = [(part, part.training) for part in module.modules()]
        module.eval()
        try:
            logging = replaced(module, log=log.log, log_dict=log.log_dict)
            with torch.inference_mode(), logging, attached(module, TrainerStandIn(1, 1)):
                _call(module, f"on_{name.removesuffix('_step')}_epoch_start")
                for batch_idx, batch in enumerate(source.batches(indices, self.batch_size)):
                    log.batch_size = min(self.batch_size, len(indices) - batch_idx * self.batch_size)
                    call(to_device(module, batch, model.vector.device), batch_idx)
                _call(module, f"on_{name.removesuffix('_step')}_epoch_end")
                log.end_epoch(reset=True)
        finally:
            for part, training in modes:
                part.training = training
        return log.result()


def summarize_clients(rows: list[dict[str, float]]) -> dict[str, float]:
    """Statistics over clients of every metric but `num_samples`: `clients/<metric>_<statistic>`.

    Statistics: `mean`, `weighted_mean` (by samples), `std` (of the population), `worst10` (the mean over the worst
    tenth of clients, rounded up: the highest for losses and errors, else the lowest;
    over the clients that have the metric). `test/` and `val/` are dropped.
    """
    summary: dict[str, float] = {}
    for name in sorted({name for row in rows for name in row} - {"num_samples"}):
        having = [row for row in rows if name in row]
        values = np.array([row[name] for row in having])
        weights = np.array([row["num_samples"] for row in having])
        short = name.removeprefix("test/").removeprefix("val/")
        ascending = np.sort(values)
        count = ceil(WORST_SHARE * len(values))
        worst = ascending[-count:] if any(word in short.lower() for word in LOWER_IS_BETTER) else ascending[:count]
        statistics: dict[str, float] = {
            "mean": values.mean(),
            "weighted_mean": (values * weights).sum() / weights.sum(),
            "std": values.std(),
            "worst10": worst.mean(),
        }
        summary |= {f"clients/{short}_{statistic}": float(value) for statistic, value in statistics.items()}
    return summary


def _step_name(module: pl.LightningModule) -> str:
    for name in ("test_step", "validation_step"):
        if overridden(module, name):
            return name
    raise ValueError(f"{type(module).__name__} has neither a test_step nor a validation_step to be evaluated with")


def _call(module: pl.LightningModule, hook: str) -> None:
    if overridden(module, hook):
        method: Callable[[], None] = getattr(module, hook)
        method()
