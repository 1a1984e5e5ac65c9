"""Clipping: bounds the Euclidean norm of a client's update by scaling it down."""

import math
from dataclasses import replace

from flrl.transforms.base import Transform, check_covers, covered
from flrl.types import ClientUpdate, Context, Metrics, Tensors


class ClipNorm(Transform):
    """Scales an update whose norm is above `max_norm` down to it; reports the number of clients with a `clipped` one.

    Args:
        max_norm: the bound, positive.
        covers: what is measured and scaled as one vector: "trainable" (the update's trainable part), "update" (the
            update with its buffers) or "all" (also SCAFFOLD's variates and all other vectors sent).

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, max_norm: float, covers: str = "update") -> None:
        if not max_norm > 0:
            raise ValueError(f"strategy.transforms.clip_norm.max_norm={max_norm}: must be positive")
        check_covers("clip_norm", covers)
        self.max_norm, self.covers = max_norm, covers

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Clip the client's update."""
        parts = covered(update.vectors, self.covers, context.layout)
        norm = math.hypot(*(float(update.vectors[name][part].norm()) for name, part in parts))
        if not norm > self.max_norm:
            return update, memory, {"clipped": 0.0}
        vectors = dict(update.vectors)
        for name, part in parts:
            vectors[name] = vectors[name].clone()
            vectors[name][part] *= self.max_norm / norm
        return replace(update, vectors=vectors), memory, {"clipped": 1.0}
