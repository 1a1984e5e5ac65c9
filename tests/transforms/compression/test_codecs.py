"""What is written can be read, and takes no more than it must."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flrl.layout import ParameterLayout
from flrl.transforms.compression.codecs import Reader, Writer, rice_bits
from tests.transforms.compression.table import COMPRESSORS, flat, sent

LAYOUTS = {size: flat(size) for size in (0, 1, 7)} | {
    18: ParameterLayout(nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(1), nn.BatchNorm1d(1, affine=False)))
}
assert LAYOUTS[18].size == 18


def written(write: Callable[[Writer], Any]) -> tuple[list[int], Reader]:
    writer = Writer()
    write(writer)
    return writer.buffer().tolist(), Reader(writer.buffer())


def test_bits_and_codes_computed_by_hand() -> None:
    assert written(lambda w: w.bits(np.array([5, 2, 7]), 3))[0] == [0b10101011, 0b10000000]
    assert written(lambda w: w.bits(np.array([1, 0, 513]), 10))[0] == [0, 0b01000000, 0b00001000, 0b00000100]
    # k = 0 is a bitmap: places 1 and 3.
    assert written(lambda w: w.places(np.array([1, 3])))[0] == [0, 0b01010000]
    # With k = 2 the lowest bits 1 1 1 3, then in unary 1 1 1 1.
    assert rice_bits(np.array([5, 5, 5, 7])) == (8 + 4 * 2 + 8, 2)
    assert written(lambda w: w.rice(np.array([5, 5, 5, 7])))[0] == [2, 0b01010111, 0b01010101]
    assert written(lambda w: w.levels(np.array([1, -1, 1, -1]), 1))[0] == [0, 0b10001000]
    few = np.where(np.arange(24) == 3, -1, 0)  # magnitudes by a code with k = 0, and one sign
    assert written(lambda w: w.levels(few, 1))[0] == [1, 0, 0b11101111, 255, 255, 0b10000000, 0b10000000]
    rare = np.where(np.arange(2400) == 3, -1, 0)  # how many, its place, its magnitude less 1, its sign
    assert written(lambda w: w.levels(rare, 1))[0] == [2, 1, 0, 0, 0, 1, 0b10000000, 0b01000000, 0, 128, 128]


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([0, 1, 2, 9, 64]), st.integers(1, 32))
def test_whole_numbers_round_trip(data: st.DataObject, size: int, width: int) -> None:
    numbers = np.array(data.draw(st.lists(st.integers(0, 2**width - 1), min_size=size, max_size=size)), np.int64)
    small = numbers % 1000
    largest = max(1, int(small.max(initial=0)))
    signs = 1 - 2 * (numbers % 2)
    places = np.unique(small)
    writer = Writer()
    writer.bits(numbers, width)
    writer.rice(small)
    writer.places(places)
    for dense in (1, 7):
        writer.levels(signs * small * (numbers % dense == 0), largest)
    writer.whole([2**40], "<i8")
    reader = Reader(writer.buffer())
    assert reader.bits(size, width).tolist() == numbers.tolist()
    assert reader.rice(size).tolist() == small.tolist()
    assert reader.places(len(places)).tolist() == places.tolist()
    for dense in (1, 7):
        assert reader.levels(size, largest).tolist() == (signs * small * (numbers % dense == 0)).tolist()
    assert reader.whole(1, "<i8").tolist() == [2**40]
    reader.end()


def test_a_code_of_places_is_near_their_entropy() -> None:
    """Of 100,000 places 1,000 are drawn: the entropy is 8,081 bits in all."""
    places = np.sort(np.random.default_rng(0).choice(100_000, 1000, replace=False))
    assert 8081 < 8 * len(written(lambda w: w.places(places))[0]) < 8081 * 1.02
    dense = np.sort(np.random.default_rng(0).choice(100_000, 50_000, replace=False))
    assert len(written(lambda w: w.places(dense))[0]) <= 100_000 / 8 + 1  # a bitmap


def test_a_torn_buffer_is_refused() -> None:
    _, reader = written(lambda w: w.whole([1, 2], "<u4"))
    with pytest.raises(ValueError, match="ends 4 bytes too early"):
        reader.whole(3, "<u4")
    with pytest.raises(ValueError, match="has 8 bytes too many"):
        reader.end()
    with pytest.raises(ValueError, match="has 1 of 2 numbers"):
        Reader(np.array([0, 0b01000000], np.uint8)).rice(2)


NUMBERS = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-40, 0.1]), st.floats(-5, 5))


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(sorted(COMPRESSORS)), st.sampled_from(sorted(LAYOUTS)), st.booleans())
def test_what_is_aggregated_is_what_the_buffer_decodes_to(
    data: st.DataObject, name: str, size: int, zeros: bool
) -> None:
    compressor, layout = COMPRESSORS[name](), LAYOUTS[size]
    values = [0.0] * size if zeros else data.draw(st.lists(NUMBERS, min_size=size, max_size=size))
    update, memory = sent(compressor, values, layout)
    buffer = update.encoded["update"]
    assert buffer.dtype == torch.uint8
    assert update.payload == {"update": len(buffer)}
    decoded = torch.from_numpy(COMPRESSORS[name]().decode(buffer.numpy().copy(), layout))
    assert torch.equal(decoded.view(torch.int64), update.vectors["update"].view(torch.int64))
    assert set(memory) <= {"error", "q"}
    if zeros:
        assert not decoded.any()
    if size > 1 and name != "float16":
        assert decoded.isfinite().all()


@pytest.mark.parametrize("name", COMPRESSORS)
def test_an_update_that_is_not_finite_is_left_to_be_rejected(name: str) -> None:
    for value in (float("nan"), float("inf")):
        before = {"error": torch.ones(2)}
        update, memory = sent(COMPRESSORS[name](), [1.0, value], memory=before)
        assert str(update.vectors["update"].tolist()) == str([1.0, value])
        assert (update.encoded, update.payload, memory) == ({}, {"update": 8}, before)


def test_what_float16_cannot_hold_is_infinite() -> None:
    assert sent(COMPRESSORS["float16"](), [1.0, 1e5])[0].vectors["update"].tolist() == [1.0, float("inf")]
