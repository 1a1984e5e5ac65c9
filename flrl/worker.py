"""The worker of every backend: trains clients, reduces their updates, evaluates."""

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from flrl.aggregation import Reducer, stats_of
from flrl.aggregation.base import check_sizes
from flrl.bound_model import BoundModel
from flrl.cli.tracebacks import place_in, raised_by_flrl
from flrl.data import FederatedData
from flrl.errors import ClientError
from flrl.evaluation import Evaluator, summarize_clients
from flrl.layout import checksum_of
from flrl.lightning.logs import Logged, joined
from flrl.seeding import SERVER, clients_in_turn, seed_for
from flrl.snapshot import Snapshot, refuse_changes
from flrl.strategies import Strategy
from flrl.strategies.running import train_clients
from flrl.trainers import LocalProblem, Trainer
from flrl.trainers.measuring import measure
from flrl.trainers.problem import PERSONAL
from flrl.transforms.apply import on_client
from flrl.types import Broadcast, ClientReport, ClientTask, ClientUpdate, ServerState, Tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EvaluationShare:
    """What is to be evaluated: indices of batches of the central test set; clients, on their held-out samples."""

    batches: range
    clients: Sequence[int]


@dataclass(frozen=True, slots=True)
class EvaluationPart:
    """The results of an `EvaluationShare`: the module's logs on its test batches, each client's metrics by id."""

    central: Logged | None
    clients: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Worker:
    """One model, and all that is needed to train any client with it. Keeps no state from one client to the next.

    Attributes:
        model: reused for every client.
        data: the clients' samples.
        trainer: trains one client, or a client batch at once.
        strategy: the algorithm that clients and server follow.
        evaluator: evaluates, and decides after which rounds.
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
    ) -> tuple[Reducer, list[ClientReport]]:
        """Train the given clients, one client batch after the other, and add their updates to a reducer.

        `on_start` is called with the first task of each batch before it is trained, `on_report` with each client's
        report afterwards. Returns the reducer, and the reports in the order of training.

        Raises:
            ClientError: a client's training raised, and failures are not dropped.
            ValueError: the strategy has changed itself.
        """
        broadcast = self.on_device(broadcast)
        reducer = self.reducer(broadcast)
        reports = []
        before = Snapshot(self.strategy, "strategy")
        with clients_in_turn(self.model.local.device):
            for batch in client_batches(tasks):
                on_start(batch[0])
                updates = self.updates(batch, broadcast)
                refuse_changes(self.strategy, before, f"while client {batch[0].client_id} trains")
                for task, update in zip(batch, updates, strict=True):
                    reports.append(_add(task, update, reducer))
                    on_report(reports[-1])
        return reducer, reports

    def reducer(self, broadcast: Broadcast) -> Reducer:
        """An empty reducer for a round's updates, on the model's device."""
        sizes = self.strategy.vector_sizes(self.model.layout)
        device = self.model.local.device
        return self.strategy.aggregator.reducer(sizes, total_weight=broadcast.total_weight, device=device)

    def rehearse(self, broadcast: Broadcast, tasks: Sequence[ClientTask]) -> None:
        """Train the first client batch of a round on one batch of samples each and drop the updates, to fail early.

        Args:
            broadcast: what the server sends to the clients of the next round.
            tasks: the round's tasks.

        Raises:
            ValueError: a trainer or a strategy refuses the module, or the strategy has changed itself.
            ClientError: the module's own code raised.
        """
        if not tasks:
            return
        batch = client_batches(self.batched(tasks))[0]
        before = Snapshot(self.strategy, "strategy")
        with clients_in_turn(self.model.local.device):
            try:
                for update in self.updates(batch, self.on_device(broadcast), most=self.trainer.batch_size):
                    if isinstance(update, ClientUpdate):
                        check_sizes(update, self.strategy.vector_sizes(self.model.layout))
            except ClientError as error:
                if isinstance(error.__cause__, ValueError | TypeError) and raised_by_flrl(error.__cause__):
                    raise error.__cause__ from None
                raise
            finally:
                self.model.load(broadcast.vector)
        refuse_changes(self.strategy, before, "while a client trains")

    def batched(self, tasks: Sequence[ClientTask]) -> list[ClientTask]:
        """The tasks in their order, each with the index of its client batch; the largest clients form the first batch.

        Which clients form a batch may change the last bits, so it must not depend on the number of workers. Tasks that
        have an index already stay as they are.
        """
        width = self.trainer.clients_at_once(self.model, len(tasks))
        if width == 1 or any(task.batch is not None for task in tasks):
            return list(tasks)
        order = sorted(range(len(tasks)), key=lambda index: (-tasks[index].num_samples, index))
        batches = {index: place // width for place, index in enumerate(order)}
        return [replace(task, batch=batches[index]) for index, task in enumerate(tasks)]

    def on_device(self, broadcast: Broadcast) -> Broadcast:
        """The broadcast with its tensors on the model's device."""
        device = self.model.local.device
        variables = {name: tensor.to(device) for name, tensor in broadcast.variables.items()}
        return replace(broadcast, vector=broadcast.vector.to(device), variables=variables)

    def updates(
        self, batch: Sequence[ClientTask], broadcast: Broadcast, most: int | None = None
    ) -> list[ClientUpdate | ClientError]:
        """The updates of a client batch after transforms, trained on at most the first `most` samples of each client.

        If a batch of several clients fails, each is trained alone, to find the client that fails.
        """
        try:
            return list(self._trained(batch, broadcast, most))
        except Exception as error:
            failure = self._failure(batch, broadcast, error)
            if len(batch) == 1 and not self.drop_failures:
                raise failure from error
            cause = error
        if len(batch) == 1:
            log.warning("%s (%s); its update is left out", failure, place_in(failure.traceback))
            return [failure]
        alone = [update for task in batch for update in self.updates([task], broadcast, most)]
        if not self.drop_failures:
            raise failure from cause
        return alone

    def _trained(self, batch: Sequence[ClientTask], broadcast: Broadcast, most: int | None) -> list[ClientUpdate]:
        source, indices = self.data.splits.train, self.data.train_indices
        problems = [
            LocalProblem.of(self.model, source, indices(task.client_id)[:most], task, broadcast, self.seed)
            for task in batch
        ]
        updates = train_clients(self.strategy, problems, self.trainer)
        transforms = self.strategy.transforms
        if not transforms:
            return updates
        layout, seed = self.model.layout, self.seed
        return [
            on_client(transforms, update, p.task.memory, broadcast, layout, seed, measure(transforms, p, self.trainer))
            for p, update in zip(problems, updates, strict=True)
        ]

    def _failure(self, batch: Sequence[ClientTask], broadcast: Broadcast, error: Exception) -> ClientError:
        clients = ", ".join(str(task.client_id) for task in batch)
        return ClientError(
            f"client {clients}, round {broadcast.round}: {type(error).__name__}: {error}{self._hint(error)}",
            client_id=batch[0].client_id if len(batch) == 1 else None,
            traceback=traceback.format_exc(),
        )

    def _hint(self, error: Exception) -> str:
        if "Expected more than 1 value per channel" in str(error):  # torch's BatchNorm
            size = self.trainer.batch_size
            return f"; its last batch has one sample: choose another trainer.batch_size than {size}, or GroupNorm"
        return ""

    # Evaluation.

    def evaluate(self, state: ServerState, *, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round of a run of `rounds` rounds; may be empty."""
        share = self.due(state.round, rounds)
        if share is None:
            return {}
        return self.combine([self.evaluate_share(state.vector, state.round, share, self.personal(state, share))])

    def due(self, round: int, rounds: int) -> EvaluationShare | None:
        """All that is to be evaluated after a round; None if nothing is."""
        central, clients = self.evaluator.due(round, rounds)
        batches = range(self.evaluator.num_batches(self.data) if central else 0)
        held = self.data.holding_out().tolist() if clients else []
        return EvaluationShare(batches, held) if central or clients else None

    def personal(self, state: ServerState, share: EvaluationShare) -> dict[int, Tensors]:
        """The personal parts of a share's clients, from their memory, by client id; empty for a model without any."""
        if not self.model.layout.personal:
            return {}
        known = ((client_id, state.memory.get(client_id, {})) for client_id in share.clients)
        return {client_id: {PERSONAL: memory[PERSONAL]} for client_id, memory in known if PERSONAL in memory}

    @property
    def divisible(self) -> bool:
        """Whether several workers can evaluate parts of the central test set."""
        return self.evaluator.divisible(self.model.module)  # type: ignore[arg-type]

    def evaluate_share(
        self, vector: Tensor, round: int, share: EvaluationShare, personal: Mapping[int, Tensors]
    ) -> EvaluationPart:
        """Evaluate a share of what is due after a round.

        Args:
            vector: the global model, `[layout.size]`.
            round: the round, which seeds the evaluation.
            share: test batches and clients.
            personal: what `Worker.personal` returned for the share.
        """
        self.model.load(vector)
        seed = seed_for(self.seed, round, SERVER, "evaluation")
        test = self.data.splits.test
        central = None
        if len(share.batches):
            indices = np.arange(len(test))
            central = self.evaluator.part(self.model, test, indices, share.batches, seed=seed, reuse=True)
        clients = {}
        for client_id in share.clients:
            own = personal.get(client_id, {}).get(PERSONAL)
            self.model.load(self.model.local_vector(vector.to(self.model.local.device), own))
            clients[client_id] = self.evaluator.client(self.model, self.data, client_id, seed=seed)
        return EvaluationPart(central, clients)

    def combine(self, parts: Sequence[EvaluationPart]) -> dict[str, float]:
        """The metrics of a round from the parts of its evaluation, which may come in any order."""
        metrics = joined([part.central for part in parts if part.central is not None], self.model.module)
        clients = {client_id: row for part in parts for client_id, row in part.clients.items()}
        return metrics | summarize_clients([dict(clients[client_id]) for client_id in sorted(clients)])


def client_batches(tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
    """The tasks grouped by their client batch, in the order of the batches' first tasks."""
    batches: dict[tuple[str, int], list[ClientTask]] = {}
    for index, task in enumerate(tasks):
        key = ("alone", index) if task.batch is None else ("batch", task.batch)
        batches.setdefault(key, []).append(task)
    return list(batches.values())


def _add(task: ClientTask, update: ClientUpdate | ClientError, reducer: Reducer) -> ClientReport:
    """Add an update to the reducer unless it is rejected; returns the client's report."""
    if isinstance(update, ClientError):
        return ClientReport(task.client_id, task.num_samples, 0, {}, 0, rejected=str(update))
    stats = stats_of(update)
    rejected = reducer.rejection(update, stats)
    if rejected is None:
        reducer.add(update, stats)
    return ClientReport(
        client_id=task.client_id,
        num_samples=task.num_samples,
        num_steps=update.num_steps,
        metrics=update.metrics,
        up_bytes=sum(update.payload.values()),
        rejected=rejected,
        checksum=checksum_of(stats.values()),
        memory=None if rejected is not None else _changed(task, update),
    )


def _changed(task: ClientTask, update: ClientUpdate) -> Tensors | None:
    """The new memory of an accepted client; None where it had none and has none."""
    return update.memory if update.memory or task.memory else None
