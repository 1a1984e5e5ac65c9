"""The compiled loops, the torch operations that do the same, and what both are to do."""

import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flrl.aggregation import exact_sum
from flrl.kernels import (
    VectorStats,
    compiling,
    difference,
    hadamard,
    inner_product,
    large_numbers,
    places_at_least,
    rice_code,
    rice_length,
    rounded_difference,
    scaled,
    split_and_add,
    sums,
    vector_stats,
    vectors,
)
from tests.aggregation.test_exact_sum import values

ROUNDERS = (exact_sum._ROUND_HIGH, exact_sum._ROUND_LOW)


@contextmanager
def way(name: str) -> Iterator[None]:
    with patch.object(compiling, "_LITTLE_WORK", {"compiled": -1, "torch": 2**62}[name]):
        yield


@pytest.fixture(params=["compiled", "torch"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    with way(request.param):
        yield


def vector_of(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("numbers", "largest"),
    [
        ([1.0, -3.0, 0.0], 3.0),
        ([], 0.0),
        ([-0.0], 0.0),
        ([5e-324, -5e-324], 5e-324),
        ([1.0, -math.inf, 2.0], math.inf),
        ([math.inf, 1.0, math.nan], math.nan),
        ([-math.nan, math.inf], math.nan),
    ],
)
def test_vector_stats(numbers: list[float], largest: float) -> None:
    found = vector_stats(vector_of(numbers))
    assert found.largest == largest or (math.isnan(found.largest) and math.isnan(largest))
    assert found.bits == sum(struct.unpack("<Q", struct.pack("<d", number))[0] for number in numbers) % 2**64


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("size", [1, 7, 64, 1001])
def test_vector_stats_of_many_numbers(size: int) -> None:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(size))
    found = vector_stats(vector)
    assert found.largest == float(vector.abs().max())
    assert found.bits == int(vector.double().view(torch.int64).sum()) % 2**64


@pytest.mark.usefixtures("either_way")
def test_vector_stats_of_a_strided_vector() -> None:
    assert vector_stats(vector_of([1.0, 9.0, -2.0, 9.0])[::2]) == VectorStats(2.0, (0x3FF << 52) + (0xC00 << 52))


@pytest.mark.usefixtures("either_way")
def test_difference_is_exact() -> None:
    a, b = torch.tensor([1.0, 2.0**30]), torch.tensor([2.0**-30, 2.0**-20])
    assert difference(a, b).tolist() == [1 - 2.0**-30, 2.0**30 - 2.0**-20]
    assert a.tolist() == [1.0, 2.0**30]


@given(st.lists(values, min_size=1, max_size=40), st.floats(-4.0, 4.0))
@settings(deadline=None)
def test_both_ways_split_and_add_to_the_same_bits(numbers: list[float], weight: float) -> None:
    parts = torch.rand(2, len(numbers) + 2, dtype=torch.float64)
    results = []
    for name in ("compiled", "torch"):
        with way(name):
            result = parts.clone()
            split_and_add(vector_of(numbers), weight, result, 1, ROUNDERS)
            results.append(result.numpy().tobytes())
            assert torch.equal(result[:, [0, -1]], parts[:, [0, -1]])
    assert results[0] == results[1]


@pytest.mark.usefixtures("either_way")
def test_norms_and_inner_products_of_known_vectors() -> None:
    assert vector_stats(vector_of([3.0, -4.0])).norm == 5.0
    assert vector_stats(vector_of([1.0] * 1024)).norm == 32.0
    assert vector_stats(torch.tensor([3.0, 9.0, -4.0, 9.0])[::2]).norm == 5.0
    assert vector_stats(vector_of([])).norm == vector_stats(vector_of([0.0])).norm == 0.0
    assert vector_stats(vector_of([1e200, 1.0])).norm == math.inf
    assert inner_product(vector_of([2.0, -3.0, 8.0]), vector_of([1.0, 5.0, 0.25])) == 2 - 15 + 2
    assert inner_product(torch.arange(600.0), torch.ones(600)) == 600 * 599 / 2


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=600))
@settings(deadline=None, max_examples=30)
def test_norms_and_inner_products_are_the_same_bits_either_way(numbers: list[float]) -> None:
    vector, found = vector_of(numbers), set()
    for name in ("compiled", "torch"):
        with way(name):
            square = vector_stats(vector).square
            assert inner_product(vector, vector) == square
            found.add((square, inner_product(vector, vector.flip(0))))
    assert len(found) == 1
    assert math.sqrt(found.pop()[0]) == pytest.approx(math.hypot(*numbers), rel=1e-12)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("size", [255, 256, 257, 5 * 256 + 3])
