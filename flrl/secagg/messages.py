"""The messages between clients and server, and their bytes.

Every message begins with its kind, its round and the client that sends or gets it. Numbers are little-endian; ids,
rounds and counts have 4 bytes, the length of a vector 8.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from flrl.errors import RefusedMessageError
from flrl.secagg.crypto import KEY_BYTES, TAG_BYTES
from flrl.secagg.shamir import PRIME, SHARE_BYTES

_HEADER = struct.Struct("<BII")
HEADER_BYTES = _HEADER.size
_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")
SEALED_BYTES = 2 * SHARE_BYTES + TAG_BYTES
"""Length of the two shares that a client sends to another, encrypted."""


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """What all messages have.

    Attributes:
        round: the round, counted from 1.
        client: the client that sends it, or that the server sends it to.
    """

    kind: ClassVar[int]
    round: int
    client: int

    def encode(self) -> bytes:
        """The message as bytes."""
        return _HEADER.pack(self.kind, self.round, self.client) + self.body()

    def body(self) -> bytes:
        """What comes after the header."""
        raise NotImplementedError

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The message that was encoded.

        Raises:
            RefusedMessageError: the bytes are no message of this class.
        """
        message = decode(data)
        if not isinstance(message, cls):
            raise RefusedMessageError(f"secagg: {type(message).__name__} from client {message.client} is out of turn")
        return message

    @classmethod
    def read(cls, round: int, client: int, body: memoryview) -> Self:
        """The message with this body; any error in it is a ValueError or struct.error."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False)
class AdvertiseKeys(Message):
    """Stage 1, up: a client's public keys for channels and for masks."""

    kind = 1
    channel: bytes
    masking: bytes

    def body(self) -> bytes:
        """Both keys."""
        return self.channel + self.masking

    @classmethod
    def read(cls, round: int, client: int, body: memoryview) -> Self:
        """See `Message`."""
        if len(body) != 2 * KEY_BYTES:
            raise ValueError("two keys")
        return cls(round, client, bytes(body[:KEY_BYTES]), bytes(body[KEY_BYTES:]))


@dataclass(frozen=True, slots=True, eq=False)
class _ByClient(Message):
    """A message with as many bytes for each of some other clients."""

    width: ClassVar[int]
    parts: Mapping[int, bytes]

    def body(self) -> bytes:
        """The number of clients; each one's id and bytes."""
        return _COUNT.pack(len(self.parts)) + b"".join(_COUNT.pack(c) + part for c, part in self.parts.items())

    @classmethod
    def read(cls, round: int, client: int, body: memoryview) -> Self:
        """See `Message`."""
        (count,), step = _COUNT.unpack_from(body), _COUNT.size + cls.width
        if len(body) != _COUNT.size + count * step:
            raise ValueError(f"{count} clients")
        starts = range(_COUNT.size, len(body), step)
        parts = {_COUNT.unpack_from(body, i)[0]: bytes(body[i + _COUNT.size : i + step]) for i in starts}
        if len(parts) != count:
            raise ValueError("a client twice")
        return cls(round, client, parts)


@dataclass(frozen=True, slots=True, eq=False)
class KeyList(_ByClient):
    """Stage 1, down: the public keys of a client's neighbours, that for channels and that for masks."""

    kind = 2
    width = 2 * KEY_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class ShareKeys(_ByClient):
    """Stage 2, up: a client's shares for each of its neighbours, encrypted."""

    kind = 3
    width = SEALED_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class ShareList(_ByClient):
    """Stage 2, down: the shares that a client's neighbours have sent to it."""

    kind = 4
    width = SEALED_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class MaskedInput(Message):
    """Stage 3, up: a client's vector with all of its masks, uint64 `[n]`."""

    kind = 5
    words: np.ndarray

    def body(self) -> bytes:
        """Their number, and the words."""
        return _LENGTH.pack(len(self.words)) + self.words.astype("<u8", copy=False).tobytes()

    @classmethod
    def read(cls, round: int, client: int, body: memoryview) -> Self:
        """See `Message`."""
        (length,) = _LENGTH.unpack_from(body)
        if len(body) != _LENGTH.size + 8 * length:
            raise ValueError(f"{length} words")
        return cls(round, client, np.frombuffer(body, "<u8", offset=_LENGTH.size))


