"""Noise on the server."""

import pytest
import torch

from flrl.transforms import GaussianNoise
from tests.transforms.given import context


def noisy(std: float, covers: str = "trainable", *, round: int = 1, size: int = 4) -> torch.Tensor:
    vectors = {"update": torch.zeros(size).double(), "control": torch.zeros(2).double()}
    found, state, metrics = GaussianNoise(std=std, covers=covers).server(vectors, {}, context(round=round))
    assert (state, metrics) == ({}, {"std": std})
    assert torch.equal(vectors["update"], torch.zeros(size).double())
    return torch.cat([found["update"], found["control"]])


def test_only_what_it_covers_is_changed() -> None:
    assert [value != 0 for value in noisy(1.0).tolist()] == [True, True, False, False, False, False]
    assert [value != 0 for value in noisy(1.0, "update").tolist()] == [True] * 4 + [False] * 2
    assert all(value != 0 for value in noisy(1.0, "all").tolist())


def test_the_noise_follows_the_seed_and_scales() -> None:
    assert torch.equal(noisy(1.0), noisy(1.0))
    assert not torch.equal(noisy(1.0), noisy(1.0, round=2))
    torch.testing.assert_close(noisy(3.0), 3 * noisy(1.0), rtol=1e-15, atol=0)
    assert noisy(0.0).tolist() == [0.0] * 6
    many = noisy(2.0, "update", size=100_000)[:100_000]
    assert abs(float(many.mean())) < 4 * 2.0 / 100_000**0.5
    assert abs(float(many.std()) - 2.0) < 4 * 2.0 / (2 * 100_000) ** 0.5


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_the_deviation_is_finite(std: float) -> None:
    with pytest.raises(ValueError, match=r"gaussian_noise\.std=.*: must be at least 0 and finite$"):
        GaussianNoise(std=std)
