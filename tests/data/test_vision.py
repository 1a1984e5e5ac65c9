"""EMNIST, CIFAR and SVHN from tiny files in their real formats."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flrl.data import TensorSource
from flrl.data.vision import cifar10, cifar100, emnist, svhn
from tests.tiny_files import WRITERS, pixels

HALF = {"mean": [0.5], "std": [0.25]}
NORMALISED = {"mean": [0.5, 0.25, 0.0], "std": [0.25, 0.5, 1.0]}


@pytest.fixture
def data_dir(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    WRITERS[request.param](tmp_path, monkeypatch)
    return str(tmp_path)


def first(source: Any) -> torch.Tensor:
    """The first sample as a batch has it; pixels are bytes before."""
    assert isinstance(source, TensorSource)
    assert source.inputs.dtype == torch.uint8
    return next(source.batches(np.array([0]), 1))[0][0]


@pytest.mark.parametrize("data_dir", ["emnist"], indirect=True)
def test_emnist_is_upright_and_its_classes_begin_with_0(data_dir: str) -> None:
    splits = emnist(data_dir=data_dir, split="byclass", **HALF)
    written = pixels(8, 28, 28)[0].T.astype(np.float32)  # the files have columns as rows
    assert torch.allclose(first(splits.train)[0], torch.from_numpy((written / 255 - 0.5) / 0.25), atol=1e-6)
    assert splits.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert (len(splits.test), splits.num_classes) == (4, 62)
    letters = emnist(data_dir=data_dir, split="letters", **HALF)
    assert (letters.train.labels.tolist(), letters.num_classes) == ([0, 1, 2, 3, 4, 5, 6, 7], 26)
    assert letters.train.inputs.untyped_storage().nbytes() == 8 * 28 * 28  # turning has made no copy


def test_emnist_has_splits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^dataset\.split=capitals: must be one of byclass, bymerge, balanced, let"):
        emnist(data_dir=str(tmp_path), split="capitals", **HALF)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data_dir", "make", "classes", "count"),
    [("cifar10", cifar10, 10, 10), ("cifar100", cifar100, 100, 2)],
    indirect=["data_dir"],
)
def test_cifar(data_dir: str, make: Any, classes: int, count: int) -> None:
    splits = make(data_dir=data_dir, **NORMALISED)
    written = pixels(2, 3072)[0].reshape(3, 32, 32) / np.float32(255)
    expected = (written - np.array([0.5, 0.25, 0], np.float32)[:, None, None]) / np.array([[[0.25]], [[0.5]], [[1]]])
    assert torch.allclose(first(splits.train), torch.from_numpy(expected).float(), atol=1e-6)
    assert splits.train.labels.tolist() == [label for number in range(count // 2) for label in (number, 9 - number)]
    assert (splits.test.labels.tolist(), splits.num_classes) == ([0, 9], classes)
    assert splits.train.inputs.is_contiguous()


@pytest.mark.parametrize("data_dir", ["svhn"], indirect=True)
def test_svhn_calls_its_ten_zero(data_dir: str) -> None:
    splits = svhn(data_dir=data_dir, **NORMALISED)
    written = pixels(6, 3, 32, 32)[0] / np.float32(255)
    assert torch.allclose(first(splits.train)[2], torch.from_numpy(written[2]).float(), atol=1e-6)
    assert splits.test.labels.tolist() == [0, 1, 2, 9, 0, 5]
    assert splits.train.inputs.is_contiguous()


@pytest.mark.parametrize(
    ("make", "folder", "files"),
    [
        (emnist, "EMNIST/raw", "emnist-byclass-train-images-idx3-ubyte, emnist-byclass-train-labels-idx1-ubyte"),
        (cifar10, "cifar-10-batches-py", "data_batch_1, data_batch_2"),
        (cifar100, "cifar-100-python", "train, test, meta"),
        (svhn, "", "train_32x32.mat, test_32x32.mat"),
    ],
)
def test_missing_files_are_named(
    make: Any, folder: str, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise OSError("no way\nout")

    monkeypatch.setattr("urllib.request.urlopen", refused)
    for download, reason in ((False, "dataset.download=false"), (True, "no way")):
        with pytest.raises(FileNotFoundError) as caught:
            make(data_dir=str(tmp_path), download=download, **NORMALISED)
        line = str(caught.value)
        assert f"{tmp_path / folder}" in line
        assert f"({reason}): put {files}" in line
        assert "\n" not in line


@pytest.mark.parametrize("data_dir", ["cifar10"], indirect=True)
def test_a_damaged_file_is_not_read(data_dir: str) -> None:
    path = Path(data_dir) / "cifar-10-batches-py" / "data_batch_2"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FileNotFoundError, match="is damaged"):
        cifar10(data_dir=data_dir, download=False, **NORMALISED)
