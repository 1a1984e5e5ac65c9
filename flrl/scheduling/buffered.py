"""Buffered asynchronous rounds, FedBuff: the server steps whenever so many updates have arrived.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation",
AISTATS 2022, arXiv 2106.06639. The sampler's cohort is what is under way; when the buffer is full the server steps, and
sends the new model to as many clients as have become idle. Where the buffer is as large as the cohort, that is
synchronous rounds. An update is trained when it is needed, so that what is under way is a list of times.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flrl.scheduling.base import UNDER_WAY, Part, Plan, Planning, Schedule, missing
from flrl.scheduling.staleness import Polynomial, Staleness
from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup
from flrl.types import Broadcast, ClientReport, ClientTask, ServerState, Tensors


class Buffered(Schedule):
    """The server steps on the first `buffer` updates that arrive, whatever model they started from.

    An update's weight is the client's times `staleness`; the sum is divided by the weights without it, as in the paper.

    Args:
        buffer: updates that the server steps on, K in the paper, at most the sampler's cohort, which is under way.
        staleness: weight of an update by its age in steps of the server; FedBuff's `1 / sqrt(1 + tau)` by default.

    Raises:
        ValueError: `buffer` is below 1.
    """

    overlaps = True

    def __init__(self, *, buffer: int, staleness: Staleness | None = None) -> None:
        if buffer < 1:
            raise ValueError(f"strategy.schedule.buffer={buffer}: must be at least 1")
        self.buffer = buffer
        self.staleness = Polynomial() if staleness is None else staleness

    def check(self, setup: Setup) -> None:
        """Refuse what needs all clients of a round to start from the same model.

        Raises:
            ValueError: the strategy or a transform does, or fewer clients are under way than the buffer holds.
        """
        super().check(setup)
        name = type(self).__name__
        most = setup.sampler.largest(setup.num_clients)
        if self.buffer > most:
            raise ValueError(
                f"strategy.schedule.buffer={self.buffer}: only {most} clients are under way (strategy.sampler)"
            )
        if setup.strategy.needs_rounds:
            raise ValueError(
                f"strategy.schedule: clients of {type(setup.strategy).__name__} need what the server has for a whole "
                f"round, and {name} has no such rounds: strategy/schedule=synchronous, deadline or tiered"
            )
        for key, transform in setup.transforms.items():
            if transform.hides_updates:
                raise ValueError(f"strategy.transforms.{key}: needs all clients of a round to send at once, not {name}")

    def largest(self, cohort: int, num_clients: int) -> int:
        """The buffer."""
        return min(cohort, self.buffer)

    def plan(self, planning: Planning) -> Plan:
        """Dispatch clients to those that are idle, and take the updates that arrive first."""
        before = _Flights.of(planning.state)
        flights, sent, new = self._dispatched(planning, before)
        order = sorted(range(len(flights)), key=lambda i: (flights.arrivals[i], flights.rounds[i], flights.clients[i]))
        taken, full = [], 0
        for place in order:
            if full == self.buffer:
                break
            taken.append(place)
            full += not flights.dropped[place]
        ends = flights.arrivals[taken[-1]] if taken else planning.devices.next_change(planning.now)
        arrived, lost = (
            flights.only([i for i in taken if not flights.dropped[i]]),
            flights.only([i for i in taken if flights.dropped[i]]),
        )
        left = flights.only([i for i in range(len(flights)) if i not in set(taken)])
        tasks = {client: self._task(planning, round, client) for client, round in arrived.pairs}
        cohort = tuple(sorted(tasks))
        weight = float(sum(tasks[client].weight for client in cohort))
        whole = Broadcast(planning.round, planning.state.vector, weight, cohort=cohort)
        parts: list[Part] = []
        for round in sorted(set(arrived.rounds)):
            own = [tasks[client] for client in cohort if (client, round) in set(arrived.pairs)]
            parts.append(
                Part(
                    replace(
                        sent[round], total_weight=weight, cohort=cohort, later=planning.round - round, first=not parts
                    ),
                    own,
                )
            )
        ages = [planning.round - round for round in arrived.rounds]
        numbers = {
            "devices/dropped": float(len(lost)),
            "schedule/in_flight": float(len(left)),
            "schedule/staleness_mean": math.fsum(ages) / len(ages) if ages else 0.0,
            "schedule/staleness_max": float(max(ages, default=0)),
        }
        return Plan(
            whole=whole,
            parts=parts,
            absent=[missing(self._task(planning, round, client), "dropped out") for client, round in lost.pairs],
            down_bytes=sum(sent[planning.round].payload.values()) * new,
            began_s=planning.now,
            ends_s=float(ends),
            variables=left.variables(sent),
            numbers=numbers,
        )

    def _dispatched(self, planning: Planning, before: "_Flights") -> "tuple[_Flights, dict[int, Broadcast], int]":
        """Who is under way after the dispatch of this round, what each round's clients were sent, how many are new."""
        idle = np.ones(len(planning.sizes), bool)
        idle[before.clients] = False
        broadcast, tasks = planning.drawn(idle if len(before) else None)
        free = planning.strategy.sampler.largest(len(planning.sizes)) - len(before)
        if len(tasks) > free:
            rng = generator_for(planning.seed, planning.round, SERVER, "refill")
            tasks = [tasks[place] for place in np.sort(rng.choice(len(tasks), free, replace=False))]
        dispatch = planning.dispatched(broadcast, tasks)
        arrivals = planning.now + planning.seconds(dispatch)
        flights = _Flights(
            clients=[*before.clients, *dispatch.clients.tolist()],
            rounds=[*before.rounds, *[planning.round] * len(tasks)],
            arrivals=[*before.arrivals, *arrivals.tolist()],
            dropped=[*before.dropped, *dispatch.luck.dropped.tolist()],
        )
        return flights, {**_sent(planning.state), planning.round: broadcast}, len(tasks)

    def _task(self, planning: Planning, round: int, client: int) -> ClientTask:
        task = planning.strategy.task(planning.state, round, client, int(planning.sizes[client]))
        return replace(task, weight=task.weight * self.staleness(planning.round - round))

    def adjusted(self, vectors: Tensors, plan: Plan, accepted: Sequence[ClientReport], state: ServerState) -> Tensors:
        """The update times the share of its weight that staleness has left: the mean is by weights without it."""
        used = {report.client_id for report in accepted}
        ages = {task.client_id: plan.whole.round - task.round for task in plan.tasks if task.client_id in used}
        weights = {task.client_id: task.weight for task in plan.tasks if task.client_id in used}
        if not any(ages.values()):
            return vectors
        whole = math.fsum(weight / self.staleness(ages[client]) for client, weight in weights.items())
        return {**vectors, "update": vectors["update"] * (math.fsum(weights.values()) / whole)}


