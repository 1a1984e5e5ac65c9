"""The worker of every backend: trains clients and reduces their updates."""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from flrl.adversaries.threat import Threat
from flrl.aggregation import Reducer, stats_of
from flrl.aggregation.base import check_sizes
from flrl.bound_model import BoundModel
from flrl.cli.tracebacks import place_in, raised_by_flrl
from flrl.data import FederatedData
from flrl.devices import Fleet
from flrl.errors import ClientError
from flrl.evaluation import Evaluator
from flrl.examiner import Examiner
from flrl.layout import checksum_of
from flrl.sampling import LOSS_BYTES, needs
from flrl.seeding import clients_in_turn
from flrl.snapshot import Outside, Snapshot, refuse_changes
from flrl.strategies import Strategy
from flrl.strategies.running import train_clients
from flrl.trainers import LocalProblem, Trainer
from flrl.trainers.measuring import measure
from flrl.trainers.sharing import outside_of
from flrl.transforms.apply import for_client, on_client, reducer_of, sizes_after
from flrl.types import Broadcast, ClientReport, ClientTask, ClientUpdate, Tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Worker:
    """One model, and all that is needed to train any client with it. Keeps no state from one client to the next.

    Attributes:
        model: the global model's; reused for every client, unless they have models of their own.
        data: the clients' samples.
        trainer: trains one client, or a client batch at once.
        strategy: the algorithm that clients and server follow.
        evaluator: evaluates, and decides after which rounds.
        seed: the run's seed.
        drop_failures: a client whose training raises is reported as rejected, instead of ending the run.
        threat: which clients are malicious, and what they do.
        kinds: the models of clients that have their own, one for each kind; empty where all have `model`.
        fleet: the clients' devices; None if there is no virtual clock.
    """

    model: BoundModel
    data: FederatedData
    trainer: Trainer
    strategy: Strategy
    evaluator: Evaluator
    seed: int
    drop_failures: bool = False
    threat: Threat = field(default_factory=Threat)
    kinds: Sequence[BoundModel] = ()
    fleet: Fleet | None = None

    def model_of(self, client_id: int) -> BoundModel:
        """The model that a client trains: of kind `client_id` modulo their number, where there are kinds."""
        return self.kinds[client_id % len(self.kinds)] if self.kinds else self.model

    def train(
        self,
        broadcast: Broadcast,
        tasks: Sequence[ClientTask],
        on_report: Callable[[ClientReport], None],
        on_start: Callable[[ClientTask], None] = lambda task: None,
        reducer: Reducer | None = None,
    ) -> tuple[Reducer, list[ClientReport]]:
        """Train the given clients, one client batch after the other, and add their updates to a reducer.

        `on_start` is called with the first task of each batch before it is trained, `on_report` with each client's
        report afterwards. Returns the reducer, the given one if any, and the reports in the order of training.

        Raises:
            ClientError: a client's training raised, and failures are not dropped.
            ValueError: the strategy or the adversary has changed itself, or own code what all clients share.
        """
        broadcast = self.on_device(broadcast)
        reducer = self.reducer(broadcast) if reducer is None else reducer
        reports = []
        malicious = self.threat.present(broadcast.round, [task.client_id for task in tasks])
        more = LOSS_BYTES if "losses" in needs(self.strategy.sampler) else 0
        before = self._parts()
        outside = self._outside(before)
        with clients_in_turn(self.model.local.device):
            for batch in client_batches(tasks):
                on_start(batch[0])
                outside.refresh()
                updates = self.updates(batch, broadcast)
                self._refuse_changes(before, outside, f"while client {batch[0].client_id} trains")
                for task, update in zip(batch, updates, strict=True):
                    present = task.client_id in malicious
                    reports.append(_add(task, update, reducer, more, malicious=present, hidden=self.hides_updates))
                    on_report(reports[-1])
        return reducer, reports

    def reducer(self, broadcast: Broadcast) -> Reducer:
        """An empty reducer for a round's updates, on the model's device."""
        device = self.model.local.device
        inner = self.strategy.aggregator.reducer(self._sizes, total_weight=broadcast.total_weight, device=device)
        return reducer_of(self.strategy.transforms, inner, broadcast, self.model.layout, self.seed)

    @property
    def hides_updates(self) -> bool:
        """Whether the server sees sums of updates alone."""
        return any(transform.hides_updates for transform in self.strategy.transforms.values())

    @property
    def _sizes(self) -> dict[str, int]:
        return sizes_after(self.strategy.transforms, self.strategy.vector_sizes(self.model.layout))

    def rehearse(self, broadcast: Broadcast, tasks: Sequence[ClientTask]) -> None:
        """Train the first client batch of a round on one batch of samples each and drop the updates, to fail early.

        Args:
            broadcast: what the server sends to the clients of the next round.
            tasks: the round's tasks.

        Raises:
            ValueError: a trainer or a strategy refuses the module, or strategy or adversary has changed itself.
            ClientError: the module's own code raised.
        """
        if not tasks:
            return
        batch = client_batches(self.batched(tasks))[0]
        before = self._parts()
        outside = self._outside(before)
        with clients_in_turn(self.model.local.device):
            try:
                self._rehearse(batch, broadcast)
                self._refuse_changes(before, outside, "while a client trains")
                if outside.refresh():  # what a client was the first to import or to keep is known only from here on
                    self._rehearse(batch, broadcast)
                    self._refuse_changes(before, outside, "while a client trains")
            except ClientError as error:
                if isinstance(error.__cause__, ValueError | TypeError) and raised_by_flrl(error.__cause__):
                    raise error.__cause__ from None
                raise
            finally:
                if self.strategy.sends_model:
                    self.model.load(broadcast.vector)

    def _rehearse(self, batch: Sequence[ClientTask], broadcast: Broadcast) -> None:
        for update in self.updates(batch, self.on_device(broadcast), most=self.trainer.batch_size):
            if isinstance(update, ClientUpdate):
                check_sizes(update, self._sizes)

    def batched(self, tasks: Sequence[ClientTask]) -> list[ClientTask]:
        """The tasks in their order, each with the index of its client batch; the largest clients form the first batch.

        Which clients form a batch may change the last bits, so it must not depend on the number of workers. Tasks that
        have an index already stay as they are.
        """
        largest = max(self.kinds or [self.model], key=lambda model: model.layout.local_size)
        width = self.trainer.clients_at_once(largest, len(tasks))
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

    def _parts(self) -> list[tuple[object, Snapshot]]:
        """The parts that must not change while clients train, as they are now."""
        parts: dict[str, object] = {"strategy": self.strategy}
        if self.threat.clients:
            parts["adversary"] = self.threat.adversary
        return [(part, Snapshot(part, name)) for name, part in parts.items()]

    def _outside(self, before: Sequence[tuple[object, Snapshot]]) -> Outside:
        return outside_of(self.kinds or [self.model], self.trainer, [snapshot for _, snapshot in before])

    def _refuse_changes(self, before: Sequence[tuple[object, Snapshot]], outside: Outside, when: str) -> None:
        for part, snapshot in before:
            refuse_changes(part, snapshot, when)
        outside.refuse(when)

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
        problems = [self._problem(task, broadcast, most) for task in batch]
        transforms, found = self.strategy.transforms, []
        for problem, update in zip(problems, train_clients(self.strategy, problems, self.trainer), strict=True):
            memory, layout = problem.task.memory, problem.model.layout
            sent = self.threat.on_client(update, memory, broadcast, layout)
            measured = measure(transforms, problem, self.trainer)
            found.append(on_client(transforms, sent, memory, broadcast, layout, self.seed, measured))
        return found

    def _problem(self, task: ClientTask, broadcast: Broadcast, most: int | None) -> LocalProblem:
        model = self.model_of(task.client_id)
        source, indices = self.threat.samples(self.data, task, broadcast, model.layout, most)
        public = self.data.splits.public
        got = for_client(self.strategy.transforms, broadcast, task.client_id, model.layout, self.seed)
        return LocalProblem.of(model, source, indices, task, got, self.seed, public)

    def _failure(self, batch: Sequence[ClientTask], broadcast: Broadcast, error: Exception) -> ClientError:
        clients = ", ".join(str(task.client_id) for task in batch)
        return ClientError(
            f"client {clients}, round {broadcast.round}: {type(error).__name__}: {error}{self._hint(error, batch)}",
            client_id=batch[0].client_id if len(batch) == 1 else None,
            traceback=traceback.format_exc(),
        )

    def _hint(self, error: Exception, batch: Sequence[ClientTask]) -> str:
        if "Expected more than 1 value per channel" in str(error):  # torch's BatchNorm
            if any(task.num_samples == 1 for task in batch):
                return "; it has one sample: raise partition.min_samples or lower partition.num_clients, or GroupNorm"
            size = self.trainer.batch_size
            return f"; its last batch has one sample: choose another trainer.batch_size than {size}, or GroupNorm"
        return ""

    @property
    def examiner(self) -> Examiner:
        """Evaluates with this worker's model."""
        return Examiner(
            self.model,
            self.data,
            self.evaluator,
            self.seed,
            self.strategy,
            self.trainer,
            self.threat.probes,
            self.kinds,
        )


