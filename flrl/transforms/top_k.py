"""Top-k sparsification with error feedback: only the largest numbers are sent, the client keeps the rest.

Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv 1809.07599. The numbers that a client does
not send, and the rounding errors of those that it sends, are added to its update when it next takes part. Without
error feedback, ||v - top_k(v)||^2 is at most (1 - k/d) ||v||^2.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flrl.kernels import large_numbers
from flrl.layout import ParameterLayout
from flrl.transforms.compression.base import Compressor, Encoded, error_room
from flrl.transforms.compression.codecs import Bytes, Reader, Writer
from flrl.transforms.compression.sparse import first_largest, largest, likely_bound, sample, write_kept
from flrl.types import Context, Tensors


class TopK(Compressor):
    """Sends the numbers of largest magnitude, in the model's dtype, with their places; reports how many.

    Buffers are ranked among the update's numbers too.

    Args:
        share: share of the update's numbers that is sent, in (0, 1]; rounded up to a whole number.
        error_feedback: whether clients keep what they have not sent in their memory, in the model's dtype.

    Raises:
        ValueError: `share` is out of range.
    """

    contracts = True

    def __init__(self, *, share: float, error_feedback: bool = True) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"strategy.transforms.top_k.share={share}: must be above 0 and at most 1")
        super().__init__(error_feedback=error_feedback)
        self.share = share
        self.keeps_norm = not error_feedback

    def encode(self, vector: np.ndarray, memory: Tensors, context: Context) -> Encoded:
        """The places of the largest numbers, then the numbers; of equal ones the first are sent."""
        places = largest(vector, self._count(vector.size))
        writer = Writer()
        writer.places(places)
        return _encoded(
            writer,
            places,
            write_kept(writer, vector[places], vector, context.layout.dtype, shorter=self.keeps_norm),
            vector.size,
        )

    def with_error(self, vector: Tensor, memory: Tensors, context: Context) -> Encoded | None:
        """As of every compressor; in float32 in one pass, which adds the error and finds the large numbers."""
        if not self.error_feedback or context.layout.dtype != torch.float32 or not vector.numel():
            return super().with_error(vector, memory, context)
        values, count, kept = vector.contiguous().numpy(), self._count(vector.numel()), error_room(context.layout)
        error = memory["error"].cpu().contiguous().numpy() if "error" in memory else None
        some = sample(values) if error is None else sample(values) + sample(error)
        found = large_numbers(values, error, likely_bound(some, count), kept.numpy())
        if found is not None and len(found.places) < count:
            found = large_numbers(values, error, 0.0, kept.numpy())
        if found is None:
            return None
        mine = first_largest(np.abs(found.values), count)
        places, chosen = found.places[mine], found.values[mine]
        writer = Writer()
        writer.places(places)
        sent = writer.floats(chosen, torch.float32)
        kept.numpy()[places] = chosen - sent  # of all others, nothing is sent
        return replace(_encoded(writer, places, sent, values.size), memory={"error": kept})

    def decode(self, buffer: Bytes, layout: ParameterLayout) -> np.ndarray:
        """The numbers at their places, 0 elsewhere."""
        reader = Reader(buffer)
        count = self._count(layout.size)
        places = reader.places(count)
        found = np.zeros(layout.size)
        found[places] = reader.floats(count, layout.dtype)
        reader.end()
        return found

    def _count(self, size: int) -> int:
        return math.ceil(self.share * size)


def _encoded(writer: Writer, places: np.ndarray, sent: np.ndarray, size: int) -> Encoded:
    """What was written, and what it decodes to: `sent` at the places."""
    decoded = np.zeros(size)
    decoded[places] = sent
    return Encoded(writer.buffer(), numbers={"sent": float(len(places))}, decoded=decoded, places=places)
