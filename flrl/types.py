"""The values that travel between the parts of a round: frozen dataclasses without behaviour.

A *vector* is always the flat form of a model that `flrl.layout.ParameterLayout` describes: shape `[layout.size]`, the
trainable part first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Memory = Mapping[str, Tensor]
"""What a strategy asks one client to remember between its rounds (control variates, optimizer state, ...)."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """All that a federation knows between two rounds; a checkpoint is this and nothing else.

    Attributes:
        round: rounds completed; 0 before training.
        vector: the global model, shape `[layout.size]`.
        optimizer: the server optimizer's state, by name (`momentum_buffer`, `exp_avg`, ...).
        variables: further server tensors of the strategy, by name.
        memory: client memory, by client id; only clients that remember something appear.
    """

    round: int
    vector: Tensor
    optimizer: Memory = field(default_factory=dict)
    variables: Memory = field(default_factory=dict)
    memory: Mapping[int, Memory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What the server sends to every client of one round.

    Attributes:
        round: the round being trained, counted from 1.
        vector: the global model.
        total_weight: the sum of the cohort's weights, were every update to arrive; it scales the exact sum.
        variables: further tensors that the strategy's client half needs.
    """

    round: int
    vector: Tensor
    total_weight: float
    variables: Memory = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientTask:
    """One client's part in one round.

    Attributes:
        round: the round being trained, counted from 1.
        client_id: index of the client, from 0.
        num_samples: training samples of the client.
        weight: the client's weight in the mean, usually `num_samples`.
        memory: what the client remembered when it last took part.
        stack: clients of the same number may train side by side; null is alone.
    """

    round: int
    client_id: int
    num_samples: int
    weight: float
    memory: Memory = field(default_factory=dict)
    stack: int | None = None


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """What one client sends back, before it is folded into the round's sum.

    Attributes:
        client_id: index of the client.
        weight: its weight in the mean.
        vectors: float64 vectors to average; `update` (local minus global model) is always there.
        metrics: numbers to report, `train/loss` among them.
        num_steps: optimizer steps taken.
        up_bytes: bytes a real client would have sent.
        memory: what the client remembers until it next takes part.
    """

    client_id: int
    weight: float
    vectors: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    num_steps: int
    up_bytes: int
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What remains of a client's update once its vectors have been folded.

    Attributes:
        client_id: index of the client.
        num_samples: training samples of the client.
        num_steps: optimizer steps taken.
        metrics: the numbers the client reported.
        up_bytes: bytes sent to the server.
        rejected: why the update was left out of the sum, or None.
        checksum: `flrl.layout.checksum` of the vectors that the client sent; empty if it sent none.
        memory: what the client remembers until it next takes part.
    """

    client_id: int
    num_samples: int
    num_steps: int
    metrics: Mapping[str, float]
    up_bytes: int
    rejected: str | None = None
    checksum: str = ""
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A round's outcome, the same on every backend.

    Attributes:
        means: weighted means of the clients' float64 vectors, by name; empty if no update was accepted.
        total_weight: the sum of the accepted updates' weights.
        reports: one per client of the cohort, in the order of client ids.
        share: `total_weight` over the weight of all clients, in (0, 1]; the round loop sets it, backends do not.
    """

    means: Mapping[str, Tensor]
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
    metrics: Mapping[str, float]
    digest: str
    reports: Sequence[ClientReport] = ()
