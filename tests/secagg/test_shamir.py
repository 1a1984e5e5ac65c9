"""Shamir's secret sharing: by hand on a small field, and its properties on the large one."""

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flrl.secagg.crypto import field_elements
from flrl.secagg.shamir import PRIME, SHARE_BYTES, join, split

ELEMENTS = st.integers(0, PRIME - 1)


def test_by_hand_on_17_elements() -> None:
    """13 + 10 x + 2 x^2 modulo 17, Stinson's example: shares 8, 7, 10, 0, 11 at 1 to 5."""
    shares = dict(zip(range(1, 6), split(13, [10, 2], range(1, 6), prime=17), strict=True))
    assert shares == {1: 8, 2: 7, 3: 10, 4: 0, 5: 11}
    assert {join({i: shares[i] for i in those}, prime=17) for those in combinations(shares, 3)} == {13}


def test_fewer_shares_say_nothing() -> None:
    """Of 7 elements and 3 needed shares, any two shares leave each secret equally likely."""
    for places in combinations((1, 2, 3), 2):
        seen = {secret: sorted(split(secret, [a, b], places, prime=7) for a, b in product(range(7), repeat=2))
                for secret in range(7)}  # fmt: skip
        assert all(pairs == sorted([x, y] for x in range(7) for y in range(7)) for pairs in seen.values())


@settings(max_examples=30, deadline=None)
@given(secret=ELEMENTS, coefficients=st.lists(ELEMENTS, min_size=1, max_size=6), data=st.data())
def test_any_so_many_shares_give_the_secret(secret: int, coefficients: list[int], data: st.DataObject) -> None:
    needed = len(coefficients) + 1
    places = data.draw(st.lists(st.integers(1, 2**32), min_size=needed, max_size=needed + 4, unique=True))
    shares = dict(zip(places, split(secret, coefficients, places), strict=True))
    some = data.draw(st.permutations(places))[:needed]
    assert join({place: shares[place] for place in some}) == secret
    wrong = {place: (share + (place == some[0])) % PRIME for place, share in shares.items()}
    assert join({place: wrong[place] for place in some}) != secret


def test_the_field_has_a_prime_number_of_elements_above_every_secret() -> None:
    gmpy2 = pytest.importorskip("gmpy2")
    assert PRIME == int(gmpy2.next_prime(2**256))
    assert (PRIME - 1).bit_length() == 257 <= 8 * SHARE_BYTES


def test_coefficients_are_in_the_field_and_follow_the_seed() -> None:
    first = field_elements(bytes(32), 50)
    assert first == field_elements(bytes(32), 50)
    assert len(set(first)) == 50
    assert max(first) < PRIME
    assert first[:3] == field_elements(bytes(32), 3)
    assert first[0] != field_elements(b"\x01" * 32, 1)[0]