def test_products_are_added_by_lanes(size: int) -> None:
    """In this order, and so without regard to the number of threads."""
    values = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    sums = np.zeros(256)
    for place, value in enumerate(values.tolist()):
        sums[place % 256] += value * value
    assert vector_stats(values).square == sums.sum()
    places = torch.arange(size)
    assert vector_stats(values, places).square == sums.sum()


def test_little_work_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(compiling, "_processed", 0)
    monkeypatch.setattr(compiling, "_LITTLE_WORK", 10)
    monkeypatch.setattr(vectors, "_vector_stats", lambda: lambda *vectors: compiled.append("compiled loop") or (0, 0))
    for count in (4, 6):
        vector_stats(torch.ones(count))
    assert compiled == []
    vector_stats(torch.ones(1))
    assert compiled == ["compiled loop"]


def test_the_loop_is_compiled_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(signature: str, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return original(signature, **options)

    import numba

    original = numba.njit
    monkeypatch.setattr(numba, "njit", njit)
    add: Callable[..., None] = sums._split_and_add.__wrapped__(*ROUNDERS)
    high, low = torch.zeros(2, 1, dtype=torch.float64).numpy()
    add(vector_of([1.5]).numpy(), 2.0, high, low)
    assert high + low == 3.0


ASSEMBLY = """
import re, numba
from flrl.kernels import sparse, sums, vectors
compile, made = numba.njit, []
def njit(signature, **options):
    options.pop("cache", None)
    def compiled(function):
        made.append(compile(signature, **options)(function))
        return made[-1]
    return compiled
numba.njit = njit
vectors._subtract(), vectors._vector_stats(), vectors._stats_at(), vectors._add_products(), sparse._large_numbers()
sums._split_and_add(3.0, 5.0), sums._split_and_add_at(3.0, 5.0)
made.append(compile("float64(float64, float64, float64)", fastmath={"contract"})(lambda a, b, c: a * b + c))
print([len(re.findall(r"vfn?m(?:add|sub)", "".join(loop.inspect_asm().values()))) for loop in made])
"""


def test_no_processor_fuses_multiplication_and_addition() -> None:
    """Compiled for one that could; the last of the functions shows that it would be seen."""
    environment = os.environ | {"NUMBA_CPU_NAME": "znver4", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", ASSEMBLY], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "[0, 0, 0, 0, 0, 0, 0, 1]\n"


@pytest.mark.usefixtures("either_way")
def test_places_of_large_numbers() -> None:
    values = np.array([1.0, -2.0, 0.0, 2.0, -0.0, 1.9999999999999998, 5e-324] * 20)
    assert places_at_least(values, 2.0).tolist() == [7 * k + i for k in range(20) for i in (1, 3)]
    assert places_at_least(values, 5e-324).tolist() == [7 * k + i for k in range(20) for i in (0, 1, 3, 5, 6)]
    assert places_at_least(values, 0.0).tolist() == list(range(140))
    assert places_at_least(values, 2.1).tolist() == places_at_least(values[:0], 0.0).tolist() == []


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_differences_are_rounded_once(dtype: torch.dtype) -> None:
    a, b = np.array([1.0 + 2.0**-24 + 2.0**-50, 1e39, -0.0]), np.array([0.0, 0.0, 0.0])
    found = torch.empty(3, dtype=dtype)
    rounded_difference(a, b, found)
    assert found.tolist() == torch.from_numpy(a - b).to(dtype).tolist()
    if dtype == torch.float32:
        assert found[0] == 1.0 + 2.0**-23


@pytest.mark.usefixtures("either_way")
def test_hadamard_is_by_hand() -> None:
    assert hadamard(np.array([1.0, 0, 0, 0])).tolist() == [0.5] * 4
    assert hadamard(np.array([1.0, 2.0])).tolist() == pytest.approx([3 / math.sqrt(2), -1 / math.sqrt(2)])
    assert hadamard(np.array([1.0, 2.0, 3.0, 4.0])).tolist() == [5, -1, -2, 0]
    assert hadamard(np.array([3.0])).tolist() == [3.0]


@pytest.mark.parametrize("size", [8, 16, 1024, 2**15])
def test_hadamard_is_the_same_bits_either_way(size: int) -> None:
    values = np.random.default_rng(0).standard_normal(size)
    with way("torch"):
        expected = hadamard(values)
    with way("compiled"):
        assert hadamard(values).tobytes() == expected.tobytes()
    if size <= 1024:
        matrix = scipy.linalg.hadamard(size) / math.sqrt(size)
        assert expected.tolist() == pytest.approx((matrix @ values).tolist(), abs=1e-12)


@pytest.mark.usefixtures("either_way")
def test_large_numbers_of_a_sum_by_hand() -> None:
    vector, error = np.array([1.0, -2.0, 0.25, -0.0, 3.0]), np.array([1.0, -0.5, -0.5, -0.0, -1.0], np.float32)
    rounded = np.full(5, 7.0, np.float32)
    found = large_numbers(vector, error, 2.0, rounded)
    assert found is not None
    assert found.places.tolist() == [0, 1, 4]
    assert found.values.tolist() == [2.0, -2.5, 2.0]
    assert rounded.tolist() == [2.0, -2.5, -0.25, -0.0, 2.0]
    assert math.copysign(1.0, rounded[3]) == -1.0
    alone = large_numbers(vector, None, 0.0, rounded)
    assert alone is not None
    assert alone.places.tolist() == [0, 1, 2, 3, 4]
    assert rounded.tobytes() == vector.astype(np.float32).tobytes()
    for wrong in (math.nan, -math.inf):
        assert large_numbers(np.array([1.0, wrong]), np.ones(2, np.float32), 9.0, rounded[:2]) is None


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=100), st.floats(0, 1e3), st.booleans())
@settings(deadline=None, max_examples=50)
def test_large_numbers_are_the_same_bits_either_way(numbers: list[float], bound: float, alone: bool) -> None:
    vector, found = np.array(numbers), []
    error = None if alone else np.flip(vector).astype(np.float32)
    for name in ("compiled", "torch"):
        rounded = np.zeros(len(numbers), np.float32)
        with way(name):
            large = large_numbers(vector, error, bound, rounded)
        assert large is not None
        found.append((large.places.tolist(), large.values.tobytes(), rounded.tobytes()))
    assert found[0] == found[1]
    assert found[0][0] == np.flatnonzero(np.abs(vector if error is None else vector + error) >= bound).tolist()


