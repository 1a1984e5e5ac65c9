"""What one worker does, on every backend: train clients, fold their updates, evaluate."""

import ctypes
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from flrl.aggregation import WeightedMean, surveyed
from flrl.data import FederatedData
from flrl.errors import ClientError
from flrl.evaluation import Evaluator, summarize_clients
from flrl.layout import BoundModel, checksum_of
from flrl.seeding import SERVER, clients_in_turn, seed_for
from flrl.snapshot import Snapshot
from flrl.strategies.base import Strategy, refuse_changes
from flrl.tracebacks import place_in
from flrl.trainers import LocalProblem, Trainer
from flrl.trainers.modules import Logged, joined
from flrl.transforms import Transform
from flrl.types import Broadcast, ClientReport, ClientTask, ClientUpdate

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationShare:
    """What is to be evaluated: batches of the central test set, and clients on their held-out samples."""

    batches: range
    clients: Sequence[int]


@dataclass(frozen=True, slots=True)
class EvaluationPart:
    """What a share gave, in a form that can be sent: central logs, and each client's metrics."""

    central: Logged | None
    clients: Mapping[int, Mapping[str, float]]


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
        drop_failures: a client whose training raises is reported as rejected, instead of ending the run.
    """

    model: BoundModel
    data: FederatedData
    trainer: Trainer
    strategy: Strategy
    evaluator: Evaluator
    seed: int
    drop_failures: bool = False

    def train(
        self,
        broadcast: Broadcast,
        tasks: Sequence[ClientTask],
        on_report: Callable[[ClientReport], None],
        on_start: Callable[[ClientTask], None] = lambda task: None,
    ) -> tuple[WeightedMean, list[ClientReport]]:
        """Train the given clients, one after the other, and fold their updates.

        Raises:
            ClientError: a client's training raised, and failures are not dropped.
            ValueError: the strategy has changed itself.
        """
        device = self.model.vector.device
        broadcast = self._here(broadcast)
        sizes = self.strategy.vector_sizes(self.model.layout)
        accumulator = WeightedMean(sizes, total_weight=broadcast.total_weight, device=device)
        reports = []
        before = Snapshot(self.strategy, "strategy")
        with clients_in_turn(device):
            for stack in stacks_of(tasks):
                on_start(stack[0])
                updates = self._updates(stack, broadcast)
                refuse_changes(self.strategy, before, f"while client {stack[0].client_id} trains")
                for task, update in zip(stack, updates, strict=True):
                    reports.append(self._fold(task, update, accumulator))
                    on_report(reports[-1])
        return accumulator, reports

    def rehearse(self, broadcast: Broadcast, tasks: Sequence[ClientTask]) -> None:
        """Train the first clients of a round on one batch each, and forget it: what cannot be trained is said early.

        Args:
            broadcast: what the clients of the next round are sent.
            tasks: theirs.

        Raises:
            ValueError: an engine or a strategy refuses the module, by name.
            ClientError: the module's own code raised.
        """
        if not tasks:
            return
        stack = stacks_of(self.stacked(tasks))[0]
        before = Snapshot(self.strategy, "strategy")
        with clients_in_turn(self.model.vector.device):
            try:
                self._clients(stack, self._here(broadcast), most=self.trainer.batch_size)
            except ClientError as error:
                if isinstance(error.__cause__, ValueError) and _raised_here(error.__cause__):
                    raise error.__cause__ from None
                raise
            finally:
                self.model.load(broadcast.vector)
        refuse_changes(self.strategy, before, "while a client trains")

    def _here(self, broadcast: Broadcast) -> Broadcast:
        """The same, on the model's device."""
        device = self.model.vector.device
        variables = {name: tensor.to(device) for name, tensor in broadcast.variables.items()}
        return replace(broadcast, vector=broadcast.vector.to(device), variables=variables)

    def stacked(self, tasks: Sequence[ClientTask]) -> list[ClientTask]:
        """The tasks, those that train side by side numbered alike.

        Who trains beside whom may show in the last bits, so it must not depend on how many workers there are. Tasks
        that are numbered stay as they are.
        """
        width = self.trainer.clients_at_once(self.model, len(tasks))
        if width == 1 or any(task.stack is not None for task in tasks):
            return list(tasks)
        order = sorted(range(len(tasks)), key=lambda index: (-tasks[index].num_samples, index))
        numbers = {index: place // width for place, index in enumerate(order)}
        return [replace(task, stack=numbers[index]) for index, task in enumerate(tasks)]

    def _updates(self, stack: Sequence[ClientTask], broadcast: Broadcast) -> list[ClientUpdate | ClientError]:
        try:
            return list(self._clients(stack, broadcast))
        except ClientError as error:
            if not self.drop_failures:
                raise
            if len(stack) == 1:
                log.warning("%s (%s); its update is left out", error, place_in(error.traceback))
                return [error]
            return [update for task in stack for update in self._updates([task], broadcast)]

    def _fold(self, task: ClientTask, update: ClientUpdate | ClientError, accumulator: WeightedMean) -> ClientReport:
        if isinstance(update, ClientError):
            return ClientReport(task.client_id, task.num_samples, 0, {}, 0, rejected=str(update), memory=task.memory)
        surveys = surveyed(update)
        objection = accumulator.objection(update, surveys)
        if objection is None:
            accumulator.add(update, surveys)
        return _report(task, update, checksum_of(surveys.values()), objection)

    def evaluate(self, vector: Tensor, *, round: int, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round."""
        share = self.due(round, rounds)
        return {} if share is None else self.combine([self.evaluate_share(vector, round, share)])

    def due(self, round: int, rounds: int) -> EvaluationShare | None:
        """All that is to be evaluated after a round, if anything."""
        central, clients = self.evaluator.due(round, rounds)
        batches = range(self.evaluator.num_batches(self.data) if central else 0)
        held = self.data.holding_out().tolist() if clients else []
        return EvaluationShare(batches, held) if central or clients else None

    @property
    def divisible(self) -> bool:
        """Whether the central test set can be evaluated in parts."""
        return self.evaluator.divisible(self.model.module)  # type: ignore[arg-type]

    def evaluate_share(self, vector: Tensor, round: int, share: EvaluationShare) -> EvaluationPart:
        """Evaluate some of what is due."""
        self.model.load(vector)
        seed = seed_for(self.seed, round, SERVER, "evaluation")
        test = self.data.splits.test
        central = None
        if len(share.batches):
            indices = np.arange(len(test))
            central = self.evaluator.part(self.model, test, indices, share.batches, seed=seed, again=True)
        clients = {}
        for client_id in share.clients:
            self.model.load(vector)
            clients[client_id] = self.evaluator.client(self.model, self.data, client_id, seed=seed)
        return EvaluationPart(central, clients)

    def combine(self, parts: Sequence[EvaluationPart]) -> dict[str, float]:
        """The metrics of a round from the parts of its evaluation; which part came from where does not matter."""
        metrics = joined([part.central for part in parts if part.central is not None], self.model.module)
        clients = {client_id: row for part in parts for client_id, row in part.clients.items()}
        return metrics | summarize_clients([dict(clients[client_id]) for client_id in sorted(clients)])

    def _clients(
        self, stack: Sequence[ClientTask], broadcast: Broadcast, *, most: int | None = None
    ) -> list[ClientUpdate]:
        """The updates of clients that may train side by side, on at most so many of their first samples."""
        source, indices = self.data.splits.train, self.data.train_indices
        problems = [
            LocalProblem(self.model, source, indices(task.client_id)[:most], task, broadcast, self.seed)
            for task in stack
        ]
        try:
            updates = self.strategy.train_together(problems, self.trainer)
            for transform in self.strategy.transforms:
                updates = [_encoded(transform, update, broadcast, self.seed) for update in updates]
        except Exception as error:
            clients = ", ".join(str(task.client_id) for task in stack)
            raise ClientError(
                f"client {clients}, round {broadcast.round}: {type(error).__name__}: {error}{self._hint(error)}",
                client_id=stack[0].client_id,
                traceback=traceback.format_exc(),
            ) from error
        return updates

    def _hint(self, error: Exception) -> str:
        if "Expected more than 1 value per channel" in str(error):  # torch's BatchNorm
            size = self.trainer.batch_size
            return f"; its last batch has one sample: choose another trainer.batch_size than {size}, or GroupNorm"
        return ""


def _raised_here(error: BaseException) -> bool:
    """Whether flrl itself has raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


def stacks_of(tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
    """The tasks that may be trained side by side, in the order of their first ones."""
    stacks: dict[tuple[str, int], list[ClientTask]] = {}
    for index, task in enumerate(tasks):
        key = ("alone", index) if task.stack is None else ("stack", task.stack)
        stacks.setdefault(key, []).append(task)
    return list(stacks.values())


def _encoded(transform: Transform, update: ClientUpdate, broadcast: Broadcast, seed: int) -> ClientUpdate:
    update, counts = transform.encode(update, broadcast, seed)
    counted = {f"transforms/{transform.name}/{name}": value for name, value in counts.items()}
    counted[f"transforms/{transform.name}/clients"] = 1.0
    return replace(update, metrics={**update.metrics, **counted})


def _report(task: ClientTask, update: ClientUpdate, checksum: str, objection: str | None) -> ClientReport:
    return ClientReport(
        client_id=task.client_id,
        num_samples=task.num_samples,
        num_steps=update.num_steps,
        metrics=update.metrics,
        up_bytes=update.up_bytes,
        rejected=objection,
        checksum=checksum,
        memory=update.memory if objection is None else task.memory,
    )


class WorkerRecipe(Protocol):
    """How a worker is made, in a form that can be sent to another process; `flrl.recipe.Recipe` is one."""

    def data(self) -> FederatedData:
        """The clients' samples."""

    def worker(self, data: FederatedData, *, threads: int, device: str) -> Worker:
        """A worker with a model of its own over the given data."""


def check_settings(threads: int, device: str) -> None:
    """Raise ValueError for settings of a backend that cannot be met here."""
    if threads < 1:
        raise ValueError(f"backend.threads={threads}: must be at least 1")
    _check_device("backend.device", device)


def _check_device(key: str, device: str) -> None:
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise ValueError(f"{key}={device}: must be cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"{key}={device}: torch finds no CUDA device here")


def prepare(model: Any, *, threads: int, device: str) -> BoundModel:
    """Set this process's threads, move a LightningModule to its device and bind it to a vector.

    Args:
        model: the LightningModule.
        threads: intra-op threads; the bits of a run depend on them.
        device: "cpu", "cuda", "cuda:1", ...
    """
    if threads < 1:
        raise ValueError(f"threads={threads}: must be at least 1")
    _check_device("device", device)
    torch.set_num_threads(threads)
    _keep_freed_memory()
    return BoundModel(model.to(device))


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)


def _keep_freed_memory() -> None:
    """Let glibc keep large blocks that are freed, up to 2 GiB: the same activations are asked for batch after batch.

    Memory that is mapped anew each time has to be zeroed page by page, two fifths of a CNN's evaluation. Whoever has
    tuned glibc through the environment is left alone, and so are other C libraries.
    """
    tuned = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not tuned else None
    if mallopt is not None:
        if not mallopt(_M_MMAP_THRESHOLD, 2**31 - 1):
            mallopt(_M_MMAP_THRESHOLD, 2**25)  # the most that older versions take
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
