"""Stochastic quantisers: each number becomes one of two neighbouring levels at random, so that its mean is unbiased.

QSGD: Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization and
Encoding", NeurIPS 2017, arXiv 1610.02132: the variance is at most min(d/s^2, sqrt(d)/s) ||v||^2. TernGrad: Wen, Xu,
Yan, Wu, Wang, Chen, Li, "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning", NeurIPS
2017, arXiv 1705.07878. Integers after a random rotation: Suresh, Yu, Kumar, McMahan, "Distributed Mean Estimation with
Limited Communication", ICML 2017, arXiv 1611.00429.
"""

from typing import Literal

import numpy as np
import torch

from flrl.layout import ParameterLayout
from flrl.transforms.compression.base import Per, TrainableCompressor, check_per, draw_seed, spread, starts_of
from flrl.transforms.compression.codecs import Reader, Writer
from flrl.transforms.compression.rotation import padded, rotated, rotated_back
from flrl.types import Context, Metrics, Tensors


class QSGD(TrainableCompressor):
    """Sends the Euclidean norm and for each number one of `levels` shares of it, with its sign.

    Args:
        levels: s in the paper, at least 1: a number is a multiple of norm / s.
        per: what has a norm of its own: "vector", "parameter", or a number of consecutive numbers (a bucket).

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, levels: int = 16, per: Per = 512) -> None:
        if not 1 <= levels < 2**24:
            raise ValueError(f"strategy.transforms.qsgd.levels={levels}: must be at least 1 and below 2^24")
        check_per("qsgd", per)
        super().__init__()
        self.levels, self.per = levels, per
        self.contracts = isinstance(per, int) and min(per / levels**2, per**0.5 / levels) < 1

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """Norms, then levels."""
        starts = starts_of(self.per, context.layout)
        write_levels(writer, values, starts, self.levels, "l2", context.generator)
        return {}, {}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """Levels times norms."""
        return read_levels(reader, layout.num_trainable, starts_of(self.per, layout), self.levels)


class Integers(TrainableCompressor):
    """Sends the largest magnitude and each number as a whole number of few bits, the largest magnitude's being the end.

    Args:
        bits: of each number, 2 to 16: 8 has the levels -127 to 127.
        per: what has a scale of its own: "vector", "parameter", or a number of consecutive numbers.
        rotate: whether the numbers are rotated at random before, which makes their range small.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, bits: int = 8, per: Per = 512, rotate: bool = False) -> None:
        if not 2 <= bits <= 16:
            raise ValueError(f"strategy.transforms.integers.bits={bits}: must be 2 to 16")
        check_per("integers", per)
        if rotate and per == "parameter":
            raise ValueError("strategy.transforms.integers.per=parameter: what is rotated has no parameters any more")
        super().__init__()
        self.bits, self.per, self.rotate = bits, per, rotate
        self.contracts = isinstance(per, int) and per < 4 * (2 ** (bits - 1) - 1) ** 2

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """The seed of the rotation, scales, levels."""
        if self.rotate:
            seed = draw_seed(context.generator)
            writer.whole([seed], "<i8")
            values = rotated(values, seed)
        write_levels(writer, values, self._starts(context.layout), 2 ** (self.bits - 1) - 1, "max", context.generator)
        return {}, {}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """Levels times scales, rotated back."""
        size = layout.num_trainable
        seed = int(reader.whole(1, "<i8")[0]) if self.rotate else None
        length = padded(size) if self.rotate else size
        found = read_levels(reader, length, self._starts(layout), 2 ** (self.bits - 1) - 1)
        return found if seed is None else rotated_back(found, seed, size)

    def _starts(self, layout: ParameterLayout) -> np.ndarray:
        if self.rotate and isinstance(self.per, int):
            return np.arange(0, padded(layout.num_trainable), self.per)
        return starts_of(self.per, layout)


class TernGrad(TrainableCompressor):
    """Sends the largest magnitude and for each number -1, 0 or 1.

    Args:
        clip: numbers are first cut at so many standard deviations, 2.5 in the paper, which makes them biased; null cuts
            none.
        per: what has a scale of its own: "parameter" as in the paper, "vector", or a number of consecutive numbers.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, clip: float | None = None, per: Per = "parameter") -> None:
        if clip is not None and not 0 < clip < float("inf"):
            raise ValueError(f"strategy.transforms.terngrad.clip={clip}: must be positive and finite, or null")
        check_per("terngrad", per)
        super().__init__()
        self.clip, self.per = clip, per

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """Scales, then levels."""
        starts = starts_of(self.per, context.layout)
        if self.clip is not None and values.size:
            counts = np.diff(starts, append=values.size)
            centred = values - spread(np.add.reduceat(values, starts) / counts, starts, values.size)
            deviations = np.sqrt(np.add.reduceat(centred * centred, starts) / counts)
            bound = spread(self.clip * deviations, starts, values.size)
            values = np.clip(values, -bound, bound)
        write_levels(writer, values, starts, 1, "max", context.generator)
        return {}, {}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """Levels times scales."""
        return read_levels(reader, layout.num_trainable, starts_of(self.per, layout), 1)


def write_levels(
    writer: Writer,
    values: np.ndarray,
    starts: np.ndarray,
    levels: int,
    norm: Literal["l2", "max"],
    generator: torch.Generator,
) -> None:
    """Write values `[n]` as levels from `-levels` to `levels` of their part's norm, rounded at random without bias.

    Norms are sent as float32, rounded up, so that no number is above its norm.
    """
    if not values.size:
        return
    sizes = np.abs(values)
    scales = np.maximum.reduceat(sizes, starts)
    if norm == "l2":
        highest = np.where(scales > 0, scales, 1.0)
        shares = sizes / spread(highest, starts, values.size)
        scales = scales * np.sqrt(np.add.reduceat(shares * shares, starts))
    nearest = scales.astype(np.float32)
    nearest = np.where(nearest < scales, np.nextafter(nearest, np.float32(np.inf)), nearest)
    writer.floats(nearest.astype(np.float64), torch.float32)
    scales = spread(np.where(nearest > 0, nearest, 1).astype(np.float64), starts, values.size)
    exact = sizes / scales * levels
    low = np.floor(exact)
    up = torch.rand(values.size, generator=generator, dtype=torch.float64).numpy() < exact - low
    writer.levels(np.where(values < 0, -1, 1) * (low + up).astype(np.int64), levels)


def read_levels(reader: Reader, size: int, starts: np.ndarray, levels: int) -> np.ndarray:
    """The values that `write_levels` has sent, float64 `[size]`."""
    scales = reader.floats(len(starts), torch.float32)
    found: np.ndarray = spread(scales / levels, starts, size) * reader.levels(size, levels)
    return found
