"""When the server steps, and on whose updates: what a schedule is given, and the plan of a round that it makes.

A schedule holds settings. What is under way between two rounds is in the server's state, as variables named
`schedule/...`, so that a plan is a function of the state and a resumed run goes on in flight.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flrl.devices import Dispatch, Fleet, Work
from flrl.layout import ParameterLayout
from flrl.setup import Setup
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState, Tensors

if TYPE_CHECKING:
    from flrl.adversaries import Threat
    from flrl.encryption import KeyHolder
    from flrl.strategies import Strategy

NOW = "clock/now"
"""The name among a state's variables of the virtual time in seconds, float64 `[]`."""
UP_BYTES = "clock/up_bytes"
"""That of the mean number of bytes that a client has sent in the last round, float64 `[]`."""
MORE_DOWN_BYTES = "clock/more_down_bytes"
"""That of the mean number of bytes that a client was sent besides the broadcast, where there were some; likewise."""
UNDER_WAY = "schedule/"
"""What the names of a schedule's own variables begin with."""


@dataclass(frozen=True, slots=True)
class Planning:
    """What a schedule plans a round from.

    Attributes:
        strategy: the algorithm.
        threat: what a malicious server sends instead.
        state: the server's state before the round.
        sizes: training samples of every client, int64 `[num_clients]`.
        seed: seed of the cohorts.
        layout: the model's layout.
        fleet: the clients' devices; None if there is no virtual clock.
        public: public keys that clients are sent with the model, by name.
    """

    strategy: "Strategy"
    threat: "Threat"
    state: ServerState
    sizes: np.ndarray
    seed: int
    layout: ParameterLayout
    fleet: Fleet | None = None
    public: Tensors = field(default_factory=dict)

    @property
    def round(self) -> int:
        """The round that is planned, counted from 1."""
        return self.state.round + 1

    @property
    def now(self) -> float:
        """The virtual time in seconds when the round begins."""
        return float(self.state.variables.get(NOW, 0.0))

    @property
    def devices(self) -> Fleet:
        """The clients' devices, for schedules that need them."""
        assert self.fleet is not None, "checked before the first round"
        return self.fleet

    @property
    def up_bytes(self) -> float:
        """What a client is expected to send: the mean of the last round; before the first, that without transforms."""
        known = self.state.variables.get(UP_BYTES)
        if known is not None:
            return float(known)
        return float(sum(self.strategy.vector_sizes(self.layout).values()) * self.layout.dtype.itemsize)

    def seconds(self, dispatch: Dispatch) -> np.ndarray:
        """`Dispatch.seconds` as far as they are known before the round: bytes after the model are the last round's."""
        more = self.state.variables.get(MORE_DOWN_BYTES)
        return dispatch.seconds(self.up_bytes, 0.0 if more is None else float(more))

    def drawn(self, among: np.ndarray | None = None) -> tuple[Broadcast, list[ClientTask]]:
        """What the strategy sends in this round, and the tasks of a cohort that its sampler draws.

        Args:
            among: whom it may draw, bool `[num_clients]`, besides being available now; None: everybody.
        """
        available = None if self.fleet is None else self.fleet.available(self.now, len(self.sizes))
        if among is not None:
            available = among if available is None else available & among
        more: dict[str, Any] = {} if available is None else {"available": available}
        broadcast, tasks = self.strategy.plan(self.state, self.sizes, self.seed, self.layout, **more)
        broadcast = self.threat.sent(broadcast, self.layout)
        if not self.public:
            return broadcast, tasks
        nbytes = {name: tensor.nbytes for name, tensor in self.public.items()}
        variables = {**broadcast.variables, **self.public}
        return replace(broadcast, variables=variables, payload={**broadcast.payload, **nbytes}), tasks

    def dispatched(self, broadcast: Broadcast, tasks: Sequence[ClientTask]) -> Dispatch:
        """What the clients that the tasks are sent to take."""
        clients = [task.client_id for task in tasks]
        samples = self.samples(self.devices.work, self.sizes[np.asarray(clients, np.int64)], broadcast.variables)
        return self.devices.dispatch(broadcast.round, clients, self.sizes, sum(broadcast.payload.values()), samples)

    def samples(self, work: Work, sizes: np.ndarray, sent: Collection[str] | None) -> np.ndarray:
        """The samples that clients go through, float64 `[clients]`: `Strategy.client_samples`, checked.

        Raises:
            ValueError: a strategy of one's own returns something else.
        """
        found = np.asarray(self.strategy.client_samples(work, sizes, sent), np.float64)
        if found.shape != sizes.shape or not (np.isfinite(found) & (found >= 0)).all():
            name = type(self.strategy).__name__
            raise ValueError(
                f"strategy: {name}.client_samples must return a finite number, at least 0, for each of {len(sizes)} "
                f"clients, not {found}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Part:
    """The clients of a round that start from one model.

    Attributes:
        broadcast: what they were sent.
        tasks: theirs.
    """

    broadcast: Broadcast
    tasks: Sequence[ClientTask]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained for a round, and when the round ends.

    Attributes:
        whole: the round as aggregator, transforms and adversary see it, with its cohort: those that are trained.
        parts: the clients that are trained, by the model that they start from.
        absent: reports of clients that were sent the model and whose update the server does not get.
        down_bytes: bytes sent to clients for this round.
        began_s: virtual time when the round began; None if there is no clock.
        ends_s: when it ends; None: when the last of `dispatch` has sent its update, or is lost.
        dispatch: who is under way, where `ends_s` is None.
        up_bytes: what a client is expected to send whose update the server does not get.
        variables: the schedule's variables after the round, by name.
        numbers: to report.
        key_holders: who can decrypt what the round's clients send, by transform.
    """

    whole: Broadcast
    parts: Sequence[Part]
    absent: Sequence[ClientReport] = ()
    down_bytes: int = 0
    began_s: float | None = None
    ends_s: float | None = None
    dispatch: Dispatch | None = None
    up_bytes: float = 0.0
    variables: Tensors = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)
    key_holders: "Mapping[str, KeyHolder]" = field(default_factory=dict)

    @property
    def tasks(self) -> list[ClientTask]:
        """The tasks of all parts."""
        return [task for part in self.parts for task in part.tasks]

    def part_of(self, client: int) -> Part | None:
        """The part that a client is in; None if it is not trained."""
        return next((part for part in self.parts if client in (task.client_id for task in part.tasks)), None)

    def abandoned(self) -> "Plan":
        """The plan without training: too many clients are lost or late for the server to step."""
        absent = [*self.absent, *(missing(task, "too few others") for task in self.tasks)]
        return replace(self, whole=for_those(self.whole, []), parts=[], absent=absent)

    def clock(self, reports: Sequence[ClientReport], more_down_bytes: float = 0.0) -> dict[str, Tensor]:
        """The variables of the clock after the round.

        Args:
            reports: of its clients.
            more_down_bytes: that those which were trained were sent together, besides the broadcast.
        """
        if self.began_s is None:
            return {}
        ends, more = self.ends_s, more_down_bytes / max(1, len(self.tasks))
        if ends is None:
            ends = self.began_s
            if self.dispatch is not None and len(self.dispatch.clients):
                sent = {report.client_id: float(report.up_bytes) for report in reports}
                sent |= {report.client_id: self.up_bytes for report in self.absent}
                up = np.array([sent[int(client)] for client in self.dispatch.clients])
                trained = np.isin(self.dispatch.clients, [task.client_id for task in self.tasks])
                ends += float(self.dispatch.seconds(up, more * trained).max())
        found: dict[str, Tensor] = {NOW: torch.tensor(ends, dtype=torch.float64)}
        accepted = [report.up_bytes for report in reports if report.rejected is None]
        if accepted:
            found[UP_BYTES] = torch.tensor(math.fsum(accepted) / len(accepted), dtype=torch.float64)
        if more:
            found[MORE_DOWN_BYTES] = torch.tensor(more, dtype=torch.float64)
        return found


class Schedule(ABC):
    """Says who is dispatched when, and on whose updates the server steps."""

    needs_devices = True
    """Whether it makes no sense without a virtual clock."""

    overlaps = False
    """Whether updates of a round may start from models of different rounds."""

    def check(self, setup: Setup) -> None:
        """Raise ValueError for parts of a setup that it cannot be combined with; before any round."""
        if self.needs_devices and setup.devices is None:
            raise ValueError(f"strategy.schedule: {type(self).__name__} needs a clock: choose devices=equal or another")

    def largest(self, cohort: int, num_clients: int) -> int:
        """The largest number of updates that the server steps on, of a sampler whose largest cohort is given."""
        return cohort

    @abstractmethod
    def plan(self, planning: Planning) -> Plan:
        """The plan of the next round: a function of the state and the seeds alone."""

    def adjusted(self, vectors: Tensors, plan: Plan, accepted: Sequence[ClientReport], state: ServerState) -> Tensors:
        """The aggregate as the strategy gets it.

        Args:
            vectors: of the aggregate, float64 by name; zeros if no update was accepted.
            plan: the round's.
            accepted: reports of the clients whose updates are in it.
            state: the server's state before the round.
        """
        return vectors


def together(planning: Planning, broadcast: Broadcast, tasks: Sequence[ClientTask]) -> Plan:
    """The plan of a round in which all clients start from one model and the server waits for all."""
    down_bytes = sum(broadcast.payload.values()) * len(tasks)
    if planning.fleet is None:
        return Plan(broadcast, [Part(broadcast, tasks)], down_bytes=down_bytes)
    dispatch = planning.dispatched(broadcast, tasks)
    kept = [task for task, dropped in zip(tasks, dispatch.luck.dropped, strict=True) if not dropped]
    lost = [task for task, dropped in zip(tasks, dispatch.luck.dropped, strict=True) if dropped]
    ends = planning.devices.next_change(planning.now) if not tasks else None
    return Plan(
        whole=for_those(broadcast, kept),
        parts=[Part(for_those(broadcast, kept), kept)],
        absent=[missing(task, "dropped out") for task in lost],
        down_bytes=down_bytes,
        began_s=planning.now,
        ends_s=ends,
        dispatch=dispatch,
        up_bytes=planning.up_bytes,
        numbers={"devices/dropped": float(len(lost))},
    )


def for_those(broadcast: Broadcast, tasks: Sequence[ClientTask]) -> Broadcast:
    """The broadcast with those clients as its cohort."""
    cohort = tuple(sorted(task.client_id for task in tasks))
    if cohort == tuple(broadcast.cohort):
        return broadcast
    return replace(broadcast, cohort=cohort, total_weight=float(sum(task.weight for task in tasks)))


def missing(task: ClientTask, why: str) -> ClientReport:
    """The report of a client that was sent the model and whose update the server does not get."""
    return ClientReport(task.client_id, task.num_samples, 0, {}, 0, rejected=why)


def is_under_way(name: str) -> bool:
    """Whether a name among a state's variables is a schedule's own: none is kept but those of the next plan."""
    return name.startswith(UNDER_WAY)
