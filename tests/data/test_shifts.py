"""Shifts by hand, and who is shifted: clients' own samples, the same wherever they are held, nobody else's."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from flrl.data import DatasetSource, FederatedData, Splits, TensorSource
from flrl.data.shifts import (
    NOBODY,
    Blur,
    Contrast,
    Drift,
    LabelNoise,
    LabelPermutation,
    Noise,
    Rotation,
    Shift,
    shifted,
)
from flrl.seeding import EVERYBODY, SERVER, generator_for
from tests.toys import blocks

PICTURE = torch.arange(9.0).view(1, 1, 3, 3) / 8


def generators() -> Any:
    return (np.random.default_rng(seed) for seed in range(100))


def turned(degrees: float, inputs: Tensor = PICTURE) -> Tensor:
    return Rotation(low=0, high=90).inputs(inputs, torch.full((len(inputs),), degrees), generators())


def test_a_quarter_turn_is_anticlockwise() -> None:
    for quarters in (0, 1, 2, 3):
        expected = torch.rot90(PICTURE, quarters, (2, 3))
        torch.testing.assert_close(turned(90.0 * quarters), expected, atol=1e-6, rtol=0)
    # Half a right angle: the middle stays, a corner comes from beyond the edge of the middle of a side.
    half = turned(45.0)[0, 0]
    assert float(half[1, 1]) == pytest.approx(0.5)
    far = 2**0.5
    assert float(half[0, 1]) == pytest.approx(bilinear(far / 2, -far / 2), abs=1e-6)
    assert float(half[0, 0]) == pytest.approx(bilinear(0.0, -far), abs=1e-6)


def bilinear(x: float, y: float) -> float:
    """The picture's value at a distance from its middle, with 0 outside."""
    padded = torch.nn.functional.pad(PICTURE[0, 0], (1, 1, 1, 1))
    row, column = y + 2, x + 2
    top, left = int(row), int(column)
    down, right = row - top, column - left
    above = padded[top, left] * (1 - right) + padded[top, left + 1] * right
    below = padded[top + 1, left] * (1 - right) + padded[top + 1, left + 1] * right
    return float(above * (1 - down) + below * down)


def test_a_blur_is_a_gaussian_and_keeps_the_sum_inside() -> None:
    point = torch.zeros(2, 1, 9, 9)
    point[:, 0, 4, 4] = 1
    found = Blur(low=0, high=1).inputs(point, torch.tensor([1.0, 0.0]), generators())
    weights = np.exp(-0.5 * np.arange(-3, 4) ** 2)
    weights /= weights.sum()
    assert found[0, 0, 1:8, 1:8].numpy() == pytest.approx(np.outer(weights, weights), abs=1e-6)
    assert torch.equal(found[1], point[1])
    flat = torch.full((1, 2, 4, 5), 0.3)
    torch.testing.assert_close(Blur(low=0, high=2).inputs(flat, torch.tensor([2.0]), generators()), flat)


@pytest.mark.parametrize("high", [7.5, 3000.0])
def test_a_blur_is_no_wider_than_the_image(high: float) -> None:
    image = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(0))
    message = rf"^partition\.shift\.high={high}: must be at most 7, the longer side of images \[2, 5, 7\]$"
    with pytest.raises(ValueError, match=message):
        Blur(low=0, high=high).inputs(image, torch.tensor([1.0]), generators())
    widest = Blur(low=0, high=7).inputs(image, torch.tensor([7.0]), generators())
    assert image.amin() < widest.amin() <= widest.amax() < image.amax()


def test_contrast_is_about_each_samples_mean() -> None:
    inputs = torch.tensor([[0.0, 1.0], [0.2, 0.4]])
    found = Contrast(low=0, high=2).inputs(inputs, torch.tensor([0.5, 2.0]), generators())
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75], [0.1, 0.5]]))


def test_noise_is_each_samples_own() -> None:
    found = Noise(low=0, high=2).inputs(torch.zeros(2, 3), torch.tensor([1.0, 2.0]), generators())
    expected = [
        factor * np.random.default_rng(seed).standard_normal(3, np.float32) for seed, factor in enumerate((1, 2))
    ]
    torch.testing.assert_close(found, torch.from_numpy(np.stack(expected)))


