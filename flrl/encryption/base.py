"""The two sides of a scheme that adds ciphertexts: what clients and server are given, and what the key holder has."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Protocol

import numpy as np


class Scheme(Protocol):
    """The public side of a scheme: it encrypts vectors and adds ciphertexts, and cannot decrypt any."""

    def encrypt(self, parts: np.ndarray) -> list[bytes]:
        """The ciphertexts of a vector, serialised; the same vector has others each time.

        Args:
            parts: high and low parts of the numbers, float64 `[2, n]`: multiples of 2^-24 and 2^-64, see
                `flrl.aggregation.exact_sum`.
        """

    def add(self, first: Sequence[bytes], second: Sequence[bytes]) -> list[bytes]:
        """The ciphertexts of the sum of two vectors, from the ciphertexts of each."""


class KeyHolder(Protocol):
    """Who has the private key, which is not the server: decrypts sums, and gives nobody the key."""

    @property
    def public(self) -> bytes:
        """The public key, serialised: what clients and server are given."""

    def decrypt(self, ciphertexts: Sequence[bytes], size: int) -> np.ndarray:
        """The parts of the sum of vectors that ciphertexts hold, float64 `[2, size]`."""


def require(name: str, *packages: str) -> None:
    """Raise ValueError for a choice whose packages are not installed.

    Args:
        name: of the choice.
        packages: of the extra `he`.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ValueError(f"{name}: needs {' and '.join(missing)}: pip install 'flrl[he]'")
