"""Signs with a scale, one bit a number.

Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: Compressed Optimisation for Non-Convex Problems", ICML 2018,
arXiv 1802.04434; with the aggregator `sign_majority`, the majority vote of arXiv 1810.05291. With error feedback,
EF-signSGD: Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression Schemes",
ICML 2019, arXiv 1901.09847: the scale ||v||_1 / d makes ||v - C(v)||^2 = (1 - ||v||_1^2 / (d ||v||^2)) ||v||^2.
"""

import numpy as np
import torch

from flrl.layout import ParameterLayout
from flrl.transforms.compression.base import Per, TrainableCompressor, check_per, spread, starts_of
from flrl.transforms.compression.codecs import Reader, Writer
from flrl.types import Context, Metrics, Tensors


class Sign(TrainableCompressor):
    """Sends the mean magnitude and the sign of each number; that of 0 is plus.

    Args:
        per: what has a scale of its own: "vector" as in the theory, "parameter", or a number of consecutive numbers.
        error_feedback: whether clients keep what they have not sent.

    Raises:
        ValueError: `per` is invalid.
    """

    contracts = True

    def __init__(self, *, per: Per = "vector", error_feedback: bool = False) -> None:
        check_per("sign", per)
        super().__init__(error_feedback=error_feedback)
        self.per = per

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """Scales, then signs."""
        starts = starts_of(self.per, context.layout)
        if values.size:
            counts = np.diff(starts, append=values.size)
            writer.floats(np.add.reduceat(np.abs(values) / spread(counts, starts, values.size), starts), torch.float32)
        writer.bits(values < 0, 1)
        return {}, {}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """Signs times scales."""
        starts = starts_of(self.per, layout)
        scales = spread(reader.floats(len(starts), torch.float32), starts, layout.num_trainable)
        found: np.ndarray = scales * (1 - 2 * reader.bits(layout.num_trainable, 1))
        return found