def test_amounts_are_uniform_or_of_levels_and_no_matter_of_how_many_clients_there_are() -> None:
    amounts = Rotation(low=-45, high=45).amounts(2000, 3)
    assert torch.equal(amounts[:5], Rotation(low=-45, high=45).amounts(5, 3))
    assert not torch.equal(amounts[:5], Rotation(low=-45, high=45).amounts(5, 4))
    assert (float(amounts.mean()), float(amounts.std())) == pytest.approx((0, 90 / 12**0.5), abs=1.5)
    levels = Rotation(low=0, high=270, levels=4).amounts(400, 0)
    assert levels.unique().tolist() == [0, 90, 180, 270]
    assert Contrast(low=0.5, high=2, levels=1).amounts(3, 0).tolist() == [0.5] * 3


def test_each_client_has_a_permutation_of_its_own() -> None:
    labels, owners = np.tile(np.arange(5), 4), np.repeat(np.arange(4), 5)
    found = LabelPermutation().labels(labels, owners, 4, 0).reshape(4, 5)
    assert [sorted(row) for row in found.tolist()] == [list(range(5))] * 4
    assert len({tuple(row) for row in found.tolist()}) == 4
    grouped = LabelPermutation(levels=2).labels(np.tile(np.arange(5), 40), np.repeat(np.arange(40), 5), 40, 0)
    kinds = {tuple(row) for row in grouped.reshape(40, 5).tolist()}
    assert len(kinds) == 2
    assert (0, 1, 2, 3, 4) in kinds


def test_a_clients_share_of_labels_is_another_class() -> None:
    labels, owners = np.arange(40_000) % 4, np.repeat(np.arange(4), 10_000)
    found = LabelNoise(low=0.2, high=0.6).labels(labels, owners, 4, 5)
    shares = 0.2 + 0.4 * generator_for(5, 0, SERVER, "shift/LabelNoise").random(4)
    assert (found != labels).reshape(4, -1).mean(axis=1) == pytest.approx(shares, abs=0.015)
    changes = np.bincount((found - labels)[found != labels] % 4, minlength=4)
    assert changes[0] == 0
    assert changes[1:] / changes.sum() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert np.array_equal(LabelNoise(low=0, high=0).labels(labels, owners, 4, 5), labels)


@pytest.mark.parametrize(("kind", "shares"), [
    ("sudden", [0, 0, 0, 1, 1, 1, 1, 1, 1]), ("gradual", [0, 0, 0, 0.5, 1, 1, 1, 1, 1]),
    ("recurring", [0, 0, 0, 1, 1, 0, 0, 1, 1]),
])  # fmt: skip
def test_drifts_follow_the_rounds(kind: Any, shares: list[float]) -> None:
    drift = Drift(shift=LabelPermutation(), kind=kind, start=3, length=2)
    assert [drift.share(round) for round in range(9)] == shares


class Read(Dataset[Any]):
    """Pictures that are read one by one."""

    def __init__(self, source: TensorSource) -> None:
        self.source, self.targets = source, source.targets

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.source.inputs[index], int(self.targets[index])


def pictures(number: int = 24, **options: Any) -> TensorSource:
    inputs = torch.from_numpy(np.random.default_rng(0).random((number, 1, 4, 4), np.float32))
    return TensorSource(inputs, torch.arange(number) % 3, **options)


SIZES = (4, 8, 12)
SHIFTS: tuple[Shift, ...] = (
    Rotation(low=20, high=340), Noise(low=0.1, high=0.5), Blur(low=0.5, high=1), Contrast(low=0.2, high=0.8),
    LabelPermutation(), LabelNoise(low=0.5, high=0.9),
)  # fmt: skip


def federation(source: Any, shift: Shift | None, **options: Any) -> FederatedData:
    return FederatedData(Splits(source, pictures(6)), blocks(SIZES), seed=2, shift=shift, **options)


