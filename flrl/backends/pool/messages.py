"""The messages between controller and workers, and the layout of the tensors sent with them.

A message is a small dataclass, sent as a pickle. Its tensors are sent as bytes in one buffer, laid out as `Specs`
describes, and never pickled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flrl.examiner import EvaluationPart, EvaluationShare
from flrl.types import Broadcast, ClientReport, ClientTask, Tensors

_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Specs:
    """The layout of tensors in a buffer of bytes.

    Attributes:
        entries: name, dtype, shape and position of the first byte of each tensor.
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
        """Copy the tensors into a buffer (uint8, at least `nbytes` long)."""
        for name, view in self.views(buffer).items():
            view.copy_(tensors[name].detach())


# From the controller.


@dataclass(frozen=True, slots=True)
class Train:
    """Train these clients. Sent with it: the broadcast's vector and variables to all, the clients' memory to each.

    Attributes:
        round: the round, counted from 1.
        total_weight: the sum of the whole cohort's weights.
        tasks: the worker's tasks, without the clients' memory.
        cohort: ids of all clients of the round.
        later: as of the broadcast.
        first: as of the broadcast.
    """

    round: int
    total_weight: float
    tasks: Sequence[ClientTask]
    cohort: Sequence[int] = ()
    later: int = 0
    first: bool = True


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate a share of what is due after a round. Sent with it: what is broadcast to all, clients' memory to each.

    Attributes:
        round: the round that has ended.
        share: test batches and clients of this worker.
    """

    round: int
    share: EvaluationShare


@dataclass(frozen=True, slots=True)
class Restore:
    """Restore the memory of the worker's own clients from files. Sent with it: the columns of their index.

    Attributes:
        round: the round after which the clients had this memory.
        folder: the run's folder.
        described: what `ClientIndex.described` returned.
    """

    round: int
    folder: Path
    described: Mapping[str, Any]


# From a worker.


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker has been made.

    Attributes:
        process: its process id.
        host: its machine's name.
        warnings: warnings since the last message.
    """

    process: int
    host: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """A client's training begins.

    Attributes:
        client_id: the client.
        reports: of the clients finished since the last message, without their memory, which comes with `Trained`.
    """

    client_id: int
    reports: Sequence[ClientReport]


@dataclass(frozen=True, slots=True)
class Trained:
    """All of the worker's clients are trained. Sent with it: their memory or its index, and the parcel's `extras`.

    Attributes:
        numbers: the `numbers` of the reducer's parcel.
        reports: of the clients finished since the last message, without their memory.
        changed: ids of the clients whose memory has changed; one without tensors forgets what it remembered.
        described: what `ClientIndex.described` returned, where client memory stays with the worker; else None.
        warnings: warnings since the last message.
    """

    numbers: Mapping[str, int]
    reports: Sequence[ClientReport]
    changed: Sequence[int] = ()
    described: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Restored:
    """The memory of the worker's clients has been restored."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The share has been evaluated.

    Attributes:
        part: its results.
        warnings: warnings since the last message.
    """

    part: EvaluationPart
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker's code raised an error.

    Attributes:
        error: its type and text.
        client_id: the client whose training raised it; None if it was no training of a single client.
        traceback: the formatted traceback.
        warnings: warnings since the last message.
    """

    error: str
    client_id: int | None
    traceback: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Terminating:
    """The worker ends because of SIGTERM; this is its last message."""


VECTOR = "vector"
ENCODED = "encoded"


def of_broadcast(broadcast: Broadcast) -> dict[str, Tensor]:
    """A broadcast's vector, encoded if it is, and variables as tensors to send; prefixes keep their names apart."""
    encoded = VECTOR in broadcast.encoded
    model = {ENCODED: broadcast.encoded[VECTOR]} if encoded else {VECTOR: broadcast.vector}
    return {**model, **prefixed("variables", broadcast.variables)}


def prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors under the names `<prefix>/<name>`."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def with_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors whose names begin with `<prefix>/`, without it: the inverse of `prefixed`."""
    start = f"{prefix}/"
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def by_name(memory: Mapping[int, Tensors]) -> dict[str, Tensor]:
    """The clients' tensors under the names `<client id>/<name>`."""
    return {f"{client}/{name}": tensor for client, tensors in memory.items() for name, tensor in tensors.items()}


def by_client(tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    """Each client's tensors by client id: the inverse of `by_name`."""
    found: dict[int, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        client_id, name = full.split("/", 1)
        found.setdefault(int(client_id), {})[name] = tensor
    return found
