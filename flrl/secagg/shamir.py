"""Shamir's secret sharing over the integers modulo the smallest prime above 2^256.

Shamir, "How to Share a Secret", Communications of the ACM 22(11), 1979. Any `threshold` shares give the secret, fewer
say nothing of it. PyCryptodome's sharing is of 16 bytes, which an X25519 key is not.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

PRIME = 2**256 + 297
SHARE_BYTES = 33
"""Length of a share as bytes."""


def split(secret: int, coefficients: Sequence[int], places: Sequence[int], prime: int = PRIME) -> list[int]:
    """The values at some places of the polynomial with this constant term: a share of the secret for each place.

    Args:
        secret: in `[0, prime)`.
        coefficients: of x, x^2, ..., uniform in `[0, prime)`: one fewer than the shares that are to be needed.
        places: distinct, in `[1, prime)`.
        prime: the number of elements of the field.

    Example:
        >>> split(5, [3], [1, 2, 3], prime=11)  # 5 + 3 x modulo 11
        [8, 0, 3]
    """
    falling = [*reversed(coefficients), secret]
    shares = []
    for place in places:
        value = 0
        for coefficient in falling:
            value = (value * place + coefficient) % prime
        shares.append(value)
    return shares


def join(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """The secret, from exactly as many shares as are needed, by place: the polynomial's value at 0.

    Example:
        >>> join({1: 8, 3: 3}, prime=11)
        5
    """
    factors = _at_zero(tuple(shares), prime)
    return sum(factor * share for factor, share in zip(factors, shares.values(), strict=True)) % prime


@lru_cache(maxsize=64)
def _at_zero(places: tuple[int, ...], prime: int) -> list[int]:
    """Lagrange's basis polynomials at 0."""
    factors = []
    for place in places:
        others = [other for other in places if other != place]
        above, below = prod(others), prod(other - place for other in others)
        factors.append(above * pow(below, -1, prime) % prime)
    return factors
