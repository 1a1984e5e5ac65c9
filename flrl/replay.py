"""Recomputes rounds of a run from its folder: the models between them, what clients were sent, what they sent back."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flrl.aggregation import Mean, stats_of
from flrl.backends.base import Backend
from flrl.callbacks.base import Callback, Callbacks
from flrl.data import Source
from flrl.errors import ClientError, FlrlError
from flrl.evaluate_run import check_partition
from flrl.evaluation import Evaluator
from flrl.layout import ParameterLayout, checksum_of, digest
from flrl.recipe import Recipe
from flrl.recorded import Comparison, SavedRun
from flrl.rounds import initial_state, planned
from flrl.runs.checkpoint import list_checkpoints, load_checkpoint, round_of
from flrl.runs.rows import METRICS
from flrl.scheduling import Plan
from flrl.seeding import clients_in_turn
from flrl.transforms.apply import on_server
from flrl.types import Broadcast, ClientTask, ClientUpdate, RoundRecord, ServerState, Tensors
from flrl.watched import Asked, WatchedThreat, watched_data
from flrl.worker import Worker, client_batches


@dataclass(frozen=True, slots=True)
class Exchange:
    """What went over the wire in a round between the server and one client, or between it and the whole cohort.

    Attributes:
        broadcast: what was sent to every client.
        tasks: of the client, or of all clients of the cohort.
        vectors: what was sent back after all transforms, float64 on the CPU by name; of a cohort, its exact weighted
            mean.
    """

    broadcast: Broadcast
    tasks: Sequence[ClientTask]
    vectors: Tensors


@dataclass(slots=True)
class Replay:
    """A run whose rounds are recomputed on a backend. Nothing in the run's folder is changed.

    Attributes:
        run: the run's folder.
        recipe: of the run's objects.
        worker: the controller's own worker.
        backend: where clients train.
        comparison: compares all that is recomputed with what the run has recorded.
        scratch: a folder for files that are not needed afterwards.
    """

    run: SavedRun
    recipe: Recipe
    worker: Worker
    backend: Backend
    comparison: Comparison
    scratch: Path
    _last: ServerState | None = None
    _trained_on: dict[tuple[int, int], tuple[Source, np.ndarray]] = field(default_factory=dict)

    @property
    def layout(self) -> ParameterLayout:
        """The layout of the run's vectors."""
        return self.worker.model.layout

    def start(self, first: int) -> ServerState:
        """The state of the last checkpoint before the round `first`, or the initial state.

        Raises:
            ValueError: the checkpoint is not what the run has recorded.
        """
        store = self.recipe.client_store()
        store.open(Path(tempfile.mkdtemp(dir=self.scratch)), take_in=False)
        before = [path for path in list_checkpoints(self.run.folder) if round_of(path) < first]
        if not before:
            vector = _initial(self.recipe, self.layout)
            state = initial_state(self.worker.strategy, vector, self.layout, self.worker.seed)
            state = replace(state, memory=store.memory())
        else:
            identity = {"model": self.layout.fingerprint, "seed": self.worker.seed}
            state = load_checkpoint(before[-1], identity, store)
            if digest(state.vector) != self.run.recorded.digests.get(state.round):
                metrics = self.run.folder / METRICS
                raise ValueError(f"{before[-1]} is not the state after round {state.round} that {metrics} names")
        return self.backend.keep(state, self.run.folder)

    def advance(self, state: ServerState, last: int) -> ServerState:
        """Recompute and compare the rounds after a state up to `last`, or up to the first that differs."""
        if state.round >= last:
            return state
        kept = _Models(self.scratch)
        state, _ = self.worker.strategy.fit(
            state,
            backend=self.backend,
            layout=self.layout,
            seed=self.worker.seed,
            sampling_seed=self.recipe.seeds.sampling,
            callbacks=Callbacks([self.comparison, kept, _Stop(self.comparison, last)]),
            threat=self.worker.threat,
            fleet=self.worker.fleet,
        )
        return state

    def before(self, round: int) -> ServerState:
        """The state before a round: from the nearest state before it that is known.

        Raises:
            FlrlError: a round that was passed has another digest than the run's.
        """
        known = [round_of(path) for path in list_checkpoints(self.run.folder) if round_of(path) < round]
        state = self._last
        if state is None or not max(known, default=0) <= state.round < round:
            state = self.start(round)
        self._last = self.advance(state, round - 1)
        self._require_equal()
        return self._last

    def model_before(self, round: int) -> Tensor:
        """The global model before a round, `[layout.size]`; 1 is the initial one."""
        path = self.scratch / f"model-{round - 1}.pt"
        vector: Tensor = torch.load(path) if path.exists() else self.before(round).vector
        return vector.detach().cpu().clone()

    # What is on the wire.

    def sent(self, state: ServerState) -> Plan:
        """The plan of the round after a state: what its clients were sent, and their tasks."""
        worker, sizes, seed = self.worker, self.backend.sizes, self.recipe.seeds.sampling
        return planned(worker.strategy, worker.threat, state, sizes, seed, self.layout, worker.fleet)

    def batch_of(self, plan: Plan, client: int) -> tuple[Broadcast, list[ClientTask]]:
        """What a client was sent, and the client batch that it is trained in: the last bits may depend on the others.

        Raises:
            ValueError: the client takes no part in the round.
        """
        part = plan.part_of(client)
        for batch in client_batches(self.worker.batched(part.tasks)) if part else []:
            if part and client in (task.client_id for task in batch):
                return part.broadcast, batch
        cohort = ", ".join(str(task.client_id) for task in plan.tasks) or "empty"
        round = f"round {plan.whole.round}"
        raise ValueError(f"client={client}: takes no part in {round}; its cohort is {cohort}")

    def cohort(self, round: int) -> list[int]:
        """Ids of the clients that take part in a round."""
        return [task.client_id for task in self.sent(self.before(round)).tasks]

    def exchange(self, round: int, client: int) -> Exchange:
        """What a client was sent in a round and what it sent back, compared with the run's checksum; trained here.

        Raises:
            ValueError: the client takes no part in the round, or sent nothing.
            FlrlError: the recomputed update, or a round before, is not what the run has recorded.
        """
        broadcast, batch = self.batch_of(self.sent(self.before(round)), client)
        for task, update in self._updates(round, broadcast, batch):
            if task.client_id == client:
                return Exchange(broadcast, [task], _on_cpu(update.vectors))
        raise AssertionError

    def whole_exchange(self, round: int) -> Exchange:
        """What a whole cohort was sent in a round, and the exact weighted mean of what it sent back.

        Of transforms that hide single updates, the server's part is applied to the mean, which undoes it.

        Raises:
            ValueError: the cohort is empty, sent nothing that could be used, or started from models of several rounds.
            FlrlError: a recomputed update, or a round before, is not what the run has recorded.
        """
        state = self.before(round)
        plan = self.sent(state)
        if len(plan.parts) > 1:
            raise ValueError(f"round {round}: its clients started from models of several rounds; observe one of them")
        broadcast, tasks = plan.whole, plan.tasks
        if plan.parts:
            broadcast = plan.parts[0].broadcast
        strategy, device = self.worker.strategy, self.worker.model.local.device
        sizes = strategy.vector_sizes(self.layout)
        reducer = Mean().reducer(sizes, total_weight=broadcast.total_weight, device=device)
        accepted = []
        for batch in client_batches(self.worker.batched(tasks)):
            for task, update in self._updates(round, broadcast, batch, whole=True):
                stats = stats_of(update)
                if reducer.rejection(update, stats) is None:
                    reducer.add(update, stats)
                    accepted.append(task)
        if not accepted:
            raise ValueError(f"round {round}: no client of the cohort has sent anything")
        hiding = {name: part for name, part in strategy.transforms.items() if part.hides_updates}
        vectors, *_ = on_server(hiding, reducer.result()[0], state.variables, broadcast, self.layout, self.worker.seed)
        return Exchange(broadcast, accepted, _on_cpu(vectors))

    def trained_on(self, round: int, client: int) -> tuple[Source, np.ndarray]:
        """The truth: a source, and indices of the samples that a client used in a round, in order, each once.

        A malicious client's source has what it has made of its samples. Known once the client's `exchange` of that
        round, or the whole cohort's, has been recomputed.
        """
        return self._trained_on[round, client]

    def _updates(
        self, round: int, broadcast: Broadcast, batch: Sequence[ClientTask], *, whole: bool = False
    ) -> Iterator[tuple[ClientTask, ClientUpdate]]:
        """The clients' updates, compared with the run's checksums; of a `whole` cohort, those that were sent."""
        asked: Asked = []
        threat, data = WatchedThreat.like(self.worker.threat), watched_data(self.worker.data, asked)
        worker = replace(self.worker, data=data, threat=threat)
        with clients_in_turn(worker.model.local.device):
            updates = worker.updates(batch, worker.on_device(broadcast))
        for task, update in zip(batch, updates, strict=True):
            if isinstance(update, ClientError):
                if whole:
                    continue
                raise ValueError(f"client={task.client_id}: sent nothing in round {round}: {update}") from update
            self.comparison.client(round, task.client_id, checksum_of(stats_of(update).values()))
            self._require_equal()
            own = set(self.worker.data.train_indices(task.client_id, task.round).tolist())
            used = [index for part in asked for index in part.tolist() if index in own]
            source = self.worker.data.splits.train
            if task.client_id in threat.poisoned:
                source, parts = threat.poisoned[task.client_id]
                used = [index for part in parts for index in part.tolist()]
            self._trained_on[round, task.client_id] = source, np.array([*dict.fromkeys(used)], np.int64)
            yield task, update

    def _require_equal(self) -> None:
        if self.comparison.differences:
            raise FlrlError("; ".join(" ".join(line.split()) for line in self.comparison.differences))


