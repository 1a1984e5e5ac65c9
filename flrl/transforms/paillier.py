"""Encrypted updates whose sum is exact: Paillier's scheme, see `flrl.encryption.paillier`."""

from flrl.encryption import KeyHolder, PaillierKeyHolder, PaillierScheme, Scheme, require
from flrl.encryption.fixed_point import Packing
from flrl.encryption.paillier import plaintext_bits, seconds_each
from flrl.transforms.encryption import Encryption

_LEAST_KEY_BITS, _MOST_KEY_BITS = 256, 8192


class Paillier(Encryption):
    """Clients encrypt their updates, the server adds ciphertexts, and a key holder decrypts the sum.

    The sum is that of the exact mean, on its grid of 2^-64, so that a run has the same digests as without encryption.

    Args:
        key_bits: of the modulus, even, from 256 to 8192; below 2048 it is for tests: such a key can be broken.
        most_seconds: an update whose encryption is estimated to take longer on this machine is refused before the
            first round; None: none is.

    Raises:
        ValueError: a setting is invalid, or a package is not installed.
    """

    name = "paillier"

    def __init__(self, *, key_bits: int = 2048, most_seconds: float | None = 600.0) -> None:
        require("strategy/transforms=paillier", "phe", "gmpy2")
        if not _LEAST_KEY_BITS <= key_bits <= _MOST_KEY_BITS or key_bits % 16:
            raise ValueError(
                f"strategy.transforms.paillier.key_bits={key_bits}: must be a multiple of 16 from {_LEAST_KEY_BITS} to "
                f"{_MOST_KEY_BITS}"
            )
        if most_seconds is not None and not most_seconds > 0:
            raise ValueError(f"strategy.transforms.paillier.most_seconds={most_seconds}: must be positive, or null")
        self.key_bits, self.most_seconds = key_bits, most_seconds

    def key_holder(self, addends: int) -> KeyHolder:
        """A key holder with a new key pair."""
        return PaillierKeyHolder(key_bits=self.key_bits, addends=addends)

    def scheme(self, public: bytes, addends: int) -> Scheme:
        """The public side, from the modulus."""
        return PaillierScheme(public, addends=addends)

    def ciphertexts(self, numbers: int, addends: int) -> int:
        """Ciphertexts of an update: numbers of 92 bits and guard bits for so many addends, packed."""
        return Packing.for_sums(plaintext_bits(self.key_bits), addends).count(numbers)

    def nbytes(self, numbers: int, addends: int) -> int:
        """Their bytes: a ciphertext is a number modulo n^2."""
        return self.ciphertexts(numbers, addends) * self.key_bits // 4

    def seconds_each(self) -> float:
        """The seconds that this machine takes for a ciphertext, measured."""
        return seconds_each(self.key_bits)
