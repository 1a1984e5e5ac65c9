"""Tiers of devices: the clients of a round are of about the same speed, so that few wait for many.

Chai et al., "TiFL: A Tier-based Federated Learning System", HPDC 2020, arXiv 2001.09249; the variant with fixed
probabilities.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from flrl.scheduling.base import Plan, Planning, Schedule, together
from flrl.seeding import SERVER, generator_for
from flrl.setup import Setup


class Tiered(Schedule):
    """Each round has a cohort from one tier of clients, drawn by seed; otherwise rounds are synchronous.

    Clients are ordered by the seconds that they take without bad luck and divided into tiers of equal size.

    Args:
        tiers: their number.
        probabilities: of the tiers, fastest first; null: equal ones.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(self, *, tiers: int = 5, probabilities: Sequence[float] | None = None) -> None:
        if tiers < 1:
            raise ValueError(f"strategy.schedule.tiers={tiers}: must be at least 1")
        given = np.full(tiers, 1.0) if probabilities is None else np.asarray(probabilities, np.float64)
        if given.shape != (tiers,) or not (given >= 0).all() or not given.sum() > 0:
            raise ValueError(f"strategy.schedule.probabilities={probabilities}: must be {tiers} numbers, at least 0")
        self.tiers, self.probabilities = tiers, given / given.sum()

    def check(self, setup: Setup) -> None:
        """Refuse more tiers than clients."""
        super().check(setup)
        if self.tiers > setup.num_clients:
            raise ValueError(f"strategy.schedule.tiers={self.tiers}: there are only {setup.num_clients} clients")

    def largest(self, cohort: int, num_clients: int) -> int:
        """The cohort, or a tier where that is smaller."""
        return min(cohort, -(-num_clients // self.tiers))

    def plan(self, planning: Planning) -> Plan:
        """The cohort of the round, from one tier."""
        tier = int(
            generator_for(planning.seed, planning.round, SERVER, "tier").choice(self.tiers, p=self.probabilities)
        )
        own = self.of_clients(planning) == tier
        plan = together(planning, *planning.drawn(own))
        numbers = {**plan.numbers, "schedule/tier": float(tier)}
        return replace(plan, numbers=numbers)

    def of_clients(self, planning: Planning) -> np.ndarray:
        """The tier of every client, 0 the fastest, int64 `[num_clients]`."""
        samples = planning.samples(planning.devices.work, planning.sizes, None)
        order = planning.devices.fastest_first(planning.sizes, planning.layout.nbytes, samples)
        tiers = np.empty(len(order), np.int64)
        tiers[order] = np.arange(len(order)) * self.tiers // len(order)
        return tiers