@contextmanager
def replaying(run: SavedRun, backend: Backend) -> Iterator[Replay]:
    """A replay of a run inside the block.

    Args:
        run: the run.
        backend: where clients train; `Replay.exchange` and `Replay.whole_exchange` train in this process.

    Raises:
        ValueError: the partition is not what the configuration gives today, or parts cannot be combined.
    """
    recipe = Recipe(run.config)
    data = backend.share(recipe.data())
    check_partition(run.folder, data)
    worker = recipe.worker(data, threads=backend.threads, device=backend.device)
    worker = replace(worker, evaluator=_Never())
    comparison = Comparison(run.recorded, worker.model.layout)
    with tempfile.TemporaryDirectory(prefix="flrl-replay-") as scratch:
        try:
            backend.start(worker, recipe)
            yield Replay(run, recipe, worker, backend, comparison, Path(scratch))
        finally:
            backend.close()


class _Never(Evaluator):
    """Evaluates nothing: what is recomputed are models, not metrics."""

    def due(self, round: int, rounds: int) -> tuple[bool, bool]:
        return False, False


class _Stop(Callback):
    def __init__(self, comparison: Comparison, last: int) -> None:
        self._comparison, self._last = comparison, last

    def should_stop(self, history: Sequence[RoundRecord]) -> str | None:
        done = bool(history) and history[-1].round >= self._last
        return "compared" if done or self._comparison.differences else None


class _Models(Callback):
    """Writes the model after each round into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_round_end(self, state: ServerState, history: Sequence[RoundRecord]) -> None:
        torch.save(state.vector.detach().cpu(), self._folder / f"model-{state.round}.pt")


def _initial(recipe: Recipe, layout: ParameterLayout) -> Tensor:
    return layout.flatten(recipe.module())


def _on_cpu(vectors: Tensors) -> dict[str, Tensor]:
    return {name: vector.detach().cpu().double() for name, vector in vectors.items()}
