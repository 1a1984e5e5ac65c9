"""A round of the protocol as it is simulated: clients' secrets follow from the run's seed, so any worker is any client.

A worker plays a client when it masks that client's vector; the controller plays all clients in the other stages, and
the server, which is given nothing but their messages. Of the neighbours' public keys a worker knows what the server
would have forwarded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from flrl.secagg.client import Client
from flrl.secagg.crypto import Secrets, public_key
from flrl.secagg.graph import Graph, automatic_degree
from flrl.secagg.masks import MaskedSum, Masking
from flrl.secagg.messages import (
    KeyList,
    Message,
    ShareList,
    UnmaskRequest,
    advertise_bytes,
    masked_bytes,
    share_keys_bytes,
    unmask_bytes,
)
from flrl.secagg.server import Server
from flrl.seeding import SERVER, generator_for

STAGES = ("advertise_keys", "share_keys", "masked_input", "unmasking")
"""The four stages, as the paper names them."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of the messages of a round.

    Attributes:
        up: from each client to the server, by stage, by client.
        down: from the server to each client, by stage, by client.
    """

    up: Mapping[str, dict[int, int]] = field(default_factory=lambda: {stage: {} for stage in STAGES})
    down: Mapping[str, dict[int, int]] = field(default_factory=lambda: {stage: {} for stage in STAGES})


@dataclass(frozen=True)
class Session:
    """One round.

    Attributes:
        seed: the run's.
        round: the round.
        clients: ids of the cohort.
        size: words of each vector.
        threshold: more than this share of the holders of a secret are needed to uncover it.
        neighbours: of each client, an even number; None: all; "auto": see `automatic_degree`.
        dropouts: the probability that a client that is there drops out in a stage, by stage.
    """

    seed: int
    round: int
    clients: Sequence[int]
    size: int
    threshold: float = 0.5
    neighbours: int | str | None = "auto"
    dropouts: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def graph(self) -> Graph:
        """Who are neighbours, by seed."""
        degree = automatic_degree(len(self.clients)) if self.neighbours == "auto" else self.neighbours
        assert degree is None or isinstance(degree, int)
        rng = generator_for(self.seed, self.round, SERVER, "secagg/graph")
        return Graph.of(self.clients, degree, self.threshold, rng)

    @cached_property
    def lost(self) -> dict[int, str]:
        """The stage in which each client that drops out is not heard any more, by client."""
        return {client: stage for client in self.clients if (stage := self._stage_of(client)) is not None}

    def _stage_of(self, client: int) -> str | None:
        for stage in STAGES:
            share = self.dropouts.get(stage, 0.0)
            if share and generator_for(self.seed, self.round, client, f"secagg/{stage}").random() < share:
                return stage
        return None

    @cached_property
    def heard(self) -> dict[str, set[int]]:
        """The clients that are heard in each stage, by stage, if none drops out for other reasons."""
        last = {client: STAGES.index(stage) for client, stage in self.lost.items()}
        return {
            stage: {client for client in self.clients if last.get(client, len(STAGES)) > place}
            for place, stage in enumerate(STAGES)
        }

    def secrets(self, client: int) -> Secrets:
        """A client's secrets."""
        return Secrets.of_seed(self.seed, self.round, client)

    @cached_property
    def _public(self) -> dict[int, bytes]:
        return {client: public_key(self.secrets(client).masking) for client in self.heard["share_keys"]}

    def masking(self, client: int) -> Masking:
        """What a client masks its vector with: that of `Client.masking` after the two stages before."""
        peers = {other: self._public[other] for other in self.graph.neighbours[client] if other in self._public}
        return Masking(self.round, client, self.secrets(client), peers)

    def up_bytes(self, client: int, *, sends: bool = True) -> dict[str, int]:
        """The bytes of what a client sends, by stage.

        Args:
            client: the client.
            sends: whether it can send its vector, unless it has dropped out.
        """
        heard, near = self.heard, self.graph.neighbours[client]
        found: dict[str, int] = {}
        origins = {other for other in near if other in heard["share_keys"]}
        origins |= {client} & set(self.graph.holders[client])
        lengths = {
            "advertise_keys": advertise_bytes(),
            "share_keys": share_keys_bytes(sum(other in heard["advertise_keys"] for other in near)),
            "masked_input": masked_bytes(self.size),
            "unmasking": unmask_bytes(len(origins)),
        }
        for stage, length in lengths.items():
            if client not in heard[stage] or (stage == "masked_input" and not sends):
                break
            found[stage] = length
        return found

    def unmask(self, masked: MaskedSum) -> tuple[np.ndarray, Traffic]:
        """The sum of the vectors without masks, uint64 `[size]`, and the bytes of all messages.

        Args:
            masked: the sum of the masked vectors of those clients that have sent one.

        Raises:
            SecureAggregationError: fewer clients are left than the threshold.
        """
        traffic = Traffic()
        server = Server(round=self.round, graph=self.graph, size=self.size)
        ends = {c: Client(c, round=self.round, graph=self.graph, secrets=self.secrets(c)) for c in self.clients}

        def sent(message: Message, stage: str) -> None:
            data = message.encode()
            traffic.up[stage][message.client] = len(data)
            server.receive(data)

        def forwarded(stage: str) -> dict[int, bytes]:
            messages = {client: message.encode() for client, message in server.next().items()}
            traffic.down[stage].update({client: len(data) for client, data in messages.items()})
            return messages

        for client in sorted(self.heard["advertise_keys"]):
            sent(ends[client].advertise_keys(), "advertise_keys")
        keys = forwarded("advertise_keys")
        for client in sorted(self.heard["share_keys"]):
            sent(ends[client].share_keys(KeyList.decode(keys[client])), "share_keys")
        shares = forwarded("share_keys")
        for client in sorted(masked.clients):
            ends[client].masking(ShareList.decode(shares[client]))
            traffic.up["masked_input"][client] = masked_bytes(self.size)
        server.receive_sum(masked.clients, masked.words)
        requests = forwarded("masked_input")
        for client in sorted(masked.clients - self.lost.keys()):
            sent(ends[client].unmask(UnmaskRequest.decode(requests[client])), "unmasking")
        forwarded("unmasking")
        return server.sum(), traffic
