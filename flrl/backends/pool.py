"""The controller's half of every backend with several workers: who does what, what came back, what went wrong.

How messages and tensors get to the workers is a `Hub`'s business; the workers' half is in `serving.py`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from flrl.aggregation import WeightedMean
from flrl.backends.dealing import at_random, contiguous, longest_first
from flrl.backends.job import LOOK_EVERY_S, Hub, Job
from flrl.backends.messages import Evaluate, Train, by_name
from flrl.backends.portable import check, check_trainer
from flrl.backends.saying import Repeated, said_here
from flrl.backends.shared import SharedObject
from flrl.backends.watch import watching
from flrl.backends.worker import EvaluationShare, Worker, WorkerRecipe, check_settings, stacks_of
from flrl.data import FederatedData
from flrl.seeding import SERVER, generator_for
from flrl.types import Aggregate, Broadcast, ClientReport, ClientTask

log = logging.getLogger(__name__)


class PoolBackend(ABC):
    """A backend whose clients train in several processes.

    Args:
        threads: intra-op threads of torch in each process. Another number gives other bits.
        device: where the models train; the workers of "cuda" share out the devices there are.
        portable: hold libraries to what all x86-64 processors can do, for the same bits on all of them.
        timeout_s: longest time in seconds that a worker may take over one client, or over its part of an evaluation;
            null waits for ever.
        dealing: who trains whom: "longest_first" gives the clients with most samples first, each to the worker that
            has least to do; "random" is there to show that no result depends on it.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        device: str = "cpu",
        portable: bool = False,
        timeout_s: float | None = None,
        dealing: Literal["longest_first", "random"] = "longest_first",
    ) -> None:
        check_settings(threads, device)
        check(portable, device=device)
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"backend.timeout_s={timeout_s}: must be positive, or null")
        if dealing not in ("longest_first", "random"):
            raise ValueError(f"backend.dealing={dealing!r}: must be 'longest_first' or 'random'")
        self.threads = threads
        self.device = device
        self.portable = portable
        self.timeout_s = timeout_s
        self.dealing = dealing
        self.shared: SharedObject | None = None
        self._worker: Worker
        self._hub: Hub | None = None
        self._job: Job | None = None
        self._told = False
        self._say = Repeated(said_here())

    # What differs from backend to backend.

    @property
    @abstractmethod
    def workers_here(self) -> Sequence[int]:
        """The controller's own number as a worker that trains, alone, or nothing."""

    @abstractmethod
    def share(self, data: FederatedData) -> FederatedData:
        """The data as the controller is to hold it; called once, before `start`."""

    @abstractmethod
    def connect(self, worker: Worker, recipe: WorkerRecipe, folder: Path | None) -> Hub:
        """Begin to make the workers."""

    def deal(self, tasks: Sequence[ClientTask], round: int) -> dict[int, list[ClientTask]]:
        """Each worker's part of a cohort."""
        stacks = stacks_of(tasks)
        sizes = [sum(task.num_samples for task in stack) for stack in stacks]
        if self.dealing == "random":
            rng = generator_for(self._worker.seed, round, SERVER, "dealing")
            hands = at_random(sizes, len(self._all), rng)
        else:
            hands = longest_first(sizes, len(self._all))
        return {w: [task for i in hand for task in stacks[i]] for w, hand in zip(self._all, hands, strict=True)}

    def divide(self, due: EvaluationShare) -> dict[int, EvaluationShare]:
        """Each worker's part of an evaluation."""
        hands = longest_first([self._worker.data.holdout_size(client) for client in due.clients], len(self._all))
        batches = [due.batches] + [range(0)] * (len(self._all) - 1)
        if self._worker.divisible:
            batches = contiguous(len(due.batches), len(self._all))
        clients = [[due.clients[index] for index in hand] for hand in hands]
        return {w: EvaluationShare(b, c) for w, b, c in zip(self._all, batches, clients, strict=True)}

    # What a run and a strategy see.

    @property
    def sizes(self) -> np.ndarray:
        """Training samples of every client."""
        return self._worker.data.sizes

    def start(self, worker: Worker, recipe: WorkerRecipe, *, folder: Path | None = None) -> None:
        """Make the workers, and wait until all are ready.

        Args:
            worker: the controller's own.
            recipe: makes the others.
            folder: where they write their logs, if anywhere.

        Raises:
            WorkerError: one could not be made.
        """
        check_trainer(self.portable, worker.trainer)
        self._worker = worker
        self._hub = self.connect(worker, recipe, folder)
        self._new_job("start", timeout_s=None).finish()  # imports take their time

    def close(self) -> None:
        """End the workers."""
        hub, self._hub = self._hub, None
        if hub is not None:
            hub.close(busy=self._job is not None and bool(self._job.waiting))
        if self.shared is not None:
            self.shared.segment.close()
            self.shared = None

    def train(
        self, broadcast: Broadcast, tasks: Sequence[ClientTask], on_report: Callable[[ClientReport], None]
    ) -> Aggregate:
        """Train the cohort.

        Raises:
            ClientError: a client's training raised.
            WorkerError: a worker has ended, or has not answered for `timeout_s`.
        """
        stacked = self._worker.stacked(tasks)
        self._tell_of_idle_workers(len(stacks_of(stacked)), len(tasks))
        hands = self.deal(stacked, broadcast.round)
        job = self._new_job(f"round {broadcast.round}", self.timeout_s, on_report)
        self._send_tasks(job, broadcast, hands)
        sizes = self._worker.strategy.vector_sizes(self._worker.model.layout)
        folded = [self._train_here(job, own, broadcast, hands[own]) for own in self.workers_here]
        accumulator = folded[0] if folded else WeightedMean(sizes, total_weight=broadcast.total_weight)
        job.finish()
        accumulator.sum.expect(sum(bound for bound, _ in job.sums), sum(pending for _, pending in job.sums))
        accumulator.sum.parts = accumulator.sum.parts.cpu()
        self._hub_now.reduce(accumulator.sum.parts)
        means, total_weight = accumulator.result()
        return Aggregate(means, total_weight, tuple(job.reports[task.client_id] for task in tasks))

    def evaluate(self, vector: Tensor, *, round: int, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round."""
        due = self._worker.due(round, rounds)
        if due is None:
            return {}
        shares = self.divide(due)
        job = self._new_job(f"evaluation after round {round}", self.timeout_s)
        messages = {index: Evaluate(round, shares[index]) for index in self._hub_now.others}
        job.dispatch(messages, {"vector": vector}, {})
        for own in set(shares) - set(messages):
            with watching(job.look, every_s=LOOK_EVERY_S):
                job.parts.append(self._worker.evaluate_share(vector, round, shares[own]))
        job.finish()
        return self._worker.combine(job.parts)

    def _train_here(self, job: Job, own: int, broadcast: Broadcast, tasks: Sequence[ClientTask]) -> WeightedMean:
        def on_report(report: ClientReport) -> None:
            job.reported_here(own, report)

        def on_start(task: ClientTask) -> None:
            job.started(own, task)
            self._hub_now.trains(task)

        with watching(job.look, every_s=LOOK_EVERY_S):
            accumulator, reports = self._worker.train(broadcast, tasks, on_report, on_start)
        self._hub_now.trains(None)
        job.clients.pop(own, None)
        job.reports |= {report.client_id: report for report in reports}
        return accumulator

    def _tell_of_idle_workers(self, stacks: int, clients: int) -> None:
        workers = len(self._all)
        if stacks < min(workers, clients) and not self._told:
            self._told = True
            width = max(1, clients // workers)
            log.warning(
                "%d workers have nothing to train: %d clients in %d stacks; with trainer.width=%d all of them would",
                workers - stacks,
                clients,
                stacks,
                width,
            )

    @property
    def _hub_now(self) -> Hub:
        assert self._hub is not None, "the backend has not been started"
        return self._hub

    @property
    def _all(self) -> list[int]:
        return [*self.workers_here, *self._hub_now.others]

    def _new_job(
        self, what: str, timeout_s: float | None, on_report: Callable[[ClientReport], None] = lambda report: None
    ) -> Job:
        self._job = Job(self._hub_now, what, timeout_s, on_report, self._say)
        return self._job

    def _send_tasks(self, job: Job, broadcast: Broadcast, hands: Mapping[int, Sequence[ClientTask]]) -> None:
        messages, memory = {}, {}
        for index in self._hub_now.others:
            tasks = tuple(replace(task, memory={}) for task in hands[index])
            messages[index] = Train(broadcast.round, broadcast.total_weight, tasks)
            memory[index] = by_name({task.client_id: task.memory for task in hands[index]})
        job.dispatch(messages, {"vector": broadcast.vector, **broadcast.variables}, memory)
