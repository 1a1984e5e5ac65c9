"""The base class of compressors: an update becomes a buffer, and what the buffer decodes to is the update."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flrl.clients.pages import room
from flrl.kernels import inner_product, rounded_difference
from flrl.layout import ParameterLayout
from flrl.transforms.base import Transform
from flrl.transforms.compression.codecs import Bytes, Reader, Writer
from flrl.types import ClientUpdate, Context, Known, Metrics, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup


@dataclass(frozen=True, slots=True)
class Encoded:
    """What `Compressor.encode` returns.

    Attributes:
        buffer: what is sent, uint8 `[n]`.
        memory: what the client keeps besides the error, by name.
        numbers: to report.
        decoded: what the buffer decodes to, if it is known without decoding it.
        places: the ascending places of all its numbers that are not 0, int64 `[k]`, if they are known.
    """

    buffer: Bytes
    memory: Tensors = field(default_factory=dict)
    numbers: Metrics = field(default_factory=dict)
    decoded: np.ndarray | None = None
    places: np.ndarray | None = None


class Compressor(Transform, ABC):
    """Base class of transforms that encode a client's `update`; other vectors are sent whole.

    With error feedback a client adds what it has not sent to its next update, and keeps it in the model's dtype: Seide,
    Fu, Droppo, Li, Yu, "1-Bit Stochastic Gradient Descent", Interspeech 2014; Karimireddy, Rebjock, Stich, Jaggi,
    "Error Feedback Fixes SignSGD and other Gradient Compression Schemes", ICML 2019, arXiv 1901.09847.

    Args:
        error_feedback: whether clients keep what they have not sent.
    """

    encodes = True

    contracts = False
    """Whether ||v - C(v)||^2 is below ||v||^2 on average, or bounded, as error feedback needs."""

    def __init__(self, *, error_feedback: bool = False) -> None:
        self.error_feedback = error_feedback

    def check(self, setup: "Setup") -> None:
        """Refuse a second compressor, transforms that change what is encoded, and such as hide each update.

        Raises:
            ValueError: there is one.
        """
        own = next((name for name, part in setup.transforms.items() if part is self), type(self).__name__)
        others = {name: part for name, part in setup.transforms.items() if part is not self}
        for name, part in others.items():
            if part.hides_updates:
                raise ValueError(f"strategy.transforms.{name}: hides each update, which {own} encodes: leave one out")
            if part.encodes:
                raise ValueError(f"strategy.transforms.{name}: {own} encodes updates already, leave one of them out")
        names = list(setup.transforms)
        for name in names[names.index(own) + 1 :] if own in names else ():
            if type(others[name]).client is not Transform.client:
                raise ValueError(f"strategy.transforms.{name}: would change what {own} has encoded: put {name} first")

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Encode the update, and replace it by what the buffer decodes to.

        An update that is not finite is left as it is: it will be rejected.
        """
        given = update.vectors["update"]
        with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is rejected as infinite
            found = self.with_error(given.detach().cpu().double(), memory, context)
        if found is None:
            return update, memory, {}
        assert found.decoded is not None
        buffer, decoded = torch.from_numpy(found.buffer), torch.from_numpy(found.decoded).to(given.device)
        places = None if found.places is None else torch.from_numpy(found.places).to(given.device)
        update = replace(
            update,
            vectors={**update.vectors, "update": decoded},
            payload={**update.payload, "update": buffer.nbytes},
            encoded={"update": buffer},
            known={"update": Known(decoded, places=places)},
        )
        return update, found.memory, found.numbers

    def with_error(self, vector: Tensor, memory: Tensors, context: Context) -> Encoded | None:
        """The buffer of an update with what was kept of earlier ones, decoded too, and all that the client then keeps.

        Args:
            vector: the update, float64 `[layout.size]`, on the CPU.
            memory: as for `encode`.
            context: likewise.

        Returns:
            None if the sum is not finite.
        """
        whole = (vector + memory["error"].cpu() if "error" in memory else vector).numpy()
        if not (np.isfinite(whole.sum()) or np.isfinite(whole).all()):
            return None
        found = self.encode(whole, memory, context)
        sent = self.decode(found.buffer, context.layout) if found.decoded is None else found.decoded
        kept = dict(found.memory)
        if self.error_feedback:
            kept["error"] = error_room(context.layout)
            rounded_difference(whole, sent, kept["error"])
        return replace(found, memory=kept, decoded=sent)

    @abstractmethod
    def encode(self, vector: np.ndarray, memory: Tensors, context: Context) -> Encoded:
        """The buffer of an update.

        Args:
            vector: the update with the error, float64 `[layout.size]`, finite.
            memory: this transform's part of the client's memory, by name.
            context: the round.
        """

    @abstractmethod
    def decode(self, buffer: Bytes, layout: ParameterLayout) -> np.ndarray:
        """What a buffer says, float64 `[layout.size]`: a function of buffer, layout and settings alone.

        Raises:
            ValueError: the buffer has another length than it says.
        """