def read(data: FederatedData, indices: np.ndarray) -> tuple[Tensor, Tensor]:
    (batch,) = data.splits.train.batches(indices, len(indices))
    return batch[0], batch[1]


@pytest.mark.parametrize("drifts", [False, True])
@pytest.mark.parametrize("shift", SHIFTS, ids=lambda shift: shift.name)
def test_clients_samples_are_shifted_and_nobody_elses(shift: Shift, drifts: bool) -> None:
    """In memory or read one by one, all or held by one rank alone, in training and held out."""
    plain = federation(pictures(), None, holdout=0.25, root_samples=2, public_samples=3)
    own = Drift(shift=shift, kind="gradual", start=2, length=3) if drifts else shift
    memory, lazily = (
        federation(source, own, holdout=0.25, root_samples=2, public_samples=3)
        for source in (pictures(), DatasetSource(Read(pictures())))
    )
    part = memory.only([1, 2], test=False)
    changed, before = 0, []
    for round in (0, 1, 2, 3, 4):
        now = []
        for ask in ("train_indices", "holdout_indices"):
            for client in range(3):
                was = read(plain, getattr(plain, ask)(client))
                found = read(memory, getattr(memory, ask)(client, round))
                for other in [lazily, *([part] if client else [])]:
                    again = read(other, getattr(other, ask)(client, round))
                    assert torch.equal(found[0], again[0])
                    assert torch.equal(found[1], again[1])
                differs = (found[0] != was[0]).flatten(1).any(1) | (found[1] != was[1])
                now.append(differs)
        count = int(torch.cat(now).sum())
        if drifts:
            assert count >= changed
            assert (count == 0) == (round < 2)
            assert all(bool((after | ~earlier).all()) for earlier, after in zip(before, now, strict=False))
        changed, before = count, now
        root = (read(data, data.train_indices(SERVER, round)) for data in (plain, memory))
        assert torch.equal(*(inputs for inputs, _ in root))
    assert changed >= 19 / 4
    assert memory.splits.public is not None
    assert plain.splits.public is not None
    assert torch.equal(memory.splits.public.inputs, plain.splits.public.inputs)  # type: ignore[attr-defined]
    assert torch.equal(memory.splits.test.inputs, plain.splits.test.inputs)  # type: ignore[attr-defined]
    assert memory.hash == plain.hash
    pooled = read(memory, memory.train_indices(EVERYBODY, 4))[0]
    assert torch.equal(pooled, torch.cat([read(memory, memory.train_indices(client, 4))[0] for client in range(3)]))


