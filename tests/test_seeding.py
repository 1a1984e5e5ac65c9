import hashlib

from hypothesis import given
from hypothesis import strategies as st

from flrl.seeding import SERVER, generator_for, seed_for


def test_seed_is_the_start_of_a_hash() -> None:
    expected = int.from_bytes(hashlib.sha256(b"3/2/-1/cohort").digest()[:8], "little") >> 1
    assert seed_for(3, 2, SERVER, "cohort") == expected


def test_seeds_stay_what_they_are() -> None:
    assert seed_for(0, 1, 2, "shuffle") == 7187119258788751317
    assert generator_for(0, 1, 2, "shuffle").integers(1000, size=3).tolist() == [378, 306, 518]


key = st.tuples(st.integers(0, 2**63), st.integers(0, 10**6), st.integers(-1, 10**6), st.sampled_from("abc"))


@given(key, key)
def test_different_keys_have_different_seeds(a: tuple, b: tuple) -> None:
    assert 0 <= seed_for(*a) < 2**63
    assert (seed_for(*a) == seed_for(*b)) == (a == b)
