"""The values passed between the parts of a round: frozen dataclasses without behaviour.

A *vector* is always the flat form of a model that `flrl.layout.ParameterLayout` describes: shape `[layout.size]`, the
trainable part first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flrl.clients import ClientMemory, VersionedMemory
from flrl.kernels import VectorStats
from flrl.layout import ParameterLayout

Tensors = Mapping[str, Tensor]
"""Tensors by name: variables of a server, the memory of a client, the vectors of an update."""
Metrics = Mapping[str, float]
"""Numbers to report, by name."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """The state of a federation between two rounds; a checkpoint holds this and nothing else.

    Attributes:
        round: rounds completed; 0 before training.
        vector: the global model, shape `[layout.size]`.
        optimizer: the server optimizer's state, by name (`momentum_buffer`, `exp_avg`, ...).
        variables: further server tensors of the strategy, by name.
        memory: client memory, by client id; clients without memory do not appear.

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
        total_weight: the sum of the weights of all clients of the cohort, rejected or not; it scales the exact sum.
        variables: further tensors that the clients need, by name.
        cohort: ids of the clients that take part, ascending.
        payload: bytes of each thing sent to a client, by name.
        later: by how many rounds the server's step on these clients' updates is later than `round`: 0, unless a
            schedule has clients of several rounds under way.
        first: whether these clients are the first to be trained for that step.
        encoded: the buffers that are sent instead of tensors, uint8 by name: "vector" for the model, which is exactly
            what its buffer decodes to.
        kept: transforms' variables for the next state that follow from what is sent, by name; not sent.
    """

    round: int
    vector: Tensor
    total_weight: float
    variables: Tensors = field(default_factory=dict)
    cohort: Sequence[int] = ()
    payload: Mapping[str, int] = field(default_factory=dict)
    later: int = 0
    first: bool = True
    encoded: Tensors = field(default_factory=dict)
    kept: Tensors = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The round of the server's step on these clients' updates."""
        return self.round + self.later


@dataclass(frozen=True, slots=True)
class ClientTask:
    """One client's part in one round.

    Attributes:
        round: the round being trained, counted from 1.
        client_id: index of the client, from 0.
        num_samples: training samples of the client.
        weight: the client's weight in the mean, usually `num_samples`.
        memory: the client's tensors kept since it last took part, by name.
        batch: index of the client batch, whose clients are trained at once; None trains alone.
        steps: steps of each of its trainings, fewer than the trainer's settings say; None for those.
    """

    round: int
    client_id: int
    num_samples: int
    weight: float
    memory: Tensors = field(default_factory=dict)
    batch: int | None = None
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class ClientUpdate:
    """The result of one client's training, before it is reduced.

    Attributes:
        client_id: index of the client.
        weight: its weight in the mean.
        vectors: float64 vectors to average; `update` (local minus global model) is always there.
        metrics: numbers to report, `train/loss` among them.
        num_steps: optimizer steps taken.
        payload: bytes of each thing sent to the server, by name; a transform that changes what is sent changes this.
        memory: all tensors that the client keeps until it next takes part, by name; empty forgets those kept before.
        encoded: the buffers that are sent instead of vectors, uint8 by the vectors' names; each vector is exactly what
            its buffer decodes to, and `payload` has the buffer's length.
        known: what flrl's transforms know of vectors, by name, so that nobody has to look at them again; if the last
            transform is another, it is forgotten.
        dropped: why the client sends no update after all, set by a transform that knows; None if it sends one.
    """

    client_id: int
    weight: float
    vectors: Tensors
    metrics: Metrics
    num_steps: int
    payload: Mapping[str, int] = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)
    encoded: Tensors = field(default_factory=dict)
    known: Mapping[str, "Known"] = field(default_factory=dict)
    dropped: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a vector, and of no other in its place.

    Attributes:
        vector: float64 `[n]`, which nobody changes any more.
        stats: what `flrl.kernels.vector_stats` says of it; None if that is not known.
        places: the ascending places of all its numbers that are not 0, int64 `[k]`; likewise.
    """

    vector: Tensor
    stats: VectorStats | None = None
    places: Tensor | None = None


@dataclass(frozen=True, slots=True)
class ClientReport:
    """What is kept of a client's update once its vectors have been reduced.

    Attributes:
        client_id: index of the client.
        num_samples: training samples of the client.
        num_steps: optimizer steps taken.
        metrics: the numbers the client reported.
        up_bytes: bytes sent to the server.
        rejected: the rejection reason if the update was left out, else None.
        checksum: `flrl.layout.checksum` of the vectors that the client sent; empty if it sent none, or hides them.
        memory: all tensors that the client keeps until it next takes part; None keeps those it had.
        malicious: whether the adversary had it misbehave in this round.
        filtered: whether a rule that selects has left its update out of the aggregate.
        weight: its weight in the mean; 0 if it sent no update.
    """

    client_id: int
    num_samples: int
    num_steps: int
    metrics: Metrics
    up_bytes: int
    rejected: str | None = None
    checksum: str = ""
    memory: Tensors | None = None
    malicious: bool = False
    filtered: bool = False
    weight: float = 0.0


@dataclass(frozen=True, slots=True)
class Aggregate:
    """A round's outcome, the same on every backend.

    Attributes:
        vectors: the reduced float64 vectors by name, their weighted means for instance; zeros for an empty cohort.
        total_weight: the sum of the accepted updates' weights.
        reports: one per client of the cohort, in the order in which the sampler gave them.
        share: `total_weight` over the weight of all clients, in (0, 1]; the round loop sets it, backends do not.
    """

    vectors: Tensors
    total_weight: float
    reports: Sequence[ClientReport]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """The record of a completed round: a row of `metrics.jsonl`, and the clients' reports.

    Attributes:
        round: the round, counted from 1; 0 is the model before training.
        metrics: the round's numbers, by name.
        digest: SHA-256 of the global model's bytes after the round.
        reports: one per client of the cohort, while the record is the newest; empty in earlier ones, and in rows read
            back from a file.
    """

    round: int
    metrics: Metrics
    digest: str
    reports: Sequence[ClientReport] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """A round's description for transforms and aggregators.

    Attributes:
        round: the round, counted from 1.
        seed: the run's seed.
        layout: the layout of the vectors.
        cohort: ids of the clients that take part, ascending.
        total_weight: the sum of the cohort's weights, rejected updates included.
        generator: a generator on the CPU, seeded by (seed, round, client or server, the part's name).
        root: the vectors of the update of the server's root samples, float64 by name; None unless an aggregator needs
            it.
        measured: what `Transform.measure` has computed from the client's samples, by name; empty on the server.
        sent: what is sent to every client for the transform, by name: what its `sends` says; `key`, a public key,
            uint8, where it has keys; `addends`, the largest number of updates in a sum, where it needs that.
        received: the sum of the accepted updates' weights, which the means are divided by; 0 at clients.
        expected: the expected number of clients of a round, of which `cohort` is one draw; 0 at clients.
    """

    round: int
    seed: int
    layout: ParameterLayout
    cohort: Sequence[int]
    total_weight: float
    generator: torch.Generator
    root: Tensors | None = None
    measured: Tensors = field(default_factory=dict)
    sent: Tensors = field(default_factory=dict)
    received: float = 0.0
    expected: float = 0.0
