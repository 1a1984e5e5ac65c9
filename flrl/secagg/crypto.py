"""Keys, agreement, encryption and generators of masks: X25519, HKDF-SHA-256, AES-256-GCM and AES-256-CTR."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from flrl.errors import RefusedMessageError
from flrl.secagg.shamir import PRIME

KEY_BYTES = 32
"""Length of private, public and symmetric keys, and of the seed of a client's own mask."""
TAG_BYTES = 16
"""By how much a ciphertext is longer than what is encrypted."""
_BLOCK = 2**15
"""Words that are masked at a time, which stay in the processor's cache: 256 KiB."""


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What a client keeps to itself in a round, 32 bytes each.

    Attributes:
        channel: private key of the channels over which it sends shares.
        masking: private key of the masks that it has in common with neighbours.
        own: seed of the mask that is its own.
        polynomials: seed of the coefficients of its shares.
    """

    channel: bytes
    masking: bytes
    own: bytes
    polynomials: bytes

    @classmethod
    def random(cls) -> "Secrets":
        """From the operating system's generator, as a deployed client draws them."""
        return cls(*(os.urandom(KEY_BYTES) for _ in range(4)))

    @classmethod
    def of_seed(cls, seed: int, round: int, client: int) -> "Secrets":
        """Those of a simulated client: who knows the run's seed knows them."""
        names = ("channel", "masking", "own", "polynomials")
        return cls(*(hashlib.sha256(f"{seed}/{round}/{client}/secagg/{name}".encode()).digest() for name in names))


def public_key(private: bytes) -> bytes:
    """The X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


class Agreement:
    """A private key with which keys are agreed upon.

    Args:
        private: of this side.
    """

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self._shared: dict[bytes, bytes] = {}

    def key(self, public: bytes, purpose: str) -> bytes:
        """The symmetric key for a purpose, which the other side has from its private and this side's public key.

        Raises:
            RefusedMessageError: the public key is a point of small order.
        """
        if public not in self._shared:
            try:
                self._shared[public] = self._private.exchange(X25519PublicKey.from_public_bytes(public))
            except ValueError as error:
                raise RefusedMessageError(f"secagg: a public key cannot be used: {error}") from error
        return HKDF(SHA256(), KEY_BYTES, None, purpose.encode()).derive(self._shared[public])


def encrypt(key: bytes, plain: bytes, described: bytes) -> bytes:
    """AES-256-GCM; the key must be used for one message alone, so that the nonce may be zero.

    Args:
        key: of this message.
        plain: what is to be encrypted.
        described: what is not sent and must be the same when it is decrypted.
    """
    return AESGCM(key).encrypt(bytes(12), plain, described)


def decrypt(key: bytes, ciphertext: bytes, described: bytes) -> bytes:
    """The inverse of `encrypt`.

    Raises:
        RefusedMessageError: the ciphertext was changed, or encrypted for something else.
    """
    try:
        return AESGCM(key).decrypt(bytes(12), ciphertext, described)
    except InvalidTag:
        raise RefusedMessageError("secagg: a ciphertext has been changed") from None


def field_elements(seed: bytes, count: int) -> list[int]:
    """So many numbers modulo `PRIME` from AES-256-CTR; they are uniform but for some 2^-127."""
    width = 48
    stream = _generator(seed).update(bytes(width * count))
    return [int.from_bytes(stream[i : i + width], "little") % PRIME for i in range(0, len(stream), width)]


def add_masks(words: np.ndarray, masks: Iterable[tuple[bytes, bool]]) -> None:
    """Add masks to words modulo 2^64, in place, or subtract them.

    Args:
        words: uint64 `[n]`, contiguous.
        masks: the key of each mask's generator, AES-256-CTR; whether it is added.
    """
    streams = [(_generator(key), added) for key, added in masks]
    zeros, mask = np.zeros(_BLOCK, np.uint64), np.empty(_BLOCK, "<u8")
    for start in range(0, len(words), _BLOCK):
        part = words[start : start + _BLOCK]
        plain, own = zeros[: len(part)].view(np.uint8).data, mask[: len(part)]
        for stream, added in streams:
            stream.update_into(plain, own.view(np.uint8).data)
            (np.add if added else np.subtract)(part, own, out=part)


def _generator(key: bytes) -> CipherContext:
    """The key stream as what encrypts zeros."""
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
