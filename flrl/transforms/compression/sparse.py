"""Sparsifiers besides top-k: random-k, and all numbers above a threshold.

Random-k: Wangni, Wang, Liu, Zhang, "Gradient Sparsification for Communication-Efficient Distributed Optimization",
NeurIPS 2018, arXiv 1710.09854; its exact variance (d/k - 1) ||v||^2 and contraction 1 - k/d: Stich, Cordonnier, Jaggi,
"Sparsified SGD with Memory", NeurIPS 2018, arXiv 1809.07599. Threshold: Strom, "Scalable Distributed DNN Training
using Commodity GPU Cloud Computing", Interspeech 2015; Dutta, Bergou, Abdelmoniem, Ho, Sahu, Canini, Kalnis, "On the
Discrepancy between the Theoretical Analysis and Practical Implementations of Compressed Communication for Distributed
Deep Learning", AAAI 2020, arXiv 1911.08250.
"""

import math

import numpy as np
import torch

from flrl.kernels import places_at_least
from flrl.layout import ParameterLayout
from flrl.transforms.compression.base import TrainableCompressor, draw_seed, inner
from flrl.transforms.compression.codecs import Reader, Writer
from flrl.types import Context, Metrics, Tensors


class RandomK(TrainableCompressor):
    """Sends numbers at places drawn at random, in the model's dtype, and the seed of the places; reports how many.

    Args:
        share: share of the trainable numbers that is sent, in (0, 1]; rounded up to a whole number k.
        scaled: whether they are multiplied by d/k, so that the update is unbiased.
        error_feedback: whether clients keep what they have not sent; needs `scaled=false`.

    Raises:
        ValueError: a setting is invalid.
    """

    def __init__(self, *, share: float, scaled: bool = True, error_feedback: bool = False) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"strategy.transforms.random_k.share={share}: must be above 0 and at most 1")
        if scaled and error_feedback:
            raise ValueError(
                "strategy.transforms.random_k.error_feedback=true: needs scaled=false, scaled it is no contraction"
            )
        super().__init__(error_feedback=error_feedback)
        self.share, self.scaled = share, scaled
        self.keeps_norm = not scaled and not error_feedback
        self.contracts = not scaled

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """The seed, and the numbers at its places."""
        seed = draw_seed(context.generator)
        places = self._places(seed, values.size)
        writer.whole([seed], "<i8")
        chosen = values[places] * (values.size / max(1, len(places))) if self.scaled else values[places]
        write_kept(writer, chosen, values, context.layout.dtype, shorter=self.keeps_norm)
        return {}, {"sent": float(len(places))}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """The numbers at the seed's places, 0 elsewhere."""
        found = np.zeros(layout.num_trainable)
        places = self._places(int(reader.whole(1, "<i8")[0]), layout.num_trainable)
        found[places] = reader.floats(len(places), layout.dtype)
        return found

    def _places(self, seed: int, size: int) -> np.ndarray:
        drawn = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        return drawn[: math.ceil(self.share * size)].numpy()


class Threshold(TrainableCompressor):
    """Sends all numbers that are as large as a threshold, in the model's dtype; reports how many.

    Args:
        threshold: least absolute value that is sent, positive, in the units of the update.
        error_feedback: whether clients keep what they have not sent.

    Raises:
        ValueError: `threshold` is not positive and finite.
    """

    def __init__(self, *, threshold: float, error_feedback: bool = True) -> None:
        if not 0 < threshold < float("inf"):
            raise ValueError(f"strategy.transforms.threshold.threshold={threshold}: must be positive and finite")
        super().__init__(error_feedback=error_feedback)
        self.threshold = threshold
        self.contracts = True  # what is left is bounded, which error feedback needs
        self.keeps_norm = not error_feedback

    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """How many, their places, the numbers."""
        places = places_at_least(values, self.threshold)
        writer.whole([len(places)], "<u4")
        writer.places(places)
        write_kept(writer, values[places], values, context.layout.dtype, shorter=self.keeps_norm)
        return {}, {"sent": float(len(places))}

    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """The numbers at their places, 0 elsewhere."""
        found = np.zeros(layout.num_trainable)
        count = int(reader.whole(1, "<u4")[0])
        places = reader.places(count)
        found[places] = reader.floats(count, layout.dtype)
        return found


def write_kept(writer: Writer, chosen: np.ndarray, of: np.ndarray, dtype: torch.dtype, *, shorter: bool) -> np.ndarray:
    """Write numbers chosen of a vector; if `shorter` and rounding makes them longer than it, rounded towards 0.

    Returns:
        What is read: float64 of the same length.
    """
    if shorter:
        rounded = torch.from_numpy(chosen).to(dtype)
        found = rounded.double().numpy()
        if not inner(found, found) <= inner(of, of):
            nearer = torch.nextafter(rounded, torch.zeros_like(rounded)).double().numpy()
            chosen = np.where(np.abs(found) > np.abs(chosen), nearer, found)
    return writer.floats(chosen, dtype)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """The ascending places of the `count` values `[n]` of largest magnitude; of equal ones the first."""
    if count < 1:
        return np.zeros(0, np.int64)
    likely = places_at_least(values, likely_bound(sample(values), count))
    if len(likely) < count:
        likely = np.arange(values.size)
    places: np.ndarray = likely[first_largest(np.abs(values[likely]), count)]
    return places


_SAMPLED, _OF = 8, 400


def sample(values: np.ndarray) -> np.ndarray:
    """Eight of every 400 numbers `[n]`, side by side as memory is read: `[n // 400, 8]`."""
    return values[: values.size // _OF * _OF].reshape(-1, _OF)[:, :_SAMPLED]


def likely_bound(some: np.ndarray, count: int) -> float:
    """A magnitude that somewhat more than the `count` largest numbers reach, or fewer where the sample misleads.

    Args:
        some: a `sample` of the numbers.
        count: at least 1.
    """
    magnitudes, expected = np.abs(some).reshape(-1), count * _SAMPLED / _OF
    place = magnitudes.size - int(expected + 4 * math.sqrt(expected)) - 10  # four standard deviations more
    return float(np.partition(magnitudes, place)[place]) if place > 0 else 0.0


def first_largest(magnitudes: np.ndarray, count: int) -> np.ndarray:
    """Which of magnitudes `[n]` are the `count` largest, bool `[n]`; of equal ones the first, and all of fewer."""
    if count >= magnitudes.size:
        return np.ones(magnitudes.size, bool)
    bound = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    chosen: np.ndarray = magnitudes >= bound
    if (surplus := int(chosen.sum()) - count) > 0:
        chosen[np.flatnonzero(magnitudes == bound)[-surplus:]] = False
    return chosen
