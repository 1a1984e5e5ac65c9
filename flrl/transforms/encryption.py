"""What transforms that encrypt updates have in common: what they cannot be combined with, and what they cost."""

import logging
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from flrl.aggregation.base import Reducer
from flrl.aggregation.mean import Mean, MeanReducer
from flrl.encryption import KeyHolder, Scheme
from flrl.transforms.base import Transform
from flrl.transforms.encrypted_sum import EncryptedSum, as_bytes
from flrl.types import ClientUpdate, Context, Metrics, Tensors

if TYPE_CHECKING:
    from flrl.setup import Setup

log = logging.getLogger(__name__)

_LONG_SECONDS = 10.0
_LARGE_BYTES = 2**26


class Encryption(Transform):
    """Base class of transforms that encrypt updates: the server adds ciphertexts, a key holder decrypts their sum.

    A key pair is made for each round. Clients are sent the public key with the model; the server's part of a round,
    `EncryptedSum`, has that one alone.

    Attributes:
        name: of the transform's yaml.
        most_seconds: an update whose encryption is estimated to take longer is refused before the first round.
    """

    hides_updates = True
    keeps_norm = True
    needs_addends = True
    name: str
    most_seconds: float | None

    def check(self, setup: "Setup") -> None:
        """Raise ValueError for rules that are no sums, for other encodings, and for models that are too large."""
        where = f"strategy.transforms.{self.name}"
        if type(setup.aggregator) is not Mean:
            rule = type(setup.aggregator).__name__
            raise ValueError(f"{where}: {rule} needs each update, and {self.name} hides them: strategy/aggregator=mean")
        if setup.strategy.schedule.overlaps:
            raise ValueError(f"{where}: needs all clients of a round to send at once: strategy/schedule=synchronous")
        places = list(setup.transforms.values())
        for key, other in list(setup.transforms.items())[places.index(self) + 1 :]:
            if type(other).client is not Transform.client:
                raise ValueError(f"{where}: {key} changes the update after it is encrypted; put {key} first")
        for key, other in setup.transforms.items():
            if other is not self and (other.hides_updates or other.encodes):
                raise ValueError(f"{where}: only sums of plain numbers can be encrypted; leave out {key}")
        self._check_cost(where, setup)

    def _check_cost(self, where: str, setup: "Setup") -> None:
        numbers = sum(setup.strategy.vector_sizes(setup.layout).values())
        addends = setup.most_updates
        count = self.ciphertexts(numbers, addends)
        seconds, sent = count * self.seconds_each(), self.nbytes(numbers, addends)
        cost = f"{numbers} numbers are {count} ciphertexts, {sent} bytes and about {seconds:.1f} s for each update"
        if self.most_seconds is not None and seconds > self.most_seconds:
            raise ValueError(f"{where}.most_seconds={self.most_seconds}: {cost}; choose a smaller model, or null")
        if seconds > _LONG_SECONDS or sent > _LARGE_BYTES:
            log.warning("%s: %s", where, cost)

    def client(self, update: ClientUpdate, memory: Tensors, context: Context) -> tuple[ClientUpdate, Tensors, Metrics]:
        """State the bytes of the client's ciphertexts, in place of those of its vectors; the reducer makes them."""
        numbers = sum(vector.numel() for vector in update.vectors.values())
        sent = self.nbytes(numbers, int(context.sent["addends"]))
        rest = {name: nbytes for name, nbytes in update.payload.items() if name not in update.vectors}
        return replace(update, payload={**rest, "ciphertexts": sent}), memory, {}

    def reducer(self, inner: Reducer, context: Context) -> Reducer:
        """A reducer that adds ciphertexts."""
        assert isinstance(inner, MeanReducer), "checked before the first round"
        scheme = self.scheme(as_bytes(context.sent["key"]), int(context.sent["addends"]))
        return EncryptedSum(inner, scheme, largest=self.largest)

    @property
    def largest(self) -> float:
        """The largest absolute value of a number that can be encrypted."""
        return float("inf")

    @abstractmethod
    def key_holder(self, addends: int) -> KeyHolder:
        """A key holder with a new key pair."""

    @abstractmethod
    def scheme(self, public: bytes, addends: int) -> Scheme:
        """The public side of the scheme, from a key holder's public key."""

    @abstractmethod
    def ciphertexts(self, numbers: int, addends: int) -> int:
        """Ciphertexts of an update with so many numbers, of which so many are added."""

    @abstractmethod
    def nbytes(self, numbers: int, addends: int) -> int:
        """Their bytes."""

    @abstractmethod
    def seconds_each(self) -> float:
        """The seconds that this machine takes for a ciphertext, measured."""