@dataclass(frozen=True, slots=True, eq=False)
class UnmaskRequest(Message):
    """Stage 3, down: the clients whose vectors are in the sum, of those whose shares the client has."""

    kind = 6
    survivors: tuple[int, ...]

    def body(self) -> bytes:
        """Their number and ids."""
        return struct.pack(f"<I{len(self.survivors)}I", len(self.survivors), *self.survivors)

    @classmethod
    def read(cls, round: int, client: int, body: memoryview) -> Self:
        """See `Message`."""
        (count,) = _COUNT.unpack_from(body)
        survivors = struct.unpack(f"<I{count}I", body)[1:]
        if len(set(survivors)) != count:
            raise ValueError("a client twice")
        return cls(round, client, survivors)


OWN, MASKING = 0, 1
"""The two kinds of shares: of the seed of a client's own mask, and of its private key of the masks in common."""


@dataclass(frozen=True, slots=True, eq=False)
class UnmaskShares(Message):
    """Stage 4, up: one share of each client, either of its own mask or of its key, by client: kind and share."""

    kind = 7
    shares: Mapping[int, tuple[int, int]]

    def body(self) -> bytes:
        """Their number; each client's id, the kind, and the share in 33 bytes."""
        parts = (struct.pack("<IB", c, kind) + share_bytes(share) for c, (kind, share) in self.shares.items())
        return _COUNT.pack(len(self.shares)) + b"".join(parts)

    @classmethod
    def read(cls, round: int, client: int, body: memoryview) -> Self:
        """See `Message`."""
        (count,), step = _COUNT.unpack_from(body), _COUNT.size + 1 + SHARE_BYTES
        if len(body) != _COUNT.size + count * step:
            raise ValueError(f"{count} shares")
        shares = {}
        for start in range(_COUNT.size, len(body), step):
            origin, kind = struct.unpack_from("<IB", body, start)
            shares[origin] = kind, read_share(body[start + 5 : start + step])
            if kind not in (OWN, MASKING):
                raise ValueError(f"kind {kind}")
        if len(shares) != count:
            raise ValueError("a client twice")
        return cls(round, client, shares)


def share_bytes(share: int) -> bytes:
    """A share as 33 bytes."""
    return share.to_bytes(SHARE_BYTES, "little")


def read_share(data: bytes | memoryview) -> int:
    """The inverse of `share_bytes`.

    Raises:
        RefusedMessageError: it is no element of the field.
    """
    share = int.from_bytes(data, "little")
    if share >= PRIME:
        raise RefusedMessageError("secagg: a share is not in the field")
    return share


_CLASSES: tuple[type[Message], ...] = (
    AdvertiseKeys,
    KeyList,
    ShareKeys,
    ShareList,
    MaskedInput,
    UnmaskRequest,
    UnmaskShares,
)
_BY_KIND = {cls.kind: cls for cls in _CLASSES}


def decode(data: bytes) -> Message:
    """The message that was encoded.

    Raises:
        RefusedMessageError: the bytes are no message.
    """
    try:
        kind, round, client = _HEADER.unpack_from(data)
        return _BY_KIND[kind].read(round, client, memoryview(data)[HEADER_BYTES:])
    except (struct.error, ValueError, KeyError) as error:
        raise RefusedMessageError(f"secagg: {len(data)} bytes are no message: {error}") from error


# The lengths of what a client sends, which do not depend on what is in it.


def advertise_bytes() -> int:
    """Length of `AdvertiseKeys`."""
    return HEADER_BYTES + 2 * KEY_BYTES


def share_keys_bytes(others: int) -> int:
    """Length of `ShareKeys` for so many other clients."""
    return HEADER_BYTES + _COUNT.size + others * (_COUNT.size + SEALED_BYTES)


def masked_bytes(words: int) -> int:
    """Length of `MaskedInput` with so many words."""
    return HEADER_BYTES + _LENGTH.size + 8 * words


def unmask_bytes(origins: int) -> int:
    """Length of `UnmaskShares` of so many clients."""
    return HEADER_BYTES + _COUNT.size + origins * (_COUNT.size + 1 + SHARE_BYTES)
