"""Rounds with a deadline, or that end with the first updates.

Over-selection and deadlines: Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019, arXiv
1902.01046. Partial work of stragglers: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in
Heterogeneous Networks", MLSys 2020, arXiv 1812.06127.
"""

from bisect import bisect_left
from dataclasses import replace
from typing import Literal

import numpy as np

from flrl.devices import Dispatch
from flrl.scheduling.base import Part, Plan, Planning, Schedule, for_those, missing, together
from flrl.setup import Setup
from flrl.types import Broadcast


class Deadline(Schedule):
    """A round ends at a deadline, or with the first so many updates, whichever comes first.

    When an update arrives is predicted from what clients have sent in the round before.

    Args:
        deadline_s: seconds after the dispatch; null sets no deadline.
        first: the round ends with so many updates, of a cohort that is larger: over-selection; null waits for all.
        stragglers: "drop": who is late has trained in vain; "partial": who would be late takes as many steps as the
            deadline allows, and is dropped if that is none.

    Raises:
        ValueError: a setting is out of range, or there is neither deadline nor number.
    """

    def __init__(
        self,
        *,
        deadline_s: float | None = None,
        first: int | None = None,
        stragglers: Literal["drop", "partial"] = "drop",
    ) -> None:
        if deadline_s is None and first is None:
            raise ValueError("strategy.schedule: deadline_s=null and first=null: at least one must be given")
        if deadline_s is not None and not deadline_s > 0:
            raise ValueError(f"strategy.schedule.deadline_s={deadline_s}: must be positive, or null")
        if first is not None and first < 1:
            raise ValueError(f"strategy.schedule.first={first}: must be at least 1, or null")
        if stragglers not in ("drop", "partial"):
            raise ValueError(f"strategy.schedule.stragglers={stragglers!r}: must be 'drop' or 'partial'")
        if stragglers == "partial" and deadline_s is None:
            raise ValueError("strategy.schedule: stragglers=partial needs deadline_s")
        self.deadline_s, self.first, self.stragglers = deadline_s, first, stragglers

    def check(self, setup: Setup) -> None:
        """Refuse more first updates than clients take part, and partial work where there are no steps."""
        super().check(setup)
        if self.stragglers == "partial" and not setup.strategy.passes:
            name = type(setup.strategy).__name__
            raise ValueError(
                f"strategy.schedule.stragglers=partial: clients of {name} take no steps; drop goes with it"
            )
        most = setup.sampler.largest(setup.num_clients)
        if self.first is not None and self.first > most:
            raise ValueError(f"strategy.schedule.first={self.first}: only {most} clients take part in a round")

    def largest(self, cohort: int, num_clients: int) -> int:
        """Those of the cohort whose updates the server waits for."""
        return cohort if self.first is None else min(cohort, self.first)

    def plan(self, planning: Planning) -> Plan:
        """Those of the cohort whose updates arrive in time."""
        broadcast, tasks = planning.drawn()
        plan = together(planning, broadcast, tasks)
        if not tasks or plan.dispatch is None:
            return plan
        kept = plan.dispatch.only(~plan.dispatch.luck.dropped)
        seconds, own = planning.seconds(kept), list(plan.tasks)
        limit = np.inf if self.deadline_s is None else self.deadline_s
        if self.stragglers == "partial":
            for place in np.flatnonzero(seconds > limit):
                steps = _steps_in_time(planning, broadcast, kept.only(np.array([place])), limit)
                if steps:
                    own[place] = replace(own[place], steps=steps)
                    seconds[place] = limit
        order = np.lexsort((kept.clients, seconds))
        in_time = [int(place) for place in order if seconds[place] <= limit][: self.first]
        late = sorted(set(range(len(own))) - set(in_time))
        chosen = [own[place] for place in sorted(in_time)]
        waited = [seconds[in_time[-1]]] if in_time else []
        complete = len(in_time) == (self.first or -1)
        if not complete:  # the server waits for those that are lost, and for those that are late until the deadline
            lost = planning.seconds(plan.dispatch.only(plan.dispatch.luck.dropped))
            waited += [min(float(value), limit) for value in lost] + [limit] * bool(late)
        sent = for_those(broadcast, chosen)
        return replace(
            plan,
            whole=sent,
            parts=[Part(sent, chosen)],
            absent=[*plan.absent, *(missing(own[place], "late") for place in late)],
            ends_s=planning.now + max(waited),
            dispatch=None,
            numbers={
                **plan.numbers,
                "devices/late": float(len(late)),
                "devices/partial": float(sum(task.steps is not None for task in chosen)),
            },
        )


def _steps_in_time(planning: Planning, broadcast: Broadcast, late: Dispatch, limit: float) -> int:
    """The most steps with which one client that is late with all of them is in time; 0 if it is with none."""
    sizes, work = planning.sizes[late.clients], planning.devices.work
    speed = planning.devices.table(planning.sizes).samples_per_s[late.clients]

    def is_late(steps: int) -> bool:
        samples = planning.samples(replace(work, steps=steps), sizes, broadcast.variables)
        return bool(planning.seconds(replace(late, compute_s=samples / speed * late.luck.slowdown))[0] > limit)

    return bisect_left(range(1, int(work.num_steps(sizes)[0])), True, key=is_late)
