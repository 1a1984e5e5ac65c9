"""The round loop: sample, broadcast, train, aggregate, evaluate, record."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flrl.adversaries import Threat
from flrl.adversaries.threat import kept_variables
from flrl.aggregation import Combined, merged
from flrl.aggregation.state import combine, named, own_variables
from flrl.callbacks.base import Callbacks
from flrl.devices import Fleet
from flrl.errors import TooFewUpdatesError
from flrl.layout import ParameterLayout, digest
from flrl.records import adversary_numbers, evaluation_record, round_record
from flrl.sampling import estimated, expected, noted
from flrl.scheduling import NOW, Plan, Planning, is_under_way
from flrl.seeding import SERVER, isolated_randomness, seed_for
from flrl.snapshot import Snapshot, refuse_changes
from flrl.transforms.apply import (
    as_seen,
    bounded,
    key_holders,
    on_server,
    sizes_after,
    unseen,
    without_negative_variances,
)
from flrl.transforms.encrypted_sum import opened
from flrl.types import Aggregate, ClientReport, RoundRecord, ServerState

if TYPE_CHECKING:
    from flrl.aggregation import Reducer
    from flrl.backends.base import Backend
    from flrl.strategies import Strategy


@dataclass(frozen=True, slots=True)
class Rounds:
    """The round loop of a run.

    Attributes:
        strategy: the algorithm.
        backend: where clients train.
        layout: the model's layout.
        callbacks: called in every round; one of them may stop the run.
        seed: the run's seed.
        sampling_seed: seed of the cohorts.
        threat: which clients are malicious, and what they do.
        fleet: the clients' devices; None if there is no virtual clock.
    """

    strategy: "Strategy"
    backend: "Backend"
    layout: ParameterLayout
    callbacks: Callbacks
    seed: int
    sampling_seed: int
    threat: Threat = field(default_factory=Threat)
    fleet: Fleet | None = None

    def run(self, state: ServerState, history: Sequence[RoundRecord]) -> tuple[ServerState, list[RoundRecord]]:
        """Run the rounds that are left, and return the last state and a record of every round.

        Raises:
            TooFewUpdatesError: a round had fewer accepted updates than `min_clients`, or than the rule needs.
            ClientError: a client's training raised.
            WorkerError: a worker has ended, or does not answer.
            ValueError: the strategy has changed itself.
        """
        strategy, callbacks, history = self.strategy, self.callbacks, list(history)
        try:
            callbacks.on_fit_start(state, history)
            if state.round == 0 and not history:
                metrics = self.backend.evaluate(state, rounds=strategy.rounds)
                if metrics and self.fleet is not None:
                    metrics["time/virtual_s"] = 0.0
                if metrics:
                    history.append(evaluation_record(metrics, digest(state.vector)))
                    callbacks.on_round_end(state, history)
            weight_of_all = strategy.weight_of_all(self.backend.sizes)
            before = Snapshot(strategy, "strategy")
            while state.round < strategy.rounds and not callbacks.should_stop(history):
                # Drop the reports of all but the newest record, so that memory does not grow with the rounds.
                history[-1:] = [replace(record, reports=()) for record in history[-1:]]
                state, record = self._round(state, weight_of_all)
                refuse_changes(strategy, before, f"in round {state.round}")
                history.append(record)
                callbacks.on_round_end(state, history)
        except BaseException as error:
            callbacks.on_exception(state, history, error)
            raise
        callbacks.on_fit_end(state, history)
        return state, history

    def _round(self, state: ServerState, weight_of_all: float) -> tuple[ServerState, RoundRecord]:
        started = time.perf_counter()
        sizes = self.backend.sizes
        plan = planned(self.strategy, self.threat, state, sizes, self.sampling_seed, self.layout, self.fleet)
        if plan.tasks and self._too_few(plan):
            plan = plan.abandoned()
        self.callbacks.on_round_start(plan.whole.round, plan.whole.cohort)
        reducer, reports = self._received(plan)
        with isolated_randomness(seed_for(self.seed, plan.whole.round, SERVER, "server"), torch.device("cpu")):
            result, kept, numbers = self._aggregate(plan, reducer, reports, state)
            result = estimated(self.strategy.sampler, result, weight_of_all, self.layout.num_trainable)
            given = as_seen(self.strategy.transforms, result, self._expected, len(sizes))
            after = self.strategy.aggregate(unseen(state, self.strategy.transforms), given, self.layout)
        vector = without_negative_variances(self.strategy.transforms, after.vector.to(self.layout.dtype), self.layout)
        after = replace(after, vector=vector)
        if self.strategy.trains_on_server:
            after = self.backend.server_update(replace(after, round=plan.whole.round))
        memory = state.memory.updated({r.client_id: r.memory for r in result.reports if r.memory is not None})
        kept |= noted(self.strategy.sampler, state.variables, result.reports, len(sizes))
        kept |= plan.clock(result.reports, numbers["comm/down_bytes"] - plan.down_bytes)
        kept |= {**plan.variables, **plan.whole.kept}
        result = replace(result, reports=tuple(map(_forgotten, result.reports)))
        own = {name: tensor for name, tensor in after.variables.items() if not is_under_way(name)}
        after = replace(after, round=plan.whole.round, variables={**own, **kept}, memory=memory)
        trained = time.perf_counter()
        ends = after.round if self.callbacks.is_last(after.round) else self.strategy.rounds
        evaluated = self.backend.evaluate(after, rounds=ends)
        seconds = {"time/round_s": time.perf_counter() - started, "time/train_s": trained - started}
        if NOW in kept:
            seconds["time/virtual_s"] = float(kept[NOW])
        numbers |= {**plan.numbers, **self.callbacks.numbers(after.round)}
        record = round_record(after.round, evaluated | numbers | seconds, digest(after.vector), result)
        return after, record

    def _too_few(self, plan: Plan) -> bool:
        """Whether the server cannot step on a plan's updates, since devices, or chance, have made them too few."""
        number, left_out = len(plan.tasks), bool(plan.absent) or self.fleet is not None
        return (left_out and number < self.strategy.min_clients) or not self.strategy.aggregator.enough(number)

    @property
    def _expected(self) -> float:
        return expected(self.strategy.sampler, len(self.backend.sizes))

    def _received(self, plan: Plan) -> "tuple[Reducer | None, list[ClientReport]]":
        """The updates of a plan's clients, once they are trained, and the reports of all that were sent a model.

        There are no updates if nobody is trained: a sampler may draw nobody, and all that it draws may be lost.
        """
        received = [
            self.backend.train(part.broadcast, part.tasks, self.callbacks.on_client_end)
            for part in plan.parts
            if part.tasks
        ]
        reports = [*(report for each in received for report in each.reports), *plan.absent]
        if len(plan.parts) > 1 or plan.absent:
            reports.sort(key=lambda report: report.client_id)
        for report in plan.absent:
            self.callbacks.on_client_end(report)
        if received:
            self._check(reports, plan)
        return opened(merged([each.reducer for each in received]), plan.key_holders) if received else None, reports

    def _aggregate(
        self, plan: Plan, reducer: "Reducer | None", reports: Sequence[ClientReport], state: ServerState
    ) -> tuple[Aggregate, dict[str, Tensor], dict[str, float]]:
        """The aggregate of the updates, the next variables of aggregator and transforms, and numbers to report."""
        strategy, broadcast = self.strategy, plan.whole
        colluding = kept_variables(state.variables)
        if reducer is not None:
            colluding = self.threat.colluded(reducer, state.variables, broadcast, self.layout)
            rule = strategy.aggregator
            root = self.backend.root_update(broadcast) if rule.needs_root else None
            combined = combine(rule, reducer, state, broadcast, self.layout, self.seed, root)
        else:
            combined = Combined({}, 0.0, own_variables(state))
        if not combined.vectors:
            sizes = sizes_after(strategy.transforms, strategy.vector_sizes(self.layout))
            zeros = {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}
            combined = replace(combined, vectors=zeros)
        vectors, kept, numbers = on_server(
            strategy.transforms,
            combined.vectors,
            state.variables,
            broadcast,
            self.layout,
            self.seed,
            received=combined.total_weight,
            expected=self._expected,
        )
        if combined.filtered is not None:
            filtered = set(combined.filtered)
            reports = tuple(replace(report, filtered=report.client_id in filtered) for report in reports)
        accepted = [report for report in reports if report.rejected is None]
        vectors = strategy.schedule.adjusted(vectors, plan, accepted, state)
        kept = {**kept, **named(combined.state), **colluding}
        selects = combined.filtered is not None
        numbers = {
            **numbers,
            **combined.numbers,
            "comm/down_bytes": float(plan.down_bytes + combined.down_bytes),
            **adversary_numbers(reports, exists=self.threat.exists, selects=selects),
        }
        return Aggregate(vectors, combined.total_weight, tuple(reports)), kept, numbers

    def _check(self, reports: Sequence[ClientReport], plan: Plan) -> None:
        round = plan.whole.round
        accepted = [report for report in reports if report.rejected is None]
        reasons = [f"client {r.client_id}: {r.rejected}" for r in reports if r.rejected is not None]
        rejected = "; ".join(reasons[:5]) + (f"; and {len(reasons) - 5} more" if len(reasons) > 5 else "")
        if len(accepted) < self.strategy.min_clients and bounded(self.strategy.transforms) is None:
            least = f"strategy.min_clients={self.strategy.min_clients}"
            why = rejected or f"only {len(reports)} took part"
            raise TooFewUpdatesError(f"round {round}: {len(accepted)} usable updates, {least}; {why}")
        # Who sends what cannot be used is one malicious client less; who has failed may have been an honest one.
        sent = len(accepted) + sum(report.rejected is not None and report.up_bytes > 0 for report in reports)
        if not self.strategy.aggregator.enough(sent):
            rule = type(self.strategy.aggregator).__name__
            raise TooFewUpdatesError(f"round {round}: {sent} clients have sent updates, too few for {rule}; {rejected}")
        for name in self.strategy.transforms if accepted else ():
            if not any(f"transforms/{name}/clients" in report.metrics for report in accepted):
                raise RuntimeError(f"transform {name} was asked for but never ran")
        allowed = {task.client_id: task.steps for task in plan.tasks if task.steps is not None}
        for report in accepted:
            if report.num_steps > allowed.get(report.client_id, report.num_steps):
                raise ValueError(
                    f"strategy.schedule: client {report.client_id} took {report.num_steps} steps in round {round}, and "
                    f"{allowed[report.client_id]} were left until the deadline: {type(self.strategy).__name__} trains "
                    "as long as it likes; stragglers=drop goes with it"
                )