@given(st.lists(values, min_size=1, max_size=700), st.floats(-4.0, 4.0), st.data())
@settings(deadline=None, max_examples=50)
def test_places_of_all_that_is_not_zero_change_no_bit(numbers: list[float], weight: float, data: st.DataObject) -> None:
    some = st.lists(st.integers(0, len(numbers) - 1), unique=True)
    places = torch.tensor(sorted(data.draw(some)), dtype=torch.int64)
    vector = torch.zeros(len(numbers), dtype=torch.float64)
    vector[places] = vector_of(numbers)[places]
    for name in ("compiled", "torch"):
        with way(name):
            dense, sparse = vector_stats(vector), vector_stats(vector, places)
            assert (dense, dense.square) == (sparse, sparse.square)
            sums = torch.rand(2, len(numbers) + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            sums = (sums * 2**24).round() * 2**-24
            both = [sums.clone(), sums.clone()]
            split_and_add(vector, weight, both[0], 1, ROUNDERS)
            split_and_add(vector, weight, both[1], 1, ROUNDERS, places)
            assert both[0].numpy().tobytes() == both[1].numpy().tobytes()


@pytest.mark.usefixtures("either_way")
def test_rice_codes_by_hand() -> None:
    assert rice_length(np.array([0, 0, 0])) == (3, 0)
    assert rice_length(np.array([4, 5, 6])) == (12, 2)  # two bits of each, and 01 three times
    assert rice_length(np.array([], np.int64)) == (0, 0)
    assert rice_code(np.array([4, 5, 6])).tolist() == [2, 0b00011000, 0b01010100]
    assert rice_code(np.array([0, 0, 2, 0])).tolist() == [0, 0b11001100]
    assert rice_length(np.array([2**40])) == (2**9 + 32, 31)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300))
@settings(deadline=None, max_examples=50)
def test_rice_codes_are_the_same_either_way(numbers: list[int]) -> None:
    values, found = np.array(numbers), set()
    for name in ("compiled", "torch"):
        with way(name):
            found.add((rice_length(values), rice_code(values).tobytes()))
    assert len(found) == 1
    length, best = found.pop()[0]
    assert length == min(sum(v >> k for v in numbers) + len(numbers) * (k + 1) for k in range(32))
    assert length == sum(v >> best for v in numbers) + len(numbers) * (best + 1)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("size", [0, 1, 255, 256, 700])
def test_what_is_scaled_has_stats(size: int) -> None:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    product, stats = scaled(vector, 0.3)
    assert torch.equal(product, vector * 0.3)
    assert (stats, stats.square) == (vector_stats(vector * 0.3), vector_stats(vector * 0.3).square)
    assert math.isnan(scaled(vector_of([math.inf, 1.0]), 0.0)[1].largest)
