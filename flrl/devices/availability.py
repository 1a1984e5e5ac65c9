"""When clients are available, as a function of virtual time alone."""

import itertools
import math
from abc import ABC, abstractmethod
from fractions import Fraction

import numpy as np

from flrl.seeding import SERVER, generator_for


class Availability(ABC):
    """Which clients can be sent a model."""

    @abstractmethod
    def at(self, time_s: float, num_clients: int, seed: int) -> np.ndarray:
        """Whether each client is available at a virtual time, bool `[num_clients]`."""

    @abstractmethod
    def next_change(self, time_s: float) -> float:
        """A time after this one at which others are available: the server waits until then where it has nobody."""


class SineDays(Availability):
    """The share of available clients goes up and down once a day; each is available or not for a slot of time.

    In each slot a client is available with probability `mean + amplitude * sin(2 pi (time / day_s + phase))`, where its
    phase is drawn by seed, uniform in `[0, spread]`: time zones.

    Args:
        mean: share of the clients that are available on average, in [0, 1].
        amplitude: how far it goes up and down, at least 0.
        day_s: seconds of a day.
        slot_s: seconds of a slot.
        spread: largest phase, as a share of a day, in [0, 1].

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        mean: float = 0.5,
        amplitude: float = 0.4,
        day_s: float = 86400.0,
        slot_s: float = 600.0,
        spread: float = 0.0,
    ) -> None:
        if amplitude < 0 or not 0 <= mean - amplitude <= mean + amplitude <= 1:
            raise ValueError(
                f"devices.availability: mean={mean}, amplitude={amplitude}: mean - amplitude and mean + amplitude must "
                "be in [0, 1]"
            )
        if mean + amplitude == 0:
            raise ValueError("devices.availability: mean=0, amplitude=0: nobody would ever be available")
        if not (0 < slot_s <= day_s < math.inf):
            raise ValueError(f"devices.availability: slot_s={slot_s}, day_s={day_s}: 0 < slot_s <= day_s must hold")
        if not 0 <= spread <= 1:
            raise ValueError(f"devices.availability.spread={spread}: must be in [0, 1]")
        self.mean, self.amplitude, self.day_s, self.slot_s, self.spread = mean, amplitude, day_s, slot_s, spread

    def at(self, time_s: float, num_clients: int, seed: int) -> np.ndarray:
        """Whether each client is available in the slot of this time."""
        slot = math.floor(time_s / self.slot_s)
        phases = np.zeros(1)
        if self.spread:
            phases = self.spread * generator_for(seed, 0, SERVER, "availability/phases").random(num_clients)
        share = self.mean + self.amplitude * np.sin(2 * np.pi * (slot * self.slot_s / self.day_s + phases))
        return np.asarray(generator_for(seed, slot, SERVER, "availability/slot").random(num_clients) < share)

    def next_change(self, time_s: float) -> float:
        """The beginning of the next slot, as `at` counts them: the product may be rounded to before it."""
        slot = math.floor(time_s / self.slot_s)
        later = (slot + 1) * self.slot_s
        while math.floor(later / self.slot_s) <= slot:
            later = math.nextafter(later, math.inf)
        return later


class Intervals(Availability):
    """Each client is available in given intervals, which repeat: a trace.

    Args:
        active: of each trace, the times in seconds at which it becomes available.
        inactive: of each trace, those at which it ceases to be, one after each of `active`.
        periods: of each trace, the seconds after which it repeats.

    Raises:
        ValueError: the times of a trace are not in order or not finite, or nobody is ever available.
    """

    def __init__(
        self,
        active: list[np.ndarray],
        inactive: list[np.ndarray],
        periods: np.ndarray,
    ) -> None:
        for index, (start, end) in enumerate(zip(active, inactive, strict=True)):
            check_trace(start, end, periods[index], f"devices.availability: trace {index}")
        if not any((start < end).any() for start, end in zip(active, inactive, strict=True)):
            raise ValueError("devices.availability: nobody would ever be available")
        self.active, self.inactive, self.periods = active, inactive, np.asarray(periods, float)
        self._rises = [_rises(*trace) for trace in zip(active, inactive, self.periods.tolist(), strict=True)]

    def at(self, time_s: float, num_clients: int, seed: int, owner: np.ndarray | None = None) -> np.ndarray:
        """Whether each client's trace is active at this time.

        Args:
            time_s: virtual time.
            num_clients: number of all clients.
            seed: not used.
            owner: the trace of each client, int64 `[num_clients]`; the client modulo the number of traces by default.
        """
        times = time_s % self.periods
        traces = np.array(
            [
                np.searchsorted(start, now, "right") > np.searchsorted(end, now, "right")
                for start, end, now in zip(self.active, self.inactive, times, strict=True)
            ]
        )
        return traces[np.arange(num_clients) % len(traces) if owner is None else owner]

    def next_change(self, time_s: float) -> float:
        """The first representable time at which a trace has become active; the next time if none does in a period."""
        traces = zip(self.active, self.inactive, self.periods.tolist(), self._rises, strict=True)
        found = min(_next_rise(*trace, time_s) for trace in traces)
        return found if found < math.inf else math.nextafter(time_s, math.inf)


def check_trace(start: np.ndarray, end: np.ndarray, period: float, name: str) -> None:
    """Raise ValueError for a trace whose times are not finite, not in order, or not within its period.

    Args:
        start: times at which it becomes active.
        end: times at which it ceases to be.
        period: seconds after which it repeats.
        name: of the trace, for the message.
    """
    if not 0 < period < math.inf:
        raise ValueError(f"{name}: repeats after {period} s: must be positive and finite")
    if not (np.isfinite(start).all() and np.isfinite(end).all()):
        raise ValueError(f"{name}: active and inactive times must be finite")
    times = np.stack([start, end], 1).reshape(-1) if len(start) == len(end) else np.array([1.0, 0.0])
    if (np.diff(times) < 0).any():
        raise ValueError(f"{name}: active and inactive times must alternate in order")
    if len(times) and (times[0] < 0 or times[-1] > period):
        raise ValueError(f"{name}: active and inactive times must be from 0 to {period:g}, after which it repeats")


def _rises(start: np.ndarray, end: np.ndarray, period: float) -> np.ndarray:
    """The times at which a trace becomes active that was not just before."""
    start, end = start[start < end], end[start < end]
    return np.asarray(start[start != np.concatenate([end[-1:] - period, end[:-1]])])


def _next_rise(start: np.ndarray, end: np.ndarray, period: float, rises: np.ndarray, time_s: float) -> float:
    """The first representable time after this one at which a trace has become active; infinite if not in a period."""
    now = time_s % period  # exact, as is all that follows
    place = int(np.searchsorted(rises, now, "right"))
    for rise in itertools.chain(
        rises[place:].tolist(), (Fraction(period) + Fraction(first) for first in rises.tolist())
    ):
        exact = Fraction(time_s) - Fraction(now) + Fraction(rise)
        later = float(exact)
        if later < exact:
            later = math.nextafter(later, math.inf)
        phase = later % period
        if np.searchsorted(start, phase, "right") > np.searchsorted(end, phase, "right"):
            return later
    return math.inf