def planned(
    strategy: "Strategy",
    threat: Threat,
    state: ServerState,
    sizes: np.ndarray,
    sampling_seed: int,
    layout: ParameterLayout,
    fleet: Fleet | None = None,
) -> Plan:
    """Who is trained in the next round, and what they were sent: a schedule's plan, after a malicious server.

    Args:
        strategy: the algorithm, with its schedule.
        threat: the run's.
        state: the server's state before the round.
        sizes: training samples of every client, int64 `[num_clients]`.
        sampling_seed: seed of the cohorts.
        layout: the model's layout.
        fleet: the clients' devices; None if there is no virtual clock.
    """
    addends = strategy.schedule.largest(strategy.sampler.largest(len(sizes)), len(sizes))
    holders, public = key_holders(strategy.transforms, addends)
    planning = Planning(strategy, threat, state, sizes, sampling_seed, layout, fleet, public)
    return replace(strategy.schedule.plan(planning), key_holders=holders)


def initial_state(strategy: "Strategy", vector: Tensor, layout: ParameterLayout, seed: int) -> ServerState:
    """The state before the first round; what `initialize` draws follows from the seed.

    Args:
        strategy: the algorithm.
        vector: the initial model, shape `[layout.size]`.
        layout: of the model.
        seed: the run's.
    """
    with isolated_randomness(seed_for(seed, 0, SERVER, "initialize"), torch.device("cpu")):
        return strategy.initialize(vector, layout)


def _forgotten(report: ClientReport) -> ClientReport:
    """The report without client memory, which the state has from now on."""
    return report if report.memory is None else replace(report, memory=None)
