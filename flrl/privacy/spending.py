"""The epsilon of what a run has released, cheap enough for every round."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flrl.privacy.accounting import ORDERS, beyond_distributions, calibrated, check_counted, epsilon
from flrl.privacy.mechanism import Charged, Mechanism
from flrl.privacy.renyi import renyi
from flrl.privacy.settings import Privacy

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from flrl.setup import Setup

_COARSE = 2e-3
_EVERY_ROUND = 16


@dataclass(frozen=True, slots=True)
class Spending:
    """Counts the epsilon of one mechanism.

    `exact` is that of `flrl.privacy.epsilon`. `shown` is an upper bound for the rows of a run, some milliseconds a
    round: privacy loss distributions are in steps of 2e-3 instead of 1e-4, which adds up to 0.1 % or so; and from the
    17th round on it is that of up to an eighth more rounds, so that it is computed anew for every eighth of them only.
    The last round's is exact.

    Attributes:
        key: where the mechanism is in the configuration.
        mechanism: the run's.
        setup: the parts of the run.
        privacy: its settings.
        cohort: the ids of the clients that take part in a round, as far as is known before it.
    """

    key: str
    mechanism: Mechanism
    setup: "Setup"
    privacy: Privacy
    cohort: Callable[[int], np.ndarray]
    _known: dict[tuple[str, bool], float] = field(default_factory=dict)
    _single: dict[str, Any] = field(default_factory=dict)

    def none(self) -> Charged:
        """Nothing has been released."""
        return Charged(0, np.zeros(self.setup.num_clients, np.int64))

    def after(self, charged: Charged, clients: np.ndarray | None) -> Charged:
        """What has been released with one more round, in which those clients took part."""
        participations = charged.participations
        if self.mechanism.by_client and clients is not None:
            participations = participations.copy()
            participations[clients] += 1
        return Charged(charged.releases + 1, participations)

    def planned(self, rounds: int) -> Charged:
        """What will have been released after so many rounds."""
        charged = self.none()
        if not self.mechanism.by_client:
            return Charged(rounds, charged.participations)
        for round in range(1, rounds + 1):
            charged = self.after(charged, self.cohort(round))
        return charged

    def exact(self, charged: Charged) -> float:
        """The epsilon of what has been released."""
        return max((self._epsilon(event, coarse=False) for event in self._events(charged)), default=0.0)

    def shown(self, charged: Charged) -> float:
        """An upper bound of `exact`, and at most the budget where that is."""
        last = self.setup.strategy.rounds
        if charged.releases >= last:
            return self.exact(charged)
        more = Charged(_upper(charged.releases, last), np.array([_upper(n) for n in charged.participations.tolist()]))
        found = max((self._epsilon(event, coarse=True) for event in self._events(more)), default=0.0)
        return self.exact(charged) if self._passed(found) else found

    def within(self, charged: Charged) -> bool:
        """Whether what has been released is within the budget."""
        return not self._passed(self.shown(charged))

    def filled(self) -> dict[str, float]:
        """The mechanism's settings of null that follow from the run, by key: its noise multiplier, and others.

        Raises:
            ValueError: as for `calibrated`.
        """
        found = dict(self.mechanism.filled(self.setup))
        if self.mechanism.noise_multiplier is None:
            found["noise_multiplier"] = self.calibrated()
        return {f"{self.key}.{name}": value for name, value in found.items()}

    def calibrated(self) -> float:
        """The smallest noise multiplier with which the whole run is within its budget.

        Raises:
            ValueError: there is no budget, or no noise keeps it.
        """
        if self.privacy.epsilon is None:
            raise ValueError(f"{self.key}.noise_multiplier=null: set it, or privacy.epsilon, from which it follows")
        charged, budget = self.planned(self.setup.strategy.rounds), self.privacy.epsilon
        found = 0.0
        for place in range(len(self._events(charged, 1.0))):
            found = max(
                found,
                calibrated(
                    lambda noise, place=place: self._events(charged, noise)[place],  # type: ignore[misc]
                    budget=budget,
                    delta=self.privacy.delta,
                    accountant=self.privacy.accountant,
                ),
            )
        return found

    def summary(self, charged: Charged) -> dict[str, Any]:
        """What `summary.json` says of it."""
        return {
            "mechanism": self.key,
            "unit": self.mechanism.unit,
            **self.mechanism.described(),
            "noise_multiplier": self.mechanism.noise_multiplier,
            "releases": charged.releases,
            "epsilon": _finite(self.exact(charged)),
            "delta": self.privacy.delta,
            "accountant": self.privacy.accountant,
            "budget": self.privacy.epsilon,
            "secure_noise": self.mechanism.secure_noise,
            "not_covered": list(self.mechanism.not_covered),
        }

    def _passed(self, value: float) -> bool:
        return self.privacy.epsilon is not None and value > self.privacy.epsilon

    def _events(self, charged: Charged, noise_multiplier: float | None = None) -> "list[DpEvent]":
        noise = self.mechanism.noise_multiplier if noise_multiplier is None else noise_multiplier
        assert noise is not None, "checked before the first round"
        return list(self.mechanism.events(self.setup, charged, noise)) if charged.releases else []

    def _epsilon(self, event: "DpEvent", *, coarse: bool) -> float:
        key = (repr(event), coarse)
        if key not in self._known:
            self._known[key] = self._coarse(event) if coarse else self._exact(event)
        return self._known[key]

    def _exact(self, event: "DpEvent") -> float:
        return epsilon(event, delta=self.privacy.delta, accountant=self.privacy.accountant)

    def _coarse(self, event: "DpEvent") -> float:
        from dp_accounting import SelfComposedDpEvent
        from dp_accounting.rdp import compute_epsilon

        one, count = (event.event, event.count) if isinstance(event, SelfComposedDpEvent) else (event, 1)
        key, rdp = repr(one), self.privacy.accountant == "rdp"
        if count == 0:
            return 0.0
        large = None if rdp else beyond_distributions(event, self.privacy.delta)
        if large is not None:
            return large
        if key not in self._single:
            self._single[key] = renyi(one, ORDERS) if rdp else _pld(one)
        single, delta = self._single[key], self.privacy.delta
        if rdp:
            return float(compute_epsilon(ORDERS, (count * single).tolist(), delta)[0])
        return float((single if count == 1 else single.self_compose(count)).get_epsilon_for_delta(delta))


def _pld(event: "DpEvent") -> Any:
    """The privacy loss distribution of an event, in coarse steps."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    check_counted(event)
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=_COARSE)
    return accountant.compose(event)._pld  # it has no public access to the distribution


def _upper(count: int, last: float = math.inf) -> int:
    """The count itself up to 16, and then the next one that is a multiple of at most an eighth of it; at most `last`.

    Example:
        >>> [_upper(count) for count in (1, 16, 17, 100, 101, 104)], _upper(101, 103)
        ([1, 16, 18, 104, 104, 104], 103)
    """
    if count <= _EVERY_ROUND:
        return count
    step = 2 ** (count.bit_length() - 4)
    return int(min(-(-count // step) * step, last))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
