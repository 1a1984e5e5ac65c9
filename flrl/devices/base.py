"""The devices that clients train on: how fast they compute and send, and when they are available."""

from dataclasses import dataclass

import numpy as np

from flrl.devices.availability import Availability
from flrl.devices.laws import Law, law_of
from flrl.seeding import SERVER, generator_for


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers of every client's device, float64 `[num_clients]` each.

    Attributes:
        samples_per_s: training samples a second, an epoch's samples counted once each.
        up_bytes_per_s: bytes a second to the server.
        down_bytes_per_s: bytes a second from the server.
        latency_s: seconds besides, once a dispatch.
    """

    samples_per_s: np.ndarray
    up_bytes_per_s: np.ndarray
    down_bytes_per_s: np.ndarray
    latency_s: np.ndarray


@dataclass(frozen=True, slots=True)
class Luck:
    """What happens to some clients in a round, each `[clients]`.

    Attributes:
        slowdown: by which factor their computation takes longer, at least 1.
        dropped: whether they drop out: they never send what they trained.
        lost_at: after which share of their time, in [0, 1), for those that drop out.
    """

    slowdown: np.ndarray
    dropped: np.ndarray
    lost_at: np.ndarray


class NoDevices:
    """There is no virtual clock: nothing is known of the devices that clients train on."""


class Devices:
    """Devices whose numbers are drawn from laws, each client's once by the run's seed.

    Args:
        samples_per_s: speed of training, a number or a law; null takes no time.
        epoch_s: instead, seconds that each client takes for a pass over its samples, however many they are.
        up_bytes_per_s: bandwidth to the server; null takes no time.
        down_bytes_per_s: bandwidth from the server; null takes no time.
        latency_s: seconds besides, once a dispatch.
        availability: when clients are available; null: always.
        dropout: probability that a client which was sent the model never answers, in [0, 1).
        stragglers: probability that a client's computation takes longer in a round, in [0, 1]: by the factor `1 / u`
            where u is uniform in (0, 1), as devices of which only the share u of the work is done in the usual time.

    Raises:
        ValueError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        samples_per_s: Law | float | None = None,
        epoch_s: Law | float | None = None,
        up_bytes_per_s: Law | float | None = None,
        down_bytes_per_s: Law | float | None = None,
        latency_s: Law | float = 0.0,
        availability: Availability | None = None,
        dropout: float = 0.0,
        stragglers: float = 0.0,
    ) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"devices.dropout={dropout}: must be at least 0 and below 1")
        if not 0 <= stragglers <= 1:
            raise ValueError(f"devices.stragglers={stragglers}: must be in [0, 1]")
        if availability is not None and not isinstance(availability, Availability):
            raise ValueError(f"devices.availability={availability}: must be an Availability, such as SineDays, or null")
        if epoch_s is not None and samples_per_s is not None:
            raise ValueError(
                f"devices: samples_per_s={samples_per_s} and epoch_s={epoch_s} exclude each other: samples_per_s=null"
            )
        self.samples_per_s = law_of(samples_per_s, "samples_per_s")
        self.epoch_s = None if epoch_s is None else law_of(epoch_s, "epoch_s")
        self.up_bytes_per_s = law_of(up_bytes_per_s, "up_bytes_per_s")
        self.down_bytes_per_s = law_of(down_bytes_per_s, "down_bytes_per_s")
        self.latency_s = law_of(latency_s, "latency_s")
        self.availability, self.dropout, self.stragglers = availability, dropout, stragglers

    def table(self, sizes: np.ndarray, rng: np.random.Generator) -> Table:
        """The numbers of every client's device.

        Args:
            sizes: training samples of every client, int64 `[num_clients]`.
            rng: generator of all random numbers.
        """
        speeds = self.samples_per_s.draw(len(sizes), rng)
        if self.epoch_s is not None:
            seconds = self.epoch_s.draw(len(sizes), rng)
            speeds = np.divide(sizes, seconds, out=np.full(len(sizes), np.inf), where=seconds > 0)
        laws = (self.up_bytes_per_s, self.down_bytes_per_s, self.latency_s)
        return Table(speeds, *(law.draw(len(sizes), rng) for law in laws))

    def drawn(self, sizes: np.ndarray, seed: int) -> Table:
        """The numbers of every client's device in a run, checked.

        Args:
            sizes: training samples of every client, int64 `[num_clients]`.
            seed: of all that is drawn.

        Raises:
            ValueError: a speed is not positive, seconds are not finite, or there are not as many numbers as clients.
        """
        return _checked(self.table(sizes, generator_for(seed, 0, SERVER, "devices")), len(sizes), type(self).__name__)

    def check(self, sizes: np.ndarray, seed: int) -> None:
        """Raise ValueError for numbers or an availability that no clock can go by: arguments as for `drawn`."""
        self.drawn(sizes, seed)
        available = self.available(0.0, len(sizes), seed)
        if available is not None and np.shape(available) != (len(sizes),):
            raise ValueError(
                f"devices.availability: {type(self.availability).__name__}.at returns the shape {np.shape(available)}: "
                f"must be one bool for each of {len(sizes)} clients"
            )

    def available(self, time_s: float, num_clients: int, seed: int) -> np.ndarray | None:
        """Whether each client is available at a virtual time, bool `[num_clients]`; None: all are."""
        return None if self.availability is None else self.availability.at(time_s, num_clients, seed)

    def luck(self, round: int, clients: np.ndarray, seed: int) -> Luck:
        """What happens to clients that are dispatched in a round: a function of (seed, round, client)."""
        slowdown, dropped, lost_at = np.ones(len(clients)), np.zeros(len(clients), bool), np.zeros(len(clients))
        if self.dropout or self.stragglers:
            for place, client in enumerate(clients.tolist()):
                straggles, work, drops, lost_at[place] = generator_for(seed, round, client, "device").random(4)
                dropped[place] = drops < self.dropout
                if straggles < self.stragglers:
                    slowdown[place] = 1 / (1 - work)
        return Luck(slowdown, dropped, lost_at)


SLOWEST = 1e-30
"""The least speed, and one over the longest latency: times are finite."""


def _checked(table: Table, num_clients: int, kind: str) -> Table:
    """The table as float64; ValueError unless it has numbers for all clients that times can be computed from."""
    found = {}
    for name in ("samples_per_s", "up_bytes_per_s", "down_bytes_per_s", "latency_s"):
        values = found[name] = np.asarray(getattr(table, name), np.float64)
        if values.shape != (num_clients,):
            raise ValueError(
                f"devices: {kind}.table returns {name} of the shape {values.shape}: must be one number for each of "
                f"{num_clients} clients"
            )
        if name == "latency_s":
            right, must = (values >= 0) & (values <= 1 / SLOWEST), f"at least 0 and at most {1 / SLOWEST:g}"
        else:
            right, must = values >= SLOWEST, f"positive, at least {SLOWEST:g}"
        if not right.all():
            client = int(np.argmin(right))
            raise ValueError(f"devices.{name}: must be {must}, client {client} has {values[client]:g} ({kind})")
    return Table(**found)
