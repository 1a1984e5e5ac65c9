"""Rounds of the protocol between clients and a server that exchange bytes."""

from collections.abc import Mapping, Sequence

import numpy as np

from flrl.secagg import Client, Graph, Secrets, Server
from flrl.secagg.messages import KeyList, ShareList, UnmaskRequest

ROUND = 3


def graph_of(clients: Sequence[int], degree: int | None = None, share: float = 0.5) -> Graph:
    return Graph.of(clients, degree, share, np.random.default_rng(1))


def vectors_of(clients: Sequence[int], size: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {client: rng.integers(0, 2**64, size, dtype=np.uint64) for client in clients}


class Play:
    """Clients and server, and all bytes that they have exchanged, by stage and client.

    Args:
        graph: who are neighbours.
        vectors: what the clients have.
        drops: the stage, 0 to 3, in which clients are not heard any more.
    """

    def __init__(self, graph: Graph, vectors: Mapping[int, np.ndarray], drops: Mapping[int, int] | None = None) -> None:
        self.graph, self.vectors, self.drops = graph, vectors, drops or {}
        size = len(next(iter(vectors.values())))
        self.server = Server(round=ROUND, graph=graph, size=size)
        self.clients = {
            client: Client(client, round=ROUND, graph=graph, secrets=Secrets.of_seed(5, ROUND, client))
            for client in graph.clients
        }
        self.up: list[dict[int, bytes]] = [{}, {}, {}, {}]
        self.down: list[dict[int, bytes]] = []

    def heard(self, stage: int) -> list[int]:
        """The clients that have not dropped out by the end of a stage."""
        return [client for client in self.clients if self.drops.get(client, 4) > stage]

    def make(self, stage: int, client: int) -> bytes:
        """A client's message of a stage."""
        end = self.clients[client]
        if stage == 0:
            return end.advertise_keys().encode()
        data = self.down[stage - 1][client]
        if stage == 1:
            return end.share_keys(KeyList.decode(data)).encode()
        if stage == 2:
            return end.masking(ShareList.decode(data)).input(self.vectors[client].copy()).encode()
        return end.unmask(UnmaskRequest.decode(data)).encode()

    def until(self, stage: int) -> "Play":
        """Play the stages before one, and make the messages of that one without sending them."""
        for now in range(stage + 1):
            self.up[now] = {client: self.make(now, client) for client in self.heard(now)}
            if now < stage:
                self.send(now)
        return self

    def send(self, stage: int) -> None:
        """Send a stage's messages and end it."""
        for data in self.up[stage].values():
            self.server.receive(data)
        self.down.append({client: message.encode() for client, message in self.server.next().items()})

    def sum(self) -> np.ndarray:
        """Play all of it."""
        self.until(3).send(3)
        return self.server.sum()

    @property
    def expected(self) -> np.ndarray:
        """The sum of those that have sent their vector."""
        return np.sum([self.vectors[client] for client in self.heard(2)], axis=0, dtype=np.uint64)

    @property
    def succeeds(self) -> bool:
        """Whether enough holders of every secret that is needed are there in every stage."""
        one, two, three, four = (set(self.heard(stage)) for stage in range(4))
        holders = {client: set(own) for client, own in self.graph.holders.items()}
        needed = {c for c in two if c in three or three & set(self.graph.neighbours[c])}
        pairs = [(one, one), (two, two), (needed, three), (needed, four)]
        return all(bool(there) and all(len(holders[c] & there) >= self.graph.threshold for c in those)
                   for those, there in pairs)  # fmt: skip
