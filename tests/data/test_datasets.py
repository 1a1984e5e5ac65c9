"""The datasets that come along: their numbers, and what is checked of them."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from flrl.data import Splits, TensorSource, datasets
from flrl.data.datasets import digits, fashion_mnist, mnist, read_idx, synthetic_classification
from flrl.data.download import FASHION_MNIST, MNIST, IdxFiles

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# Two training images of 2 x 3 pixels and one test image.
CONTENTS = (
    bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 51, 102, 153, 204, 255, 1, 2, 3, 4, 5, 6]),
    bytes([0, 0, 8, 1, 0, 0, 0, 2, 2, 0]),
    bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 9, 9, 9, 9, 9, 9]),
    bytes([0, 0, 8, 1, 0, 0, 0, 1, 1]),
)


def tensors(source: Any) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(source, TensorSource)
    return source.inputs, source.targets


def make(**options: Any) -> Splits:
    defaults = {"num_samples": 40, "test_samples": 10, "input_shape": [4], "num_classes": 3, "separation": 1.0}
    return synthetic_classification(**{"seed": 0, **defaults, **options})


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of `mnist` and `fashion_mnist`, whose files are four hand-made ones on disk."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in zip(NAMES, CONTENTS, strict=True)}
    for constant, name in (("MNIST", "MNIST"), ("FASHION_MNIST", "FashionMNIST")):
        monkeypatch.setattr(datasets, constant, IdxFiles(name, hashes, {}))
        folder = tmp_path / name / "raw"
        folder.mkdir(parents=True)
        for file, data in zip(NAMES, CONTENTS, strict=True):
            (folder / file).write_bytes(data)
    return {"data_dir": str(tmp_path), "mean": [0.5], "std": [0.25]}


def test_digits() -> None:
    splits = digits()
    (train, train_labels), (test, test_labels) = tensors(splits.train), tensors(splits.test)
    assert (train.shape, test.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert (train.dtype, train_labels.dtype) == (torch.float32, torch.int64)
    assert (train[0, 0, 0] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert (float(train.min()), float(train.max())) == (0.0, 1.0)
    images, labels = load_digits(return_X_y=True)
    assert np.array_equal(test.view(-1, 64).numpy() * 16, images[4::5])
    assert test_labels.tolist() == labels[4::5].tolist()
    assert train_labels[:6].tolist() == labels[[0, 1, 2, 3, 5, 6]].tolist()
    assert torch.bincount(train_labels).sum() == 1438
    assert next(splits.train.batches(np.array([0]), 1))[0].equal(train[:1])


def test_synthetic_data_is_a_function_of_the_seed() -> None:
    (first, labels), (equal, _), (other, _) = (tensors(make(seed=seed).train) for seed in (5, 5, 6))
    assert torch.equal(first, equal)
    assert not torch.equal(first, other)
    assert (first.shape, first.dtype, labels.dtype) == ((40, 4), torch.float32, torch.int64)


def test_synthetic_data_leaves_the_global_generators_alone() -> None:
    np.random.seed(3)
    expected = np.random.rand(2).tolist()
    np.random.seed(3)
    make()
    assert np.random.rand(2).tolist() == expected


def test_synthetic_splits_are_two_parts_of_one_sample() -> None:
    splits = make(num_samples=900, test_samples=300, input_shape=[1, 2, 3], num_classes=4, separation=5.0)
    (train, train_labels), (test, test_labels) = tensors(splits.train), tensors(splits.test)
    assert (train.shape, test.shape) == ((900, 1, 2, 3), (300, 1, 2, 3))
    counts = torch.bincount(torch.cat([train_labels, test_labels]))
    assert counts.tolist() == pytest.approx([300] * 4, abs=15)
    centres = torch.stack([train[train_labels == label].flatten(1).mean(0) for label in range(4)])
    nearest = torch.cdist(test.flatten(1), centres).argmin(1)
    # One label in a hundred is random, make_classification's `flip_y`.
    assert (nearest == test_labels).float().mean() > 0.95


@pytest.mark.parametrize("name", ["num_samples", "test_samples"])
def test_synthetic_data_needs_samples(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^dataset\.{name}=0: must be at least 1$"):
        make(**{name: 0})


def test_synthetic_classes_fit_the_corners() -> None:
    assert int(tensors(make(num_classes=16).train)[1].max()) == 15
    with pytest.raises(ValueError, match="classes"):
        make(num_classes=17)


@pytest.mark.parametrize(
    ("data", "shape", "values"),
    [
        (CONTENTS[0], (2, 2, 3), [0, 51, 102, 153, 204, 255, 1, 2, 3, 4, 5, 6]),
        (CONTENTS[1], (2,), [2, 0]),
        (bytes([0, 0, 8, 2, 0, 0, 0, 0, 0, 0, 1, 4]), (0, 260), []),
        (bytes([0, 0, 8, 1, 0, 0, 1, 1]) + bytes(range(256)) + b"\x07", (257,), [*range(256), 7]),
    ],
)
def test_read_idx(tmp_path: Path, data: bytes, shape: tuple[int, ...], values: list[int]) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    array = read_idx(path)
    assert (array.dtype, array.shape) == (np.uint8, shape)
    assert array.flatten().tolist() == values
    assert array.flags.writeable


@pytest.mark.parametrize("dataset", [mnist, fashion_mnist])
def test_idx_files_become_normalised_images(tiny: dict[str, Any], dataset: Any) -> None:
    splits = dataset(**tiny)
    images, labels = next(splits.train.batches(np.array([0]), 1))
    assert images.shape == (1, 1, 2, 3)
    assert images.flatten().tolist() == pytest.approx([-2.0, -1.2, -0.4, 0.4, 1.2, 2.0], abs=1e-6)
    assert labels.tolist() == [2]
    assert splits.train.labels.tolist() == [2, 0]
    assert tensors(splits.train)[0].dtype == torch.uint8
    images, labels = next(splits.test.batches(np.array([0]), 1))
    assert images.flatten().tolist() == pytest.approx([(9 / 255 - 0.5) / 0.25] * 6)
    assert labels.tolist() == [1]


def test_idx_datasets_refuse_other_files(tiny: dict[str, Any]) -> None:
    path = Path(tiny["data_dir"]) / "MNIST" / "raw" / NAMES[1]
    path.write_bytes(CONTENTS[1] + b"\0")
    with pytest.raises(ValueError, match=f"{NAMES[1]} is corrupted: its SHA-256 is [0-9a-f]{{64}}, expected"):
        mnist(**tiny)


def test_download_false_reaches_the_files(tiny: dict[str, Any]) -> None:
    folder = Path(tiny["data_dir"]) / "FashionMNIST" / "raw"
    (folder / NAMES[3]).unlink()
    with pytest.raises(FileNotFoundError, match=r"dataset\.download=false"):
        fashion_mnist(**tiny, download=False)
    (folder / f"{NAMES[3]}.gz").write_bytes(gzip.compress(CONTENTS[3]))
    assert len(fashion_mnist(**tiny, download=False).test) == 1


def test_the_published_files_are_named_in_order() -> None:
    for files, name in ((MNIST, "MNIST"), (FASHION_MNIST, "FashionMNIST")):
        assert files.name == name
        assert tuple(files.sha256) == NAMES
        assert all(len(bytes.fromhex(digest)) == 32 for digest in files.sha256.values())
    assert len({*MNIST.sha256.values(), *FASHION_MNIST.sha256.values()}) == 8
