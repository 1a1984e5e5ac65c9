"""The base class of transforms between a client's training and the aggregate: clipping, noise, compression, masks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from flrl.layout import ParameterLayout
from flrl.types import Broadcast, ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from flrl.aggregation import Reducer
    from flrl.encryption import KeyHolder
    from flrl.setup import Setup


@dataclass(frozen=True, slots=True)
class AtClient:
    """A client's model and samples, which a transform may measure where the client is: nothing of it is sent.

    Attributes:
        module: the module with the model that the client was sent, in evaluation mode.
        batches: the client's training samples in their fixed order, as arguments of `call`.
        call: the module's training step on a batch, with gradients, without logging.
    """

    module: nn.Module
    batches: Iterable[Any]
    call: Callable[[Any], Any]


class Transform:
    """Base class of transforms, whose methods do nothing. A transform holds settings; its state is passed in and out.

    Transforms are in `strategy.transforms` by name, in order. Each client's update goes through their `client` methods
    in this order on the worker; the aggregate goes through their `server` methods in reverse order. Both return numbers
    to report as `transforms/<name>/<number>`: those of clients are summed over the cohort.
    """

    hides_updates = False
    """Whether what a client sends says nothing without the others' (secure aggregation): only sums are observable."""

    bounds_sensitivity = False
    """Whether it is a `flrl.privacy.Mechanism`: it bounds what a client contributes, and noise is added to that."""
    keeps_norm = False
    """Whether an update's Euclidean norm never becomes larger, and nothing is added that was kept from earlier ones."""
    fills_zeros = False
    """Whether numbers of an update that are 0 become others at the client, as with noise."""
    encodes = False
    """Whether it makes a buffer of the update, which is what is sent: `flrl.transforms.compression`."""
    needs_addends = False
    """Whether it finds in `context.sent` the largest number of updates in a sum, as `addends`."""
    repeatable = True
    """Whether a run with it has the same digests each time."""

    def check(self, setup: "Setup") -> None:
        """Raise ValueError for parts of a setup that the transform cannot be combined with; before any round."""

    def measure(self, at_client: AtClient) -> Tensors:
        """Tensors computed from the client's samples, by name, which `client` finds in `context.measured`.

        It runs once for each update, where the client is, only for transforms that override it.
        """
        return {}

    def vector_sizes(self, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Number of elements of each vector that `client` returns, from those that it is given; the same by default."""
        return sizes

    def sends(self, state: Tensors) -> Tensors:
        """What the server sends to every client for this transform, by name: `client` finds it in `context.sent`.

        Args:
            state: this transform's part of the server's variables, by name.
        """
        return {}

    def broadcast(self, broadcast: Broadcast, state: Tensors, context: Context) -> tuple[Broadcast, Tensors]:
        """Transform what the server sends to the clients of a round, before any of them is trained.

        Args:
            broadcast: what is sent so far; `payload` has its bytes.
            state: this transform's part of the server's variables, by name.
            context: the round.

        Returns:
            The broadcast, with its new payload; those of this transform's variables that change, by name.
        """
        return broadcast, {}

    def received(self, vector: Tensor, client_id: int, context: Context) -> Tensor:
        """The model as one client gets it, from what was sent to all: `[layout.size]`, a new tensor if it changes."""
        return vector

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """Transform a client's update.

        Args:
            update: the update so far; `payload` has the bytes of each of its vectors when sent.
            memory: this transform's part of the client's memory, by name.
            context: the round.

        Returns:
            The update, with its new payload; this transform's new client memory; numbers to report.
        """
        return update, memory, {}

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """Transform the aggregate.

        Args:
            vectors: the aggregated vectors, float64 by name.
            state: this transform's part of the server's variables, by name.
            context: the round.

        Returns:
            The vectors; this transform's new variables; numbers to report.
        """
        return vectors, state, {}

    def key_holder(self, addends: int) -> "KeyHolder | None":
        """Who has a new private key for a round of at most so many updates; None: the transform has no keys.

        The public key is sent to the clients, and is in `context.sent`.
        """
        return None

    def reducer(self, inner: "Reducer", context: Context) -> "Reducer":
        """What reduces a round's updates on a worker, in place of the aggregator's own reducer.

        Args:
            inner: the aggregator's, empty.
            context: the round.
        """
        return inner


COVERS = ("trainable", "update", "all")
"""The part of an update that a transform covers: its trainable part, also its buffers, or all vectors sent with it."""


def check_covers(name: str, covers: str) -> None:
    """Raise ValueError unless the setting `covers` is one of `COVERS`."""
    if covers not in COVERS:
        raise ValueError(f"strategy.transforms.{name}.covers={covers!r}: must be one of {', '.join(COVERS)}")


def covered(vectors: Tensors, covers: str, layout: ParameterLayout) -> list[tuple[str, slice]]:
    """The names of the vectors that a transform covers, each with the covered slice."""
    if covers == "trainable":
        return [("update", slice(layout.num_trainable))]
    return [(name, slice(None)) for name in vectors if covers == "all" or name == "update"]
