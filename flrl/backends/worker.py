"""What one worker does, on every backend: train clients, fold their updates, evaluate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from flrl.aggregation import WeightedMean
from flrl.data import FederatedData
from flrl.errors import ClientError
from flrl.evaluation import Evaluator, summarize_clients
from flrl.layout import BoundModel
from flrl.seeding import SERVER, seed_for
from flrl.strategies.base import Strategy
from flrl.trainers import LocalProblem, Trainer
from flrl.trainers.base import isolated_randomness
from flrl.types import Broadcast, ClientReport, ClientTask, ClientUpdate


@dataclass(frozen=True, slots=True)
class Worker:
    """One model, and all that is needed to train any client with it. Holds nothing from one client to the next.

    Attributes:
        model: reused for every client.
        data: the clients' samples.
        trainer: trains one client.
        strategy: its client half is used.
        evaluator: what is evaluated when.
        seed: the run's seed.
    """

    model: BoundModel
    data: FederatedData
    trainer: Trainer
    strategy: Strategy
    evaluator: Evaluator
    seed: int

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> tuple[WeightedMean, list[ClientReport]]:
        """Train the given clients, one after the other, and fold their updates.

        Raises:
            ClientError: a client's training raised.
        """
        device = self.model.vector.device
        variables = {name: tensor.to(device) for name, tensor in broadcast.variables.items()}
        broadcast = replace(broadcast, vector=broadcast.vector.to(device), variables=variables)
        sizes = self.strategy.vector_sizes(self.model.layout)
        accumulator = WeightedMean(sizes, total_weight=broadcast.total_weight, device=device)
        reports = []
        for task in tasks:
            update = self._client(task, broadcast)
            objection = accumulator.objection(update)
            if objection is None:
                accumulator.add(update)
            reports.append(_report(task, update, objection))
            on_report(reports[-1])
        return accumulator, reports

    def evaluate(self, vector: Tensor, *, round: int, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round."""
        central, clients = self.evaluator.due(round, rounds)
        if not (central or clients):
            return {}
        self.model.load(vector)
        seed = seed_for(self.seed, round, SERVER, "evaluation")
        with isolated_randomness(seed, self.model.vector.device):
            return self._metrics(central=central, clients=clients)

    def _metrics(self, *, central: bool, clients: bool) -> dict[str, float]:
        metrics = self.evaluator.central(self.model, self.data) if central else {}
        if clients:
            held = [c for c in range(self.data.num_clients) if len(self.data.holdout_indices(c))]
            metrics |= summarize_clients([self.evaluator.client(self.model, self.data, c) for c in held])
        return metrics

    def _client(self, task: ClientTask, broadcast: Broadcast) -> ClientUpdate:
        indices = self.data.train_indices(task.client_id)
        problem = LocalProblem(self.model, self.data.splits.train, indices, task, broadcast, self.seed)
        try:
            update = self.strategy.train(problem, self.trainer)
            for transform in self.strategy.transforms:
                update, counts = transform.encode(update, broadcast, self.seed)
                counted = {f"transforms/{transform.name}/{name}": value for name, value in counts.items()}
                counted[f"transforms/{transform.name}/clients"] = 1.0
                update = replace(update, metrics={**update.metrics, **counted})
        except Exception as error:
            where = f"client {task.client_id}, round {task.round}"
            raise ClientError(f"{where}: {type(error).__name__}: {error}") from error
        return update


def _report(task: ClientTask, update: ClientUpdate, objection: str | None) -> ClientReport:
    return ClientReport(
        client_id=task.client_id,
        num_samples=task.num_samples,
        num_steps=update.num_steps,
        metrics=update.metrics,
        up_bytes=update.up_bytes,
        rejected=objection,
        memory=update.memory if objection is None else task.memory,
    )


def prepare(model: Any, *, threads: int, device: str) -> BoundModel:
    """Set this process's threads, move a LightningModule to its device and bind it to a vector.

    Args:
        model: the LightningModule.
        threads: intra-op threads; the bits of a run depend on them.
        device: "cpu", "cuda", "cuda:1", ...
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device}: torch finds no CUDA device here")
    torch.set_num_threads(threads)
    return BoundModel(model.to(device))
