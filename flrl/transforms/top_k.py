"""Top-k sparsification with error feedback: only the largest numbers are sent, the client keeps the rest.

Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018, arXiv 1809.07599. The numbers that a client does
not send, and the rounding errors of those that it sends, are added to its update when it next takes part. Without
error feedback, ||v - top_k(v)||^2 is at most (1 - k/d) ||v||^2.
"""

import math

import numpy as np

from flrl.layout import ParameterLayout
from flrl.transforms.compression.base import Compressor, Encoded
from flrl.transforms.compression.codecs import Bytes, Reader, Writer
from flrl.transforms.compression.sparse import largest, write_kept
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
        count = math.ceil(self.share * vector.size)
        places = largest(vector, count)
        writer = Writer()
        writer.places(places)
        decoded = np.zeros(vector.size)
        decoded[places] = write_kept(writer, vector[places], vector, context.layout.dtype, shorter=self.keeps_norm)
        return Encoded(writer.buffer(), numbers={"sent": float(count)}, decoded=decoded)

    def decode(self, buffer: Bytes, layout: ParameterLayout) -> np.ndarray:
        """The numbers at their places, 0 elsewhere."""
        reader = Reader(buffer)
        count = math.ceil(self.share * layout.size)
        places = reader.places(count)
        found = np.zeros(layout.size)
        found[places] = reader.floats(count, layout.dtype)
        reader.end()
        return found
