"""Encrypted updates whose sum is approximate: the scheme CKKS, see `flrl.encryption.ckks`."""

import time

import numpy as np

from flrl.encryption import CkksKeyHolder, CkksScheme, KeyHolder, Scheme, require
from flrl.encryption.ckks import MODULI, ciphertext_bytes, error_bound, largest_number
from flrl.transforms.encryption import Encryption
from flrl.types import Context, Metrics, Tensors

_LEAST_SCALE_BITS, _MOST_SCALE_BITS = 20, 52


class Ckks(Encryption):
    """Clients encrypt their updates, the server adds ciphertexts, and a key holder decrypts the sum.

    The sum has an error from the encryption's own random numbers: no two runs have the same digests. A bound on it is
    reported as `error_bound`, in the units of the update.

    Args:
        poly_modulus_degree: 4096, 8192 or 16384; a ciphertext holds half as many numbers.
        scale_bits: numbers are multiplied by 2 to this power, from 20 to 52: each bit more halves the error, and the
            largest number that can be encrypted, 2^(58 - scale_bits).
        most_seconds: an update whose encryption is estimated to take longer on this machine is refused before the
            first round; None: none is.

    Raises:
        ValueError: a setting is invalid, or a package is not installed.
    """

    name = "ckks"
    repeatable = False

    def __init__(
        self, *, poly_modulus_degree: int = 8192, scale_bits: int = 40, most_seconds: float | None = 600.0
    ) -> None:
        require("strategy/transforms=ckks", "tenseal")
        where = "strategy.transforms.ckks"
        if poly_modulus_degree not in MODULI:
            among = ", ".join(map(str, MODULI))
            raise ValueError(f"{where}.poly_modulus_degree={poly_modulus_degree}: must be one of {among}")
        if not _LEAST_SCALE_BITS <= scale_bits <= _MOST_SCALE_BITS:
            limits = f"from {_LEAST_SCALE_BITS} to {_MOST_SCALE_BITS}"
            raise ValueError(f"{where}.scale_bits={scale_bits}: must be {limits}")
        if most_seconds is not None and not most_seconds > 0:
            raise ValueError(f"{where}.most_seconds={most_seconds}: must be positive, or null")
        self.degree, self.scale_bits, self.most_seconds = poly_modulus_degree, scale_bits, most_seconds

    @property
    def largest(self) -> float:
        """The largest absolute value of a number; weights are scaled so that they add up to 1 at the most."""
        return largest_number(self.scale_bits)

    def key_holder(self, addends: int) -> KeyHolder:
        """A key holder with a new key pair."""
        return CkksKeyHolder(degree=self.degree, scale_bits=self.scale_bits)

    def scheme(self, public: bytes, addends: int) -> Scheme:
        """The public side, from the public context."""
        return CkksScheme(public, degree=self.degree)

    def ciphertexts(self, numbers: int, addends: int) -> int:
        """Ciphertexts of an update."""
        return -(-numbers // (self.degree // 2))

    def nbytes(self, numbers: int, addends: int) -> int:
        """Their bytes, serialised."""
        whole, rest = divmod(numbers, self.degree // 2)
        sizes = {self.degree // 2: whole, rest: int(rest > 0)}
        return sum(n * ciphertext_bytes(self.degree, self.scale_bits, size) for size, n in sizes.items() if n)

    def seconds_each(self) -> float:
        """The seconds that this machine takes for a ciphertext, measured."""
        scheme = self.scheme(self.key_holder(1).public, 1)
        started = time.perf_counter()
        scheme.encrypt(np.zeros((2, self.degree // 2)))
        return time.perf_counter() - started

    def server(self, vectors: Tensors, state: Tensors, context: Context) -> tuple[Tensors, Tensors, Metrics]:
        """Report a bound on the error of the mean's numbers, were all of the cohort in it."""
        addends = max(1, len(context.cohort))
        # The sum's weights add up to more than a half, so the mean's error is less than twice the sum's.
        return vectors, state, {"error_bound": 2 * error_bound(self.degree, self.scale_bits, addends)}