def client_batches(tasks: Sequence[ClientTask]) -> list[list[ClientTask]]:
    """The tasks grouped by their client batch, in the order of the batches' first tasks."""
    batches: dict[tuple[str, int], list[ClientTask]] = {}
    for index, task in enumerate(tasks):
        key = ("alone", index) if task.batch is None else ("batch", task.batch)
        batches.setdefault(key, []).append(task)
    return list(batches.values())


def _add(
    task: ClientTask, update: ClientUpdate | ClientError, reducer: Reducer, more: int, *, malicious: bool, hidden: bool
) -> ClientReport:
    """Add an update, sent with `more` bytes, to the reducer unless it is rejected; returns the client's report.

    The report has norm and checksum of the update, unless that is `hidden` from the server.
    """
    if isinstance(update, ClientError):
        return ClientReport(task.client_id, task.num_samples, 0, {}, 0, rejected=str(update), malicious=malicious)
    stats = stats_of(update)
    rejected = update.dropped or reducer.rejection(update, stats)
    if rejected is None:
        reducer.add(update, stats)
    measured = rejected is None and not hidden and update.vectors["update"].numel() > 0
    norms = {"update/norm": stats["update"].norm} if measured else {}
    return ClientReport(
        client_id=task.client_id,
        num_samples=task.num_samples,
        num_steps=update.num_steps,
        metrics={**update.metrics, **norms},
        up_bytes=sum(update.payload.values()) + more,
        rejected=rejected,
        checksum="" if hidden else checksum_of(stats.values()),
        memory=None if rejected is not None else _changed(task, update),
        malicious=malicious,
        weight=update.weight,
    )


def _changed(task: ClientTask, update: ClientUpdate) -> Tensors | None:
    """The new memory of an accepted client; None where it had none and has none."""
    return update.memory if update.memory or task.memory else None