@dataclass(frozen=True, slots=True)
class _Flights:
    """The clients that are under way, in the order of their dispatch.

    Attributes:
        clients: their ids.
        rounds: the round whose model each was sent.
        arrivals: virtual time when the server has each one's update, or has lost it.
        dropped: whether it drops out.
    """

    clients: Sequence[int]
    rounds: Sequence[int]
    arrivals: Sequence[float]
    dropped: Sequence[bool]

    def __len__(self) -> int:
        return len(self.clients)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Client and round of each."""
        return list(zip(self.clients, self.rounds, strict=True))

    def only(self, places: Sequence[int]) -> "_Flights":
        """Those alone."""
        return _Flights(
            clients=[self.clients[place] for place in places],
            rounds=[self.rounds[place] for place in places],
            arrivals=[self.arrivals[place] for place in places],
            dropped=[self.dropped[place] for place in places],
        )

    @classmethod
    def of(cls, state: ServerState) -> "_Flights":
        """Those that the state names."""
        if f"{UNDER_WAY}clients" not in state.variables:
            return cls((), (), (), ())
        names = ("clients", "rounds", "arrivals", "dropped")
        return cls(*(state.variables[f"{UNDER_WAY}{name}"].tolist() for name in names))

    def variables(self, sent: Mapping[int, Broadcast]) -> dict[str, Tensor]:
        """Them, and what they were sent, as variables of a state."""
        found = {
            "clients": torch.tensor(self.clients, dtype=torch.int64),
            "rounds": torch.tensor(self.rounds, dtype=torch.int64),
            "arrivals": torch.tensor(self.arrivals, dtype=torch.float64),
            "dropped": torch.tensor(self.dropped, dtype=torch.bool),
        }
        for round in sorted(set(self.rounds)):
            found[f"vector/{round}"] = sent[round].vector
            found |= {f"sent/{round}/{name}": tensor for name, tensor in sent[round].variables.items()}
        return {f"{UNDER_WAY}{name}": tensor for name, tensor in found.items()}


def _sent(state: ServerState) -> dict[int, Broadcast]:
    """What the clients that are under way were sent, by round."""
    found: dict[int, Broadcast] = {}
    for round in set(_Flights.of(state).rounds):
        prefix = f"{UNDER_WAY}sent/{round}/"
        variables = {n.removeprefix(prefix): t for n, t in state.variables.items() if n.startswith(prefix)}
        found[round] = Broadcast(round, state.variables[f"{UNDER_WAY}vector/{round}"], 0.0, variables)
    return found
