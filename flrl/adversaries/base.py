"""The base class of adversaries: which clients are malicious, and what they do to samples, updates and broadcasts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flrl.data.sources import Source
from flrl.layout import ParameterLayout
from flrl.seeding import SERVER, generator_for
from flrl.types import Broadcast, ClientUpdate, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


@dataclass(frozen=True, slots=True)
class AdversaryContext:
    """A round's description for an adversary.

    Attributes:
        round: the round, counted from 1.
        seed: the run's seed.
        layout: the layout of the vectors.
        cohort: ids of the clients that take part, ascending.
        total_weight: the sum of the cohort's weights.
        sent: the global model that the clients are sent, `[layout.size]`.
        malicious: ids of all malicious clients of the federation, ascending.
        client_id: the malicious client; `flrl.seeding.SERVER` for what happens on the server.
        generator: on the CPU, seeded by (seed, round, client, "adversary").
        honest: for `collude`, ids of the clients whose rows it sees, ascending.
        dataset_indices: for `samples`, the client's samples as indices into the whole dataset, int64 `[n]`.
        public: for `broadcast`, the central test samples: what a malicious server has of the clients' kind.
    """

    round: int
    seed: int
    layout: ParameterLayout
    cohort: Sequence[int]
    total_weight: float
    sent: Tensor
    malicious: Sequence[int]
    client_id: int
    generator: torch.Generator
    honest: Sequence[int] = ()
    dataset_indices: np.ndarray | None = None
    public: Source | None = None

    @property
    def present(self) -> list[int]:
        """Ids of the malicious clients of the cohort, ascending."""
        cohort = set(self.cohort)
        return [client_id for client_id in self.malicious if client_id in cohort]


@dataclass(frozen=True, slots=True)
class Probe:
    """Samples on which the module's accuracy is a metric of its own: triggered test samples, for instance.

    Attributes:
        name: the metric's name, `test/backdoor_success` for instance.
        source: has the samples.
        indices: indices into it, int64 `[n]`.
    """

    name: str
    source: Source
    indices: np.ndarray


class Adversary:
    """Base class of adversaries, whose methods do nothing. It holds settings; state is passed in and out.

    A subclass overrides `samples` to poison data, `update` to change what a malicious client sends, `collude` (with
    `needs_rows`) for clients that see the honest ones' updates first, `broadcast` for a server that tampers with what
    it sends.

    Args:
        clients: which clients are malicious: a list of ids; a whole number of clients, or a fraction of them in [0, 1),
            that the run's seed draws. 1 is one client, 0.1 a tenth. A larger number contains those of a smaller one.
        start: the first round in which they misbehave, counted from 1.
        stop: the last such round, inclusive; null for the run's last.

    Raises:
        ValueError: a setting is invalid.
    """

    needs_rows = False
    """Whether `collude` needs the rows of all clients, which not every aggregator keeps."""

    def __init__(self, *, clients: int | float | Sequence[int] = 0, start: int = 1, stop: int | None = None) -> None:
        if isinstance(clients, str | bool):
            raise ValueError(f"adversary.clients={clients}: must be ids, a whole number or a fraction in [0, 1)")
        if isinstance(clients, float) and not 0 <= clients < 1:
            raise ValueError(
                f"adversary.clients={clients}: a fraction must be at least 0 and below 1; a number of clients is "
                "written without a point"
            )
        if isinstance(clients, int) and clients < 0:
            raise ValueError(f"adversary.clients={clients}: must be at least 0")
        if isinstance(clients, Sequence) and len({*clients}) < len(clients):
            raise ValueError(f"adversary.clients={list(clients)}: an id is there twice")
        if start < 1:
            raise ValueError(f"adversary.start={start}: must be at least 1")
        if stop is not None and stop < start:
            raise ValueError(f"adversary.stop={stop}: must be at least adversary.start={start}, or null")
        self.clients = clients if isinstance(clients, int | float) else tuple(clients)
        self.start, self.stop = start, stop

    # Who, and when.

    def malicious(self, num_clients: int, seed: int) -> tuple[int, ...]:
        """Ids of the malicious clients, ascending.

        Args:
            num_clients: of the federation.
            seed: the run's.

        Raises:
            ValueError: there are no such clients, or a fraction is nobody.
        """
        chosen = self.clients
        if isinstance(chosen, tuple):
            for client_id in chosen:
                if not 0 <= client_id < num_clients:
                    raise ValueError(f"adversary.clients: there is no client {client_id}, only 0 to {num_clients - 1}")
            return tuple(sorted(chosen))
        count = chosen if isinstance(chosen, int) else int(np.rint(chosen * num_clients))
        if count > num_clients:
            raise ValueError(f"adversary.clients={chosen}: there are only {num_clients} clients")
        if count == 0 and chosen > 0:
            raise ValueError(f"adversary.clients={chosen}: of {num_clients} clients this is nobody")
        order = generator_for(seed, 0, SERVER, "adversary").permutation(num_clients)
        return tuple(sorted(order[:count].tolist()))

    def active(self, round: int) -> bool:
        """Whether malicious clients misbehave in a round."""
        return round >= self.start and (self.stop is None or round <= self.stop)

    def check(self, setup: "Setup") -> None:
        """Raise ValueError for parts of a setup that the adversary cannot be combined with; before any round."""
        self.malicious(setup.num_clients, 0)
        own = type(self)
        sends = own.update is not Adversary.update or own.collude is not Adversary.collude
        if (sends or own.broadcast is not Adversary.broadcast) and not setup.strategy.sends_model:
            raise ValueError(
                f"adversary={own.__name__}: changes updates of a model, and clients of "
                f"{type(setup.strategy).__name__} send none"
            )

    def check_samples(self, source: Source, num_samples: int) -> None:
        """Raise ValueError if clients' samples cannot be poisoned as asked; before any round, where there are some.

        Args:
            source: the clients' samples that are held here.
            num_samples: training samples of the whole dataset, of which `source` may have a part.
        """

    # What: on the worker that trains a malicious client.

    def samples(self, source: Source, indices: np.ndarray, context: AdversaryContext) -> tuple[Source, np.ndarray]:
        """The samples that a malicious client trains on instead of its own.

        Args:
            source: has the samples of all clients; must not be changed.
            indices: this client's, int64 `[n]`.
            context: the round.

        Returns:
            A source of the same kind, and indices into it; as many as before.
        """
        return source, indices

    def update(self, update: ClientUpdate, memory: Tensors, context: AdversaryContext) -> tuple[ClientUpdate, Tensors]:
        """What a malicious client sends instead of the strategy's update, before its transforms.

        Args:
            update: as `Strategy.local` returned it; `update.vectors["update"]` is local minus global model, float64.
            memory: what this adversary had the client remember, by name.
            context: the round.

        Returns:
            The update, and what the client is to remember.
        """
        return update, memory

    # What: on the server.

    def collude(self, honest: Tensor, own: Tensor, state: Tensors, context: AdversaryContext) -> tuple[Tensor, Tensors]:
        """The rows of the malicious clients, once those of all honest ones are there; only with `needs_rows`.

        Args:
            honest: the honest clients' updates as they sent them, float64 `[h, d]` in the order of ids; h >= 1.
            own: those of the malicious clients of the cohort, `[m, d]`; m >= 1.
            state: what this method returned last, by name; empty in the first round.
            context: the round.

        Returns:
            Rows instead of `own`: `[m, d]`, or `[d]` for all of them; what is to be known in the next round.
        """
        return own, state

    def broadcast(self, broadcast: Broadcast, context: AdversaryContext) -> Broadcast:
        """What a malicious server sends instead of the strategy's broadcast; called in active rounds."""
        return broadcast

    # What shows in the metrics.

    def probes(self, test: Source) -> Sequence[Probe]:
        """Samples to evaluate besides the central test set, whenever that is evaluated; malicious clients or not."""
        return ()


class Nobody(Adversary):
    """Everybody is honest: `adversary=none`. It takes what all adversaries take, for sweeps."""

    def malicious(self, num_clients: int, seed: int) -> tuple[int, ...]:
        """Nobody."""
        return ()
