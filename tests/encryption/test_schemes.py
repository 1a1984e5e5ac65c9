"""Schemes that add ciphertexts: their sums are those of the plain numbers."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flrl.aggregation.exact_sum import LIMIT, ExactSum
from flrl.encryption import CkksKeyHolder, CkksScheme, PaillierKeyHolder, PaillierScheme, require
from flrl.encryption.ckks import MODULI, error_bound, largest_number
from flrl.encryption.fixed_point import NUMBER_BITS, Packing, integers, parts

pytest.importorskip("phe")
pytest.importorskip("tenseal")

ADDENDS = 6
PAILLIER = PaillierKeyHolder(key_bits=512, addends=ADDENDS)  # a small key: tests encrypt nothing that matters
CKKS = CkksKeyHolder(degree=4096, scale_bits=40)


def exact(*vectors: Sequence[float]) -> ExactSum:
    total = ExactSum(len(vectors[0]))
    for vector in vectors:
        total.add(torch.tensor(vector, dtype=torch.float64))
    return total


NUMBERS = st.floats(-1e7, 1e7) | st.floats(-1e-15, 1e-15) | st.sampled_from([0.0, -0.0, 2.0**-64, -(2.0**-64), 1e-20])


@given(st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(NUMBERS, min_size=n, max_size=n), min_size=1, max_size=6)))
@settings(max_examples=30, deadline=None)
def test_paillier_gives_the_exact_sum_to_the_bit(vectors: list[list[float]]) -> None:
    scheme = PaillierScheme(PAILLIER.public, addends=ADDENDS)
    total = scheme.encrypt(exact(vectors[0]).parts.numpy())
    for vector in vectors[1:]:
        total = scheme.add(total, scheme.encrypt(exact(vector).parts.numpy()))
    high, low = PAILLIER.decrypt(total, len(vectors[0]))
    assert torch.equal(torch.from_numpy(high + low), exact(*vectors).value())


@given(st.lists(st.lists(st.floats(-1e5, 1e5), min_size=3, max_size=3), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_ckks_gives_the_sum_to_its_bound(vectors: list[list[float]]) -> None:
    scheme = CkksScheme(CKKS.public, degree=4096)
    total = scheme.encrypt(exact(vectors[0]).parts.numpy())
    for vector in vectors[1:]:
        total = scheme.add(total, scheme.encrypt(exact(vector).parts.numpy()))
    high, low = CKKS.decrypt(total, 3)
    rounding = 2.0**-50 * max(abs(number) for vector in vectors for number in vector) * len(vectors)
    bound = error_bound(4096, 40, len(vectors)) + rounding
    assert np.abs(high + low - np.sum(vectors, 0)).max() < bound


def test_the_bound_of_ckks_is_by_hand() -> None:
    """Lemma 1: 8 sqrt(2) 3.2 4096 + 6 3.2 64 + 16 3.2 sqrt(2/3) 4096 = 148291.0 + 1228.8 + 171231.8, over 2^40."""
    assert error_bound(4096, 40, 1) == pytest.approx(320751.6 / 2**40, rel=1e-6)
    assert error_bound(4096, 41, 10) == pytest.approx(5 * error_bound(4096, 40, 1), rel=1e-15)


@pytest.mark.parametrize("degree", MODULI)
def test_the_largest_number_of_ckks_is_encrypted_to_its_bound(degree: int) -> None:
    holder = CkksKeyHolder(degree=degree, scale_bits=40)
    largest = largest_number(40)
    assert largest == 2.0**18
    vector = np.zeros((2, degree // 2 + 3))  # more than one ciphertext
    vector[0] = largest * np.where(np.arange(degree // 2 + 3) % 2, 1, -1)
    sent = CkksScheme(holder.public, degree=degree).encrypt(vector)
    assert len(sent) == 2
    assert np.abs(holder.decrypt(sent, vector.shape[1])[0] - vector[0]).max() < error_bound(degree, 40, 1)


def test_encrypting_twice_gives_other_ciphertexts() -> None:
    numbers = exact([1.0, -2.0]).parts.numpy()
    for scheme in (PaillierScheme(PAILLIER.public, addends=2), CkksScheme(CKKS.public, degree=4096)):
        assert scheme.encrypt(numbers) != scheme.encrypt(numbers)


def test_a_ciphertext_of_paillier_is_a_number_below_the_squared_modulus() -> None:
    scheme = PaillierScheme(PAILLIER.public, addends=ADDENDS)
    assert (scheme.packing.width, scheme.packing.slots) == (95, 5)  # 92 + 3 guard bits; 510 // 95
    sent = scheme.encrypt(exact([0.5] * 11).parts.numpy())
    assert [len(each) for each in sent] == [128] * 3
    assert all(int.from_bytes(each, "big") < scheme.key.nsquare for each in sent)
    assert len(PAILLIER.public) == 64


def test_public_sides_cannot_decrypt() -> None:
    paillier, ckks = PaillierScheme(PAILLIER.public, addends=2), CkksScheme(CKKS.public, degree=4096)
    assert set(vars(paillier)) == {"key", "packing"}
    assert set(vars(paillier.key)) == {"g", "n", "nsquare", "max_int"}
    assert PAILLIER._private.p * PAILLIER._private.q == paillier.key.n
    assert not ckks.context.is_private()
    assert not ckks.context.has_secret_key()
    (sent,) = ckks.encrypt(exact([1.0]).parts.numpy())
    with pytest.raises(ValueError, match="doesn't hold a secret_key"):
        ckks._tenseal.ckks_vector_from(ckks.context, sent).decrypt()


# Numbers on the grid, and several of them in one integer.


@given(st.lists(NUMBERS, min_size=1, max_size=5))
def test_numbers_are_multiples_of_the_grid(numbers: list[float]) -> None:
    total = exact(numbers)
    found = integers(total.parts.numpy())
    assert found == [round(Fraction(number) * 2**64) for number in numbers]
    assert torch.equal(torch.from_numpy(parts(found).sum(0)), total.value())


SLOTS = st.tuples(st.integers(2, 70), st.integers(1, 6))


@given(SLOTS, st.data())
def test_packed_numbers_come_back_with_their_signs(shape: tuple[int, int], data: st.DataObject) -> None:
    packing = Packing(*shape)
    largest = (1 << packing.width - 1) - 1
    numbers = data.draw(st.lists(st.integers(-largest, largest), max_size=20))
    packed = packing.pack(numbers)
    assert len(packed) == packing.count(len(numbers))
    assert packing.unpack(packed, len(numbers)) == numbers
    assert all(abs(each).bit_length() <= packing.width * packing.slots - 1 for each in packed)


def test_guard_bits_hold_the_largest_sum_and_not_one_more() -> None:
    """Three addends of the largest size take two more bits; with four they are full."""
    packing = Packing.for_sums(10 * NUMBER_BITS, addends=4)
    assert packing.width == NUMBER_BITS + 2
    largest = 1 << NUMBER_BITS - 1
    for numbers in ([largest - 1, -largest, 1, -largest], [-largest] * 4, [largest - 1] * 4):
        four = [4 * each for each in packing.pack(numbers)]
        assert packing.unpack(four, 4) == [4 * number for number in numbers]
    beyond = [5 * each for each in packing.pack([largest] * 4)]
    assert packing.unpack(beyond, 4) != [5 * largest] * 4
    with pytest.raises(OverflowError, match=r"^a number does not fit into a slot of 94 bits$"):
        packing.pack([0, 1 << 93])


def test_sums_beyond_the_exact_range_are_refused() -> None:
    assert parts([1 << 91])[0, 0] == LIMIT
    for number in ((1 << 91) + 1, -(1 << 91) - 1):
        with pytest.raises(OverflowError, match=r"^exact sum: the decrypted sum has passed its limit of 1\.34e\+08$"):
            parts([0, number])


def test_a_key_that_holds_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a sum of 1000 numbers takes 102 bits, a plaintext has 100$"):
        Packing.for_sums(100, 1000)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ValueError, match=r"^x=y: needs no_such_package: pip install 'flrl\[he\]'$"):
        require("x=y", "math", "no_such_package")