def test_noise_is_drawn_for_each_sample_in_standard_deviations_of_its_client() -> None:
    plain = TensorSource(torch.zeros(400, 1, 10), torch.zeros(400))
    found = shifted(plain, Noise(low=0.1, high=2), np.arange(400) // 200, 2, 7).inputs  # type: ignore[attr-defined]
    assert len(found.unique(dim=0)) == 400
    stds = Noise(low=0.1, high=2).amounts(2, 7).tolist()
    assert found.view(2, -1).std(dim=1).tolist() == pytest.approx(stds, rel=0.05)


def test_held_out_clients_are_shifted_too() -> None:
    plain = federation(pictures(), None, holdout=0.5, held_out_clients=1)
    found = federation(pictures(), Contrast(low=0.2, high=0.8), holdout=0.5, held_out_clients=1)
    was, now = read(plain, plain.holdout_indices(2))[0], read(found, found.holdout_indices(2))[0]
    factor = Contrast(low=0.2, high=0.8).amounts(3, 2)[2]
    mean = was.mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(now, mean + factor * (was - mean))


def test_pixels_stay_pixels() -> None:
    pixels = TensorSource(torch.tensor([[0, 255], [10, 20]], dtype=torch.uint8), torch.tensor([0, 1]))
    found = shifted(pixels, Contrast(low=0.5, high=0.5), np.array([0, NOBODY]), 1, 0)
    assert found.inputs.tolist() == [[64, 191], [10, 20]]  # type: ignore[attr-defined]
    beyond = shifted(pixels, Contrast(low=3, high=3), np.array([0, 0]), 1, 0)
    assert beyond.inputs.tolist() == [[0, 255], [0, 30]]  # type: ignore[attr-defined]
    assert pixels.inputs.tolist() == [[0, 255], [10, 20]]


WRONG: list[tuple[Any, str]] = [
    (
        partial(Rotation, low=5, high=1),
        r"partition\.shift\.high=1: must be at least partition\.shift\.low=5 and finite",
    ),
    (partial(Noise, low=-1, high=1), r"partition\.shift\.low=-1: must be at least 0 and finite"),
    (partial(Blur, low=0, high=1, levels=0), r"partition\.shift\.levels=0: must be at least 1, or null"),
    (partial(LabelPermutation, levels=0), r"partition\.shift\.levels=0: must be at least 1, or null"),
    (partial(LabelNoise, low=2), r"partition\.shift\.low=2: must be between 0 and 1"),
    (partial(LabelNoise, high=2), r"partition\.shift\.high=2: must be at least .* and at most 1"),
    (partial(Drift, shift=LabelNoise(), kind="slow"), r"partition\.shift\.kind=slow: must be sudden, gradual or rec"),
    (partial(Drift, shift=LabelNoise(), kind="sudden", start=0), r"partition\.shift\.start=0: must be at least 1"),
    (
        partial(Drift, shift=Drift(shift=LabelNoise(), kind="sudden"), kind="sudden"),
        r"partition\.shift\.shift: Drift of LabelNoise follows the rounds already",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_settings_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


@pytest.mark.parametrize(("source", "shift", "message"), [
    (TensorSource(torch.zeros(2, 5), torch.zeros(2)), Rotation(low=1, high=2),
     r"Rotation needs images \[channels, height, width\], and samples are \[5\]"),
    (TensorSource(torch.zeros(2, 5), torch.zeros(2)), LabelNoise(), "LabelNoise needs samples with a class, and"),
    (TensorSource(torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2)), Noise(low=0, high=1),
     r"Noise needs inputs of numbers, and samples are torch\.int64"),
    (DatasetSource([{"text": "a", "label": 0}, {"text": "b", "label": 1}]), Noise(low=0, high=1),  # type: ignore
     "Noise needs samples of an image tensor and a class, not dict"),
    (object(), LabelNoise(), "samples in a object cannot be shifted, must be in a TensorSource or a DatasetSource"),
])  # fmt: skip
def test_samples_that_cannot_be_shifted_are_refused(source: Any, shift: Shift, message: str) -> None:
    if not isinstance(source, TensorSource | DatasetSource):
        source = type("object", (), {"labels": np.array([0, 1]), "__len__": lambda self: 2})()
    with pytest.raises(ValueError, match=f"^partition\\.shift: {message}"):
        shifted(source, shift, np.array([0, 0]), 1, 0)


def test_samples_in_dicts_get_other_labels() -> None:
    dicts: Any = [{"x": torch.ones(1), "y": index % 2} for index in range(6)]
    found = shifted(DatasetSource(dicts), LabelNoise(low=1, high=1), np.zeros(6, int), 1, 0)
    (batch,) = found.batches(np.arange(6), 6)
    assert batch["y"].tolist() == [1, 0, 1, 0, 1, 0]
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0, 1, 0, 1, 0]
    unknown: Any = [{"x": torch.ones(1), "class": index} for index in range(2)]
    with pytest.raises(ValueError, match=r"^samples have the keys x, class, and none of label, labels"):
        shifted(DatasetSource(unknown, label_key="class"), LabelNoise(low=1, high=1), np.zeros(2, int), 1, 0)


def test_plain_datasets_go_through() -> None:
    plain: Any = TensorDataset(torch.ones(3, 2), torch.arange(3))
    (batch,) = shifted(DatasetSource(plain), Contrast(low=0, high=0), np.zeros(3, int), 1, 0).batches(np.arange(3), 3)
    assert batch[1].tolist() == [0, 1, 2]
