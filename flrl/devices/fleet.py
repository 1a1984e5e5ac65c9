"""A run's devices: durations of what its clients do, by client."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flrl.devices.base import Devices, Luck, Table


@dataclass(frozen=True, slots=True)
class Work:
    """What the trainer has every client do in a round.

    Attributes:
        batch_size: samples of a step.
        epochs: passes over the client's samples, unless there are `steps`.
        steps: steps instead of epochs; None for epochs.
        passes: how many trainings of this kind the strategy has a client do.
        gradients: how many gradients of all its samples besides.

    A strategy whose clients do something else says so in `Strategy.client_samples`.
    """

    batch_size: int
    epochs: int = 1
    steps: int | None = None
    passes: float = 1.0
    gradients: float = 0.0

    def num_steps(self, sizes: np.ndarray) -> np.ndarray:
        """Steps of each of one training's clients, int64, from their training samples."""
        if self.steps is not None:
            return np.full(len(sizes), self.steps)
        return np.asarray(self.epochs * -(-sizes // self.batch_size))

    def samples_of_steps(self, sizes: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """Samples of each client's first steps, `[clients]`: an epoch's last batch has what the others have left."""
        epochs, rest = np.divmod(steps, np.maximum(1, -(-sizes // self.batch_size)))
        return np.asarray(epochs * sizes + np.minimum(rest * self.batch_size, sizes))

    def samples(self, sizes: np.ndarray) -> np.ndarray:
        """Samples that each goes through, those of several epochs several times."""
        trained = self.epochs * sizes if self.steps is None else self.samples_of_steps(sizes, self.num_steps(sizes))
        return np.asarray(self.passes * trained + self.gradients * sizes)


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What some clients take for a round, from when they are sent the model, each `[clients]`.

    Attributes:
        clients: their ids.
        compute_s: seconds of computation.
        other_s: seconds of latency and of the download.
        up_s_per_byte: seconds of the upload for a byte.
        down_s_per_byte: those of a download.
        luck: which of them drop out, and when.
    """

    clients: np.ndarray
    compute_s: np.ndarray
    other_s: np.ndarray
    up_s_per_byte: np.ndarray
    down_s_per_byte: np.ndarray
    luck: Luck

    def seconds(self, up_bytes: "np.ndarray | float", more_down_bytes: "np.ndarray | float" = 0.0) -> np.ndarray:
        """Seconds until the server has each update, or until it has lost a client that drops out.

        Args:
            up_bytes: of each update, `[clients]` or of all.
            more_down_bytes: that each is sent after the model, likewise.
        """
        whole = self.other_s + self.compute_s + self.up_s_per_byte * up_bytes + self.down_s_per_byte * more_down_bytes
        return np.asarray(np.where(self.luck.dropped, self.luck.lost_at * whole, whole))

    def only(self, kept: np.ndarray) -> "Dispatch":
        """Those clients alone: bool or int64 `[n]`."""
        luck = Luck(*(getattr(self.luck, name)[kept] for name in ("slowdown", "dropped", "lost_at")))
        names = ("clients", "compute_s", "other_s", "up_s_per_byte", "down_s_per_byte")
        return replace(self, **{name: getattr(self, name)[kept] for name in names}, luck=luck)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The devices of a run.

    Attributes:
        devices: their laws.
        work: of every client in a round.
        seed: of all that is drawn.
    """

    devices: Devices
    work: Work
    seed: int
    _tables: list[Table] = field(default_factory=list, repr=False, compare=False)
    _order: list[np.ndarray] = field(default_factory=list, repr=False, compare=False)

    def table(self, sizes: np.ndarray) -> Table:
        """The numbers of every client's device; drawn once."""
        if not self._tables:
            self._tables.append(self.devices.drawn(sizes, self.seed))
        return self._tables[0]

    def dispatch(
        self,
        round: int,
        clients: Sequence[int],
        sizes: np.ndarray,
        down_bytes: int,
        samples: np.ndarray | None = None,
    ) -> Dispatch:
        """What clients that are dispatched in a round take.

        Args:
            round: the round whose model they are sent.
            clients: their ids.
            sizes: training samples of every client, int64 `[num_clients]`.
            down_bytes: bytes that each is sent.
            samples: how many samples each goes through, `[clients]`; None: those of `work`.
        """
        ids, table = np.asarray(clients, np.int64), self.table(sizes)
        luck = self.devices.luck(round, ids, self.seed)
        worked = self.work.samples(sizes[ids]) if samples is None else samples
        compute = worked / table.samples_per_s[ids] * luck.slowdown
        other = table.latency_s[ids] + down_bytes / table.down_bytes_per_s[ids]
        return Dispatch(ids, compute, other, 1.0 / table.up_bytes_per_s[ids], 1.0 / table.down_bytes_per_s[ids], luck)

    def expected(self, sizes: np.ndarray, nbytes: int, samples: np.ndarray | None = None) -> np.ndarray:
        """Seconds that each client takes without bad luck, float64 `[num_clients]`.

        Args:
            sizes: training samples of every client, int64 `[num_clients]`.
            nbytes: sent both ways.
            samples: how many samples each goes through, `[num_clients]`; None: those of `work`.
        """
        table = self.table(sizes)
        links = nbytes / table.up_bytes_per_s + nbytes / table.down_bytes_per_s
        worked = self.work.samples(sizes) if samples is None else samples
        return np.asarray(worked / table.samples_per_s + table.latency_s + links, np.float64)

    def fastest_first(self, sizes: np.ndarray, nbytes: int, samples: np.ndarray | None = None) -> np.ndarray:
        """The clients by their expected seconds, of equal ones those with lower ids first; ordered once."""
        if not self._order:
            self._order.append(np.argsort(self.expected(sizes, nbytes, samples), kind="stable"))
        return self._order[0]

    def available(self, time_s: float, num_clients: int) -> np.ndarray | None:
        """Whether each client is available at a virtual time, bool `[num_clients]`; None: all are."""
        return self.devices.available(time_s, num_clients, self.seed)

    def next_change(self, time_s: float) -> float:
        """When other clients may be available; the same time where all always are.

        Raises:
            ValueError: an availability of one's own gives no later time, and the clock would stand still.
        """
        if self.devices.availability is None:
            return time_s
        later = self.devices.availability.next_change(time_s)
        if not time_s < later < math.inf:
            name = type(self.devices.availability).__name__
            raise ValueError(
                f"devices.availability: {name}.next_change({time_s}) is {later}: must be later, and finite"
            )
        return later
