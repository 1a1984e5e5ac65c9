"""Gradient pruning: of each parameter tensor only the largest numbers are sent, and the rest is forgotten.

Zhu, Liu, Han, "Deep Leakage from Gradients", NeurIPS 2019, arXiv 1906.08935, section 5.2: gradients are safe from DLG
where more than a fifth of their numbers is pruned. `top_k` differs: it ranks all numbers of an update together, and
clients send later what they have not sent.
"""

from collections.abc import Iterator
from math import ceil

import numpy as np
import torch

from flrl.layout import Entry, ParameterLayout
from flrl.transforms.compression.base import Compressor, Encoded
from flrl.transforms.compression.codecs import Bytes, Reader, Writer
from flrl.transforms.compression.sparse import largest
from flrl.types import Context, Tensors


class GradientPruning(Compressor):
    """Sends the largest numbers of each parameter with their places; buffers are sent whole. Reports how many are sent.

    Numbers are not rounded: they are sent in their own dtypes if all of an update fit, else in float64. The difference
    of two float32 models needs float64; a gradient, as with FedSGD and a learning rate of 1, does not.

    Args:
        share: share of each parameter's numbers that is sent, in (0, 1]; rounded up to a whole number.

    Raises:
        ValueError: `share` is out of range.
    """

    keeps_norm = True
    contracts = True

    def __init__(self, *, share: float) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"strategy.transforms.gradient_pruning.share={share}: must be above 0 and at most 1")
        super().__init__()
        self.share = share

    def encode(self, vector: np.ndarray, memory: Tensors, context: Context) -> Encoded:
        """Whether numbers are in float64, then each parameter's places of the largest numbers, and the numbers."""
        parts = [(entry, largest(vector[entry.slice], count), own) for entry, count, own in self._parts(context.layout)]
        wide = any(not _fits(vector[entry.slice][places], own) for entry, places, own in parts)
        writer = Writer()
        writer.whole([wide], "u1")
        for entry, places, own in parts:
            if entry.kind == "trainable":
                writer.places(places)
            writer.floats(vector[entry.slice][places], torch.float64 if wide else own)
        sent = sum(len(places) for entry, places, _ in parts if entry.kind == "trainable")
        return Encoded(writer.buffer(), numbers={"sent": float(sent)})

    def decode(self, buffer: Bytes, layout: ParameterLayout) -> np.ndarray:
        """The numbers at their places, 0 elsewhere."""
        reader = Reader(buffer)
        found = np.zeros(layout.size)
        wide = bool(reader.whole(1, "u1")[0])
        for entry, count, own in self._parts(layout):
            places = reader.places(count) if entry.kind == "trainable" else np.arange(count)
            found[entry.slice][places] = reader.floats(count, torch.float64 if wide else own)
        reader.end()
        return found

    def _parts(self, layout: ParameterLayout) -> Iterator[tuple[Entry, int, torch.dtype]]:
        """All entries, how many numbers of each are sent, and their own dtypes."""
        for entry in layout.entries:
            count = ceil(self.share * entry.size) if entry.kind == "trainable" else entry.size
            yield entry, count, getattr(torch, entry.dtype)


def _fits(values: np.ndarray, dtype: torch.dtype) -> bool:
    """Whether float64 values are the same in another dtype."""
    found = torch.from_numpy(values)
    return torch.equal(found.to(dtype).double(), found)
