"""Clipping: the Euclidean norm of what a client sends is bounded, by scaling it down."""

import math
from dataclasses import replace

from flrl.transforms.base import Context, Transform, check_covers, covered
from flrl.types import ClientUpdate, Metrics, Tensors


class ClipNorm(Transform):
    """Scales down what is longer than `max_norm`; counts the clients whose update was `clipped`.

    Args:
        max_norm: the bound, positive.
        covers: what is measured and scaled as one vector: "trainable" (the update's trainable part), "update" (the
            update with its buffers) or "all" (also SCAFFOLD's variates and whatever else is sent).
    """

    def __init__(self, *, max_norm: float, covers: str = "update") -> None:
        if not max_norm > 0:
            raise ValueError(f"strategy.transforms.clip_norm.max_norm={max_norm}: must be positive")
        check_covers("clip_norm", covers)
        self.max_norm, self.covers = max_norm, covers

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Clip."""
        parts = covered(update.vectors, self.covers, context.layout)
        norm = math.hypot(*(float(update.vectors[name][part].norm()) for name, part in parts))
        if not norm > self.max_norm:
            return update, memory, {"clipped": 0.0}
        vectors = dict(update.vectors)
        for name, part in parts:
            vectors[name] = vectors[name].clone()
            vectors[name][part] *= self.max_norm / norm
        return replace(update, vectors=vectors), memory, {"clipped": 1.0}
