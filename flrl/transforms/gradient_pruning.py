"""Gradient pruning: of each parameter tensor only the largest numbers are sent, and the rest is forgotten.

Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, section 5.2: gradients are safe from DLG
where more than a fifth of their numbers is pruned. `top_k` differs: it ranks all numbers of an update together, and
clients send later what they have not sent.
"""

from dataclasses import replace
from math import ceil

import torch

from flrl.transforms.base import Transform
from flrl.types import ClientUpdate, Context, Metrics, Tensors


class GradientPruning(Transform):
    """Sets all but the largest numbers of each parameter to zero; buffers are sent whole. Reports how many are sent.

    Args:
        share: share of each parameter's numbers that is sent, in (0, 1]; rounded up to a whole number.

    Raises:
        ValueError: `share` is out of range.
    """

    def __init__(self, *, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"strategy.transforms.gradient_pruning.share={share}: must be above 0 and at most 1")
        self.share = share

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Prune the client's update. Numbers that are sent cost their own bytes and those of an int32 place."""
        pruned, nbytes, sent = update.vectors["update"].clone(), 0, 0
        for entry in context.layout.entries:
            size = getattr(torch, entry.dtype).itemsize
            if entry.kind != "trainable":
                nbytes += entry.size * size
                continue
            numbers = pruned[entry.slice]
            count = ceil(self.share * entry.size)
            # A stable sort, so that the choice among equal numbers depends on their places alone.
            numbers[numbers.abs().argsort(descending=True, stable=True)[count:]] = 0
            nbytes, sent = nbytes + count * (size + 4), sent + count
        payload = {**update.payload, "update": nbytes}
        vectors = {**update.vectors, "update": pruned}
        return replace(update, vectors=vectors, payload=payload), memory, {"sent": float(sent)}
