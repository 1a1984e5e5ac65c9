"""Paillier's scheme, with several numbers in each plaintext: sums are exact.

Paillier, "Public-Key Cryptosystems Based on Composite Degree Residuosity Classes", EUROCRYPT 1999; the arithmetic is
that of `phe`, with gmpy2. Numbers are integers on the exact sum's grid, 2^-64, packed with guard bits for the number
of addends (BatchCrypt, Zhang et al., USENIX ATC 2020, packs quantised gradients likewise).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from flrl.encryption.fixed_point import Packing, integers, parts


def plaintext_bits(key_bits: int) -> int:
    """Bits of a signed plaintext: its absolute value is below half of the modulus."""
    return key_bits - 2


class PaillierScheme:
    """Encrypts and adds with a public key; has no private one.

    Args:
        public: the modulus n, big endian.
        addends: the largest number of vectors in a sum.
    """

    def __init__(self, public: bytes, *, addends: int) -> None:
        from phe import PaillierPublicKey

        self.key: Any = PaillierPublicKey(int.from_bytes(public, "big"))
        self.packing = Packing.for_sums(plaintext_bits(self.key.n.bit_length()), addends)

    def encrypt(self, parts: np.ndarray) -> list[bytes]:
        """The ciphertexts of a vector."""
        packed = self.packing.pack(integers(parts))
        return [self._bytes(self.key.raw_encrypt(number % self.key.n)) for number in packed]

    def add(self, first: Sequence[bytes], second: Sequence[bytes]) -> list[bytes]:
        """The ciphertexts of the sum of two vectors: products modulo n^2."""
        return [
            self._bytes(int.from_bytes(a, "big") * int.from_bytes(b, "big") % self.key.nsquare)
            for a, b in zip(first, second, strict=True)
        ]

    def _bytes(self, ciphertext: int) -> bytes:
        return int(ciphertext).to_bytes(2 * self.key.n.bit_length() // 8, "big")


class PaillierKeyHolder:
    """Has the private key, from the operating system's random numbers.

    Args:
        key_bits: of the modulus n.
        addends: the largest number of vectors in a sum.
    """

    def __init__(self, *, key_bits: int, addends: int) -> None:
        from phe import generate_paillier_keypair

        public, self._private = generate_paillier_keypair(n_length=key_bits)
        self._n: int = public.n
        self._packing = Packing.for_sums(plaintext_bits(key_bits), addends)

    @property
    def public(self) -> bytes:
        """The modulus n, big endian."""
        return self._n.to_bytes(self._n.bit_length() // 8, "big")

    def decrypt(self, ciphertexts: Sequence[bytes], size: int) -> np.ndarray:
        """The parts of the sum, exact.

        Raises:
            OverflowError: a number of the sum is outside of the exact sum's range.
        """
        plain = [int(self._private.raw_decrypt(int.from_bytes(each, "big"))) for each in ciphertexts]
        signed = [number - self._n if number > self._n // 2 else number for number in plain]
        return parts(self._packing.unpack(signed, size))


def seconds_each(key_bits: int) -> float:
    """The seconds that this machine takes for an encryption, measured on some modulus of that size."""
    import time

    from gmpy2 import powmod

    n, best = (1 << key_bits) - 159, float("inf")
    for _ in range(3):
        started = time.perf_counter()
        powmod(n // 3, n, n * n)
        best = min(best, time.perf_counter() - started)
    return best
