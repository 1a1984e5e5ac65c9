"""The values that travel between the parts of a round: frozen dataclasses without behaviour.

A *vector* is always the flat form of a model that `flrl.layout.ParameterLayout` describes: shape `[layout.size]`, the
trainable part first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from flrl.clients import ClientMemory, VersionedMemory

Tensors = Mapping[str, Tensor]
"""Tensors by name: variables of a server, the memory of a client, the vectors of an update."""
Metrics = Mapping[str, float]
"""Numbers to report, by name."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """All that a federation knows between two rounds; a checkpoint is this and nothing else.

    Attributes:
        round: rounds completed; 0 before training.
        vector: the global model, shape `[layout.size]`.
        optimizer: the server optimizer's state, by name (`momentum_buffer`, `exp_avg`, ...).
        variables: further server tensors of the strategy, by name.
        memory: client memory, by client id; only clients that remember something appear.

    Raises:
        ValueError: `memory` is another mapping than a client memory.
    """

    round: int
    vector: Tensor
    optimizer: Tensors = field(default_factory=dict)
    variables: Tensors = field(default_factory=dict)
    memory: VersionedMemory = field(default_factory=ClientMemory)

    def __post_init__(self) -> None:
        if not isinstance(self.memory, VersionedMemory):
            raise ValueError(
                f"memory={type(self.memory).__name__}: must be a client memory: ClientMemory().updated(...)"
            )


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What the server sends to every client of one round.

    Attributes:
        round: the round being trained, counted from 1.
        vector: the global model.
        total_weight: the sum of the cohort's weights, were every update to arrive; it scales the exact sum.
        variables: further tensors that the clients need.
        cohort: ids of the clients that take part, ascending.
        payload: bytes of each thing that a client is sent, by name.
    """

    round: int
    vector: Tensor
    total_weight: float
    variables: Tensors = field(default_factory=dict)
    cohort: Sequence[int] = ()
    payload: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientTask:
    """One client's part in one round.

    Attributes:
        round: the round being trained, counted from 1.
        client_id: index of the client, from 0.
        num_samples: training samples of the client.
        weight: the client's weight in the mean, usually `num_samples`.
        memory: what the client remembered when it last took part.
        batch: index of the client batch, whose clients may train side by side; None trains alone.
    """

    round: int
    client_id: int
    num_samples: int
    weight: float
    memory: Tensors = field(default_factory=dict)
    batch: int | None = None


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What one client sends back, before it is added to those of the others.

    Attributes:
        client_id: index of the client.
        weight: its weight in the mean.
        vectors: float64 vectors to average; `update` (local minus global model) is always there.
        metrics: numbers to report, `train/loss` among them.
        num_steps: optimizer steps taken.
        payload: bytes of each thing that it sends, by name; whoever changes what is sent changes this.
        memory: all that the client remembers until it next takes part; empty forgets what it has remembered.
    """

    client_id: int
    weight: float
    vectors: Tensors
    metrics: Metrics
    num_steps: int
    payload: Mapping[str, int] = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What remains of a client's update once its vectors have been added to those of the others.

    Attributes:
        client_id: index of the client.
        num_samples: training samples of the client.
        num_steps: optimizer steps taken.
        metrics: the numbers the client reported.
        up_bytes: bytes sent to the server.
        rejected: why the update was left out of the sum, or None.
        checksum: `flrl.layout.checksum` of the vectors that the client sent; empty if it sent none.
        memory: all that the client remembers until it next takes part; None: what it remembered before.
    """

    client_id: int
    num_samples: int
    num_steps: int
    metrics: Metrics
    up_bytes: int
    rejected: str | None = None
    checksum: str = ""
    memory: Tensors | None = None


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A round's outcome, the same on every backend.

    Attributes:
        vectors: what the clients' float64 vectors have become, by name: their weighted means, say; zeros where the
            cohort was empty.
        total_weight: the sum of the accepted updates' weights.
        reports: one per client of the cohort, in the order of client ids.
        share: `total_weight` over the weight of all clients, in (0, 1]; the round loop sets it, backends do not.
    """

    vectors: Tensors
    total_weight: float
    reports: Sequence[ClientReport]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What is known of a round afterwards: a row of `metrics.jsonl`, and the clients' reports.

    Attributes:
        round: the round, counted from 1; 0 is the model before training.
        metrics: name to value; `digest` is kept apart.
        digest: SHA-256 of the global model's bytes after the round.
        reports: one per client of the cohort, while the record is the newest; empty in earlier ones, and in rows read
            back from a file.
    """

    round: int
    metrics: Metrics
    digest: str
    reports: Sequence[ClientReport] = ()
