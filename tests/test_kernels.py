"""The compiled loops, against what they replace."""

import math
import struct

import pytest
import torch

from flrl.kernels import difference, survey


@pytest.mark.parametrize(
    ("values", "largest"),
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
def test_survey(values: list[float], largest: float) -> None:
    found = survey(torch.tensor(values, dtype=torch.float64))
    assert found.largest == largest or (math.isnan(found.largest) and math.isnan(largest))
    assert found.bits == sum(struct.unpack("<Q", struct.pack("<d", value))[0] for value in values) % 2**64


@pytest.mark.parametrize("size", [1, 7, 64, 1001])
def test_survey_of_many_numbers(size: int) -> None:
    vector = torch.randn(size, generator=torch.Generator().manual_seed(size))
    found = survey(vector)
    assert found.largest == float(vector.abs().max())
    assert found.bits == int(vector.double().view(torch.int64).sum()) % 2**64


def test_a_strided_vector_is_surveyed() -> None:
    vector = torch.tensor([1.0, 9.0, -2.0, 9.0], dtype=torch.float64)[::2]
    assert survey(vector).largest == 2.0


def test_difference_is_exact() -> None:
    a, b = torch.tensor([1.0, 2.0**30]), torch.tensor([2.0**-30, 2.0**-20])
    assert difference(a, b).tolist() == [1 - 2.0**-30, 2.0**30 - 2.0**-20]