def error_room(layout: ParameterLayout) -> Tensor:
    """Uninitialised memory for a client's error, `[layout.size]` in the model's dtype."""
    return room(layout.size * layout.dtype.itemsize).view(layout.dtype)


class TrainableCompressor(Compressor):
    """Base class of compressors of the trainable part; buffers (running statistics) are sent whole in their own dtypes.

    Args:
        error_feedback: whether clients keep what they have not sent.
    """

    def encode(self, vector: np.ndarray, memory: Tensors, context: Context) -> Encoded:
        """The trainable part as `write` writes it, then the buffers."""
        writer = Writer()
        trained = context.layout.num_trainable
        kept, numbers = self.write(writer, vector[:trained], memory, context)
        for part, dtype in _buffers(context.layout):
            writer.floats(vector[part], dtype)
        return Encoded(writer.buffer(), kept, numbers)

    def decode(self, buffer: Bytes, layout: ParameterLayout) -> np.ndarray:
        """The trainable part as `read` reads it, then the buffers."""
        reader = Reader(buffer)
        parts = [self.read(reader, layout)]
        parts += [reader.floats(part.stop - part.start, dtype) for part, dtype in _buffers(layout)]
        reader.end()
        return np.concatenate(parts)

    @abstractmethod
    def write(self, writer: Writer, values: np.ndarray, memory: Tensors, context: Context) -> tuple[Tensors, Metrics]:
        """Write the trainable part; returns what the client is to keep, and numbers to report.

        Args:
            writer: takes what is sent.
            values: float64 `[layout.num_trainable]`.
            memory: this transform's part of the client's memory, by name.
            context: the round.
        """

    @abstractmethod
    def read(self, reader: Reader, layout: ParameterLayout) -> np.ndarray:
        """What `write` has written, float64 `[layout.num_trainable]`."""


def _buffers(layout: ParameterLayout) -> Iterator[tuple[slice, torch.dtype]]:
    for entry in layout.entries:
        if entry.kind == "buffer":
            yield entry.slice, getattr(torch, entry.dtype)


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product of two float64 vectors `[n]`: unlike NumPy's, with the same bits on any number of cores."""
    return inner_product(torch.from_numpy(a), torch.from_numpy(b))


def draw_seed(generator: torch.Generator) -> int:
    """A seed that is sent, so that what both sides draw from it need not be: below 2^62."""
    return int(torch.randint(2**62, (), generator=generator))


Per = Any
"""What has a scale of its own: "vector" (all trainable numbers), "parameter", or a number of consecutive numbers."""


def check_per(name: str, per: Per) -> None:
    """Raise ValueError unless the setting `per` is one that `Per` names."""
    if per in ("vector", "parameter") or (isinstance(per, int) and not isinstance(per, bool) and per >= 1):
        return
    raise ValueError(f"strategy.transforms.{name}.per={per}: must be vector, parameter, or a number from 1 on")


def starts_of(per: Per, layout: ParameterLayout) -> np.ndarray:
    """The first place of each part of the trainable numbers that has a scale of its own, int64 `[parts]`."""
    size = layout.num_trainable
    if not size:
        return np.zeros(0, np.int64)
    if per == "vector":
        return np.zeros(1, np.int64)
    if per == "parameter":
        return np.array([entry.start for entry in layout.entries if entry.kind == "trainable" and entry.size], np.int64)
    return np.arange(0, size, per)


def spread(scales: np.ndarray, starts: np.ndarray, size: int) -> np.ndarray:
    """Each part's scale for each of its numbers, float64 `[size]`."""
    return np.repeat(scales, np.diff(starts, append=size)) if size else np.zeros(0)
