"""Sorting by owner and joining slices: equal to the slow way, for any sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flrl.data.grouping import by_owner, spans


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(0, 2**32), st.sampled_from(["int8", "uint16", "int64"]))
def test_by_owner_is_a_stable_sort(owners: list[int], seed: int, dtype: str) -> None:
    owner = np.array(owners, dtype=dtype)
    order = np.random.default_rng(seed).permutation(len(owner))
    found = by_owner(owner, order)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(order.tolist(), key=lambda entry: owners[entry])


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 5)), max_size=20))
def test_spans_are_ranges_in_a_row(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([pair[part] for pair in pairs], dtype=np.int64) for part in (0, 1))
    expected = [number for start, length in pairs for number in range(start, start + length)]
    assert spans(starts, lengths).tolist() == expected


@pytest.mark.parametrize("dtype", ["uint32", "int32"])
def test_narrow_owners_do_not_overflow(dtype: str) -> None:
    owner = np.arange(70_000, dtype=dtype)[::-1]
    assert np.array_equal(by_owner(owner, np.arange(70_000)), np.arange(70_000)[::-1])
