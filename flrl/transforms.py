"""Transforms stand between a client's training and the sum: clipping, noise, compression, masks, attacks.

A strategy's list of them is applied in order where the client is (`encode`) and undone in reverse order on the server
(`decode`). Each says what it did; one that never ran fails the run.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

from torch import Tensor

from flrl.types import Broadcast, ClientUpdate


class Transform(Protocol):
    """A change of what clients send."""

    name: str
    """Under `transforms/<name>/` stand its counts in `metrics.jsonl`."""

    def encode(self, update: ClientUpdate, broadcast: Broadcast, seed: int) -> tuple[ClientUpdate, dict[str, float]]:
        """The update to send instead, with its `up_bytes`; and counts of what was done, summed over the cohort."""

    def decode(self, means: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The server's half, on the weighted means."""


class ClipNorm:
    """Scale each client's update down to a Euclidean norm of at most `max_norm`; counts the clients it clipped."""

    name = "clip_norm"

    def __init__(self, *, max_norm: float) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm={max_norm}: must be positive")
        self.max_norm = max_norm

    def encode(self, update: ClientUpdate, broadcast: Broadcast, seed: int) -> tuple[ClientUpdate, dict[str, float]]:
        """Clip the client's `update`."""
        vector = update.vectors["update"]
        norm = float(vector.norm())
        if not norm > self.max_norm:
            return update, {"clipped": 0.0}
        vectors = {**update.vectors, "update": vector * (self.max_norm / norm)}
        return replace(update, vectors=vectors), {"clipped": 1.0}

    def decode(self, means: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Nothing to undo."""
        return means
