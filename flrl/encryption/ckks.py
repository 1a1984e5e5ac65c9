"""The scheme CKKS by TenSEAL: fast, and approximate.

Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of Approximate Numbers", ASIACRYPT 2017, IACR 2016/421. A
ciphertext holds half as many numbers as the polynomials' degree. Only sums are taken, so one prime of 60 bits holds the
numbers, and a second one is SEAL's key modulus: 128 bits of security from a degree of 4096 on, by the table of
homomorphicencryption.org that SEAL enforces.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

MODULI = {4096: (60, 49), 8192: (60, 60), 16384: (60, 60)}
"""Bits of the primes, by degree: of the ciphertexts, and of the key."""
_DEVIATION = 3.2  # of the error distribution, as SEAL has it


def largest_number(scale_bits: int) -> float:
    """The largest absolute value of a number of a sum: it must stay below half of the prime, with a bit to spare."""
    return 2.0 ** (58 - scale_bits)


def error_bound(degree: int, scale_bits: int, addends: int) -> float:
    """The largest error of a number of a sum, but with negligible probability.

    Lemma 1 of Cheon et al.: a fresh encryption's error is at most 8 sqrt(2) s N + 6 s sqrt(N) + 16 s sqrt(h N) over the
    scale, with the errors' deviation s and the secret's Hamming weight h, 2N/3 for a ternary one. Errors add up.

    Args:
        degree: N.
        scale_bits: the scale is 2 to this power.
        addends: number of vectors in the sum.
    """
    fresh = 8 * math.sqrt(2) * degree + 6 * math.sqrt(degree) + 16 * math.sqrt(2 / 3) * degree
    return addends * _DEVIATION * fresh / 2.0**scale_bits


class CkksScheme:
    """Encrypts and adds with a public context; has no private key.

    Args:
        public: of a `CkksKeyHolder`.
        degree: of the polynomials.
    """

    def __init__(self, public: bytes, *, degree: int) -> None:
        import tenseal

        self._tenseal = tenseal
        self.slots = degree // 2
        self.context: Any = tenseal.context_from(public)

    def encrypt(self, parts: np.ndarray) -> list[bytes]:
        """The ciphertexts of a vector; one holds half as many numbers as the polynomials' degree."""
        values = parts[0] + parts[1]
        return [self._encrypted(values[start : start + self.slots]) for start in range(0, len(values), self.slots)]

    def add(self, first: Sequence[bytes], second: Sequence[bytes]) -> list[bytes]:
        """The ciphertexts of the sum of two vectors."""
        load = self._tenseal.ckks_vector_from
        return [(load(self.context, a) + load(self.context, b)).serialize() for a, b in zip(first, second, strict=True)]

    def _encrypted(self, values: np.ndarray) -> bytes:
        found: bytes = self._tenseal.ckks_vector(self.context, values.tolist()).serialize()
        return found


class CkksKeyHolder:
    """Has the private key, from the operating system's random numbers.

    Args:
        degree: of the polynomials, one of `MODULI`.
        scale_bits: numbers are multiplied by 2 to this power, and rounded.
    """

    def __init__(self, *, degree: int, scale_bits: int) -> None:
        import tenseal

        self._tenseal = tenseal
        self._context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, degree, -1, list(MODULI[degree]))
        self._context.global_scale = 2.0**scale_bits

    @property
    def public(self) -> bytes:
        """The context without the private key."""
        found: bytes = self._context.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
        )
        return found

    def decrypt(self, ciphertexts: Sequence[bytes], size: int) -> np.ndarray:
        """The parts of the sum, with an error within `error_bound`, in the high parts alone."""
        load = self._tenseal.ckks_vector_from
        values = [number for each in ciphertexts for number in load(self._context, each).decrypt()]
        return np.array([values, [0.0] * len(values)]).reshape(2, -1)[:, :size]


@cache
def ciphertext_bytes(degree: int, scale_bits: int, numbers: int) -> int:
    """The bytes of a serialised ciphertext with so many numbers."""
    scheme = CkksScheme(CkksKeyHolder(degree=degree, scale_bits=scale_bits).public, degree=degree)
    return len(scheme.encrypt(np.zeros((2, numbers)))[0])
