"""The controller of every backend with several workers: assigns clients, collects results, reports failures.

A `Hub` carries messages and tensors to and from the workers, which run the loop in `worker_loop.py`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from flrl.aggregation import Reducer
from flrl.backends.base import Received, WorkerRecipe
from flrl.backends.pool.encoded import decoded_into
from flrl.backends.pool.home import MemoryElsewhere
from flrl.backends.pool.job import LOOK_EVERY_S, Hub, Job
from flrl.backends.pool.messages import VECTOR, Evaluate, Restore, Train, by_name, of_broadcast, prefixed
from flrl.backends.pool.schedule import at_random, contiguous, longest_first
from flrl.backends.pool.shared_memory import SharedObject
from flrl.backends.pool.watch import watching
from flrl.backends.pool.worker_warnings import WarningLog, own_warnings
from flrl.clients import ClientIndex
from flrl.data import FederatedData
from flrl.examiner import EvaluationShare
from flrl.portable import check, check_trainer
from flrl.process_setup import check_settings
from flrl.root_update import root_update, server_update
from flrl.seeding import SERVER, generator_for
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState, Tensors
from flrl.worker import Worker, client_batches

log = logging.getLogger(__name__)


class PoolBackend(ABC):
    """A backend whose clients train in several processes.

    Args:
        threads: intra-op threads of torch in each process. Another number gives other bits.
        device: where the models train; the workers of "cuda" are spread over the devices there are.
        portable: limit libraries to the instructions that all x86-64 processors have, for the same bits on all of them.
        timeout_s: longest time in seconds that a worker may take for one client, or for its part of an evaluation;
            null sets no limit.
        schedule: which worker trains which client: "longest_first" assigns the clients with most samples first, each to
            the worker with the least work; "random" shows that no result depends on it.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(
        self,
        *,
        threads: int = 1,
        device: str = "cpu",
        portable: bool = False,
        timeout_s: float | None = None,
        schedule: Literal["longest_first", "random"] = "longest_first",
    ) -> None:
        check_settings(threads, device)
        check(portable, device=device)
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"backend.timeout_s={timeout_s}: must be positive, or null")
        if schedule not in ("longest_first", "random"):
            raise ValueError(f"backend.schedule={schedule!r}: must be 'longest_first' or 'random'")
        self.threads = threads
        self.device = device
        self.portable = portable
        self.timeout_s = timeout_s
        self.schedule = schedule
        self.shared: SharedObject | None = None
        self._worker: Worker
        self._hub: Hub | None = None
        self._job: Job | None = None
        self._folder: Path | None = None
        self._latest: dict[int, ClientIndex] = {}
        self._warned = False
        self._warning_log = WarningLog(own_warnings())

    # What a backend implements or may override.

    @property
    @abstractmethod
    def workers_here(self) -> Sequence[int]:
        """The number of the controller's own worker if it trains clients too, else empty."""

    @abstractmethod
    def share(self, data: FederatedData) -> FederatedData:
        """The data as the controller holds it, in shared memory for instance; called once, before `start`."""

    @abstractmethod
    def connect(self, worker: Worker, recipe: WorkerRecipe, folder: Path | None) -> Hub:
        """Start making the workers, without waiting for them; returns the lines to them."""

    def assign(self, tasks: Sequence[ClientTask], round: int) -> dict[int, list[ClientTask]]:
        """The tasks that each worker gets, by worker; the tasks of one client batch stay together."""
        batches = client_batches(tasks)
        sizes = [sum(task.num_samples for task in batch) for batch in batches]
        if self.schedule == "random":
            rng = generator_for(self._worker.seed, round, SERVER, "schedule")
            jobs = at_random(sizes, len(self._all), rng)
        else:
            jobs = longest_first(sizes, len(self._all))
        return {w: [task for i in own for task in batches[i]] for w, own in zip(self._all, jobs, strict=True)}

    def divide(self, due: EvaluationShare) -> dict[int, EvaluationShare]:
        """The share of an evaluation that each worker gets, by worker."""
        jobs = longest_first([self._worker.data.holdout_size(client) for client in due.clients], len(self._all))
        batches, *probes = [self._divided(batches) for batches in (due.batches, *due.probes)]
        clients = [[due.clients[index] for index in own] for own in jobs]
        parts = [tuple(probe[place] for probe in probes) for place in range(len(jobs))]
        found = zip(self._all, batches, clients, parts, strict=True)
        return {worker: EvaluationShare(own, those, probed) for worker, own, those, probed in found}

    def _divided(self, batches: range) -> list[range]:
        """The batches of one set of samples that each worker evaluates."""
        if self._worker.examiner.divisible:
            return contiguous(len(batches), len(self._all))
        return [batches] + [range(0)] * (len(self._all) - 1)

    @property
    def owners(self) -> Mapping[int, Sequence[int]] | None:
        """The clients whose samples and memory stay with each worker; None: any worker trains any client."""
        return None

    # The interface `Backend`.

    @property
    def sizes(self) -> np.ndarray:
        """Number of training samples of every client, int64 `[num_clients]`."""
        return self._worker.data.sizes

    def start(self, worker: Worker, recipe: WorkerRecipe, *, folder: Path | None = None) -> None:
        """Make the workers, and wait until all are ready.

        Args:
            worker: the controller's own worker.
            recipe: makes the other workers.
            folder: the run's folder, where workers write their logs; None writes none.

        Raises:
            ValueError: the trainer cannot be portable, and the backend has to be.
            WorkerError: a worker could not be made.
        """
        check_trainer(self.portable, worker.trainer)
        self._worker, self._folder = worker, folder
        self._hub = self.connect(worker, recipe, folder)
        self._new_job("start", timeout_s=None).finish()  # imports take their time

    @property
    def holds_samples(self) -> bool:
        """Whether the controller's process has training samples."""
        return True

    def keep(self, state: ServerState, folder: Path) -> ServerState:
        """Leave client memory here, to be sent with the tasks; or move it to the workers that own the clients.

        Raises:
            WorkerError: a worker could not restore the memory of its clients.
        """
        if self.owners is None:
            return state
        self._latest = {}
        if len(state.memory):
            index = state.memory.save()
            parts = {worker: index.only(clients) for worker, clients in self.owners.items()}
            job = self._new_job("start", self.timeout_s)
            messages = {worker: Restore(state.round, folder, part.described()) for worker, part in parts.items()}
            job.dispatch(messages, {}, {worker: part.tensors() for worker, part in parts.items()})
            job.finish()
            self._latest |= parts
        return replace(state, memory=MemoryElsewhere(self._folder, self._latest))

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
    ) -> Received:
        """Train the cohort and reduce its updates.

        Raises:
            ClientError: a client's training raised.
            WorkerError: a worker has ended, or has not answered for `timeout_s`.
        """
        batched = self._worker.batched(tasks)
        self._warn_of_idle_workers(len(client_batches(batched)), len(tasks))
        assignment = self.assign(batched, broadcast.step)
        job = self._new_job(f"round {broadcast.step}", self.timeout_s, on_report)
        self._send_tasks(job, broadcast, assignment)
        own = [self._train_here(job, worker, broadcast, assignment[worker]) for worker in self.workers_here]
        reducer = own[0] if own else self._worker.reducer(broadcast)
        job.finish()
        self._latest |= job.indexes
        parcels = decoded_into(reducer, job.parcels, self._worker)
        sum_here = reducer.merge(parcels) if parcels else None
        if sum_here is not None:
            self._hub_now.reduce(sum_here)
        return Received(reducer, tuple(job.reports[task.client_id] for task in tasks))

    def root_update(self, broadcast: Broadcast) -> Tensors:
        """The update of the server's root samples: see `flrl.root_update`."""
        return root_update(self._worker, broadcast)

    def server_update(self, state: ServerState) -> ServerState:
        """The state after what the server trains itself: see `flrl.root_update`."""
        return server_update(self._worker, state)

    def evaluate(self, state: ServerState, *, rounds: int) -> dict[str, float]:
        """The metrics that are due after a round.

        Raises:
            WorkerError: a worker's evaluation raised, or it has ended, or has not answered for `timeout_s`.
        """
        examiner = self._worker.examiner
        due = examiner.due(state.round, rounds)
        if due is None:
            return {}
        shares = self.divide(due)
        job = self._new_job(f"evaluation after round {state.round}", self.timeout_s)
        messages = {index: Evaluate(state.round, shares[index]) for index in self._hub_now.others}
        memory = {index: by_name(examiner.memory(state, shares[index])) for index in messages}
        sent = examiner.variables(state, due)
        job.dispatch(messages, {VECTOR: state.vector, **prefixed("variables", sent)}, memory)
        for own in set(shares) - set(messages):
            with watching(job.look, every_s=LOOK_EVERY_S):
                kept = examiner.memory(state, shares[own])
                job.parts.append(examiner.evaluate_share(state.vector, state.round, shares[own], kept, sent))
        job.finish()
        return examiner.combine(job.parts)

    def _train_here(self, job: Job, own: int, broadcast: Broadcast, tasks: Sequence[ClientTask]) -> Reducer:
        def on_report(report: ClientReport) -> None:
            job.reported_here(own, report)

        def on_start(task: ClientTask) -> None:
            job.started(own, task)
            self._hub_now.trains(task)

        with watching(job.look, every_s=LOOK_EVERY_S):
            reducer, reports = self._worker.train(broadcast, tasks, on_report, on_start)
        self._hub_now.trains(None)
        job.clients.pop(own, None)
        job.reports |= {report.client_id: report for report in reports}
        return reducer

    def _warn_of_idle_workers(self, batches: int, clients: int) -> None:
        workers = len(self._all)
        if batches < min(workers, clients) and not self._warned:
            self._warned = True
            width = max(1, clients // workers)
            log.warning(
                "%d workers have nothing to train: %d clients in %d batches; with trainer.width=%d all of them would",
                workers - batches,
                clients,
                batches,
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
        self._job = Job(self._hub_now, what, timeout_s, on_report, self._warning_log)
        return self._job

    def _send_tasks(self, job: Job, broadcast: Broadcast, assignment: Mapping[int, Sequence[ClientTask]]) -> None:
        messages, memory = {}, {}
        for index in self._hub_now.others:
            tasks = tuple(replace(task, memory={}) for task in assignment[index])
            messages[index] = Train(
                broadcast.round, broadcast.total_weight, tasks, broadcast.cohort, broadcast.later, broadcast.first
            )
            # Where clients' memory is at home, this is what the strategy has added to a task.
            memory[index] = by_name({task.client_id: task.memory for task in assignment[index]})
        job.dispatch(messages, of_broadcast(broadcast), memory)
