"""The messages between controller and workers, and the layout of the tensors sent with them: bytes, never pickled.

A message is a small picklable dataclass. Its tensors go in one buffer, laid out as `Specs` describe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flrl.types import Broadcast, ClientReport, ClientTask, Tensors
from flrl.worker import EvaluationPart, EvaluationShare

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Specs:
    """The layout of tensors in a buffer of bytes.

    Attributes:
        entries: name, dtype, shape and first byte of each tensor.
        nbytes: length of the buffer.
    """

    entries: Sequence[tuple[str, str, tuple[int, ...], int]] = ()
    nbytes: int = 0

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Specs":
        """The layout of a buffer for the given tensors."""
        entries, start = [], 0
        for name, tensor in tensors.items():
            entries.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), start))
            start += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(entries), start)

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The tensors in a buffer (uint8, at least `nbytes` long) under their names, as views of it."""
        found = {}
        for name, dtype, shape, start in self.entries:
            kind: torch.dtype = getattr(torch, dtype)
            size = torch.Size(shape).numel() * kind.itemsize
            found[name] = buffer[start : start + size].view(kind).view(shape)
        return found

    def fill(self, buffer: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors into a buffer."""
        for name, view in self.views(buffer).items():
            view.copy_(tensors[name].detach())


# From the controller.


@dataclass(frozen=True, slots=True)
class Train:
    """Train these clients; the broadcast vector and variables come with it for all, the clients' memory for each.

    Attributes:
        round: the round.
        total_weight: the sum of the whole cohort's weights.
        tasks: the worker's clients, without their memory.
        cohort: ids of all clients that take part.
    """

    round: int
    total_weight: float
    tasks: Sequence[ClientTask]
    cohort: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate this share of what is due; the vector comes with it for all, personal parts for each."""

    round: int
    share: EvaluationShare


@dataclass(frozen=True, slots=True)
class Restore:
    """Begin with what the worker's own clients remembered after a round; the index of its files comes with it.

    Attributes:
        round: the round.
        folder: the run's.
        described: what `ClientIndex.described` gave.
    """

    round: int
    folder: Path
    described: Mapping[str, Any]


# From a worker.


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has been made.

    Attributes:
        process: its number.
        host: the machine.
        warnings: what the user should see.
    """

    process: int
    host: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A client's training begins; with the reports of those before it, whose memory comes at the end."""

    client_id: int
    reports: Sequence[ClientReport]


@dataclass(frozen=True, slots=True)
class Trained:
    """All clients have been trained. Their memory comes with it, and what the reducer sends besides its summand.

    Attributes:
        numbers: what the reducer's parcel holds of whole numbers.
        reports: of the clients since the last message.
        changed: ids of the clients whose memory comes with it, or is to be forgotten.
        described: of the index of the worker's client memory, which comes with it, where that stays with the worker.
        warnings: what the user should see.
    """

    numbers: Mapping[str, int]
    reports: Sequence[ClientReport]
    changed: Sequence[int] = ()
    described: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """The worker's clients remember what they did."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The share has been evaluated; with what the user should see besides."""

    part: EvaluationPart
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """Something was raised.

    Attributes:
        error: its type and text.
        client_id: whose training it was, if any.
        traceback: where.
        warnings: what the user should see besides.
    """

    error: str
    client_id: int | None
    traceback: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Terminating:
    """SIGTERM has asked the worker to end: it does nothing more."""


VECTOR = "vector"


def of_broadcast(broadcast: Broadcast) -> dict[str, Tensor]:
    """What all workers are sent of a broadcast: its variables, whatever their names, beside its vector."""
    return {VECTOR: broadcast.vector, **prefixed("variables", broadcast.variables)}


def prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors under the names `<prefix>/<name>`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def with_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """What `prefixed` was given, out of tensors that hold others too."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def by_name(memory: Mapping[int, Tensors]) -> dict[str, Tensor]:
    """The clients' tensors under the names `<client id>/<name>`."""
    return {f"{client}/{name}": tensor for client, tensors in memory.items() for name, tensor in tensors.items()}


def by_client(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """What `by_name` was given."""
    found: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        client_id, name = full.split("/", 1)
        found.setdefault(int(client_id), {})[name] = tensor
    return found
