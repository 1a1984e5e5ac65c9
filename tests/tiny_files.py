"""Tiny files in the real formats of the datasets that read files: one function a choice of `conf/dataset/`.

A test with a parameter `path` that is such a choice has its files in `data/` of its working directory (conftest.py). A
new dataset that needs files adds a function to `WRITERS`.
"""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

PLAY = """A Play of Tests

ADA.
The rain is over and the house is warm.
The garden has a gate of painted iron.

BOB.
I walked along the river for an hour,
and saw two herons standing in the reeds.

ADA.
Then come inside and tell me what they did;
I have the kettle on, and bread, and plums.
"""


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def idx(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def emnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight training and four test images of two splits; classes of `letters` are from 1 on."""
    raw = folder / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for split, first in (("byclass", 0), ("letters", 1)):
        for part, count in (("train", 8), ("test", 4)):
            (raw / f"emnist-{split}-{part}-images-idx3-ubyte").write_bytes(idx(pixels(count, 28, 28)))
            labels = np.arange(first, first + count, dtype=np.uint8)
            (raw / f"emnist-{split}-{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def cifar(kind: str, label: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images a file, pickled as the published ones are; torchvision is told their MD5."""
    from torchvision import datasets

    known: Any = getattr(datasets, kind)
    base = folder / known.base_folder
    base.mkdir(parents=True)
    sums: dict[str, list[tuple[str, str]]] = {"train_list": [], "test_list": []}
    for listed, found in sums.items():
        for number, (name, _) in enumerate(getattr(known, listed)):
            content = {"data": pixels(2, 3072, seed=number), label: [number, 9 - number]}
            (base / name).write_bytes(pickle.dumps(content, protocol=2))
            found.append((name, md5(base / name)))
    meta = base / known.meta["filename"]
    meta.write_bytes(pickle.dumps({known.meta["key"]: [str(number) for number in range(10)]}, protocol=2))
    for listed, found in sums.items():
        monkeypatch.setattr(known, listed, found)
    monkeypatch.setattr(known, "meta", {**known.meta, "md5": md5(meta)})


def cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar("CIFAR10", "labels", folder, monkeypatch)


def cifar100(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar("CIFAR100", "fine_labels", folder, monkeypatch)


def svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six images as MATLAB's `X` and `y`, where a 0 is a 10."""
    from torchvision.datasets import SVHN

    folder.mkdir(parents=True, exist_ok=True)
    split_list = dict(SVHN.split_list)
    for part in ("train", "test"):
        url, name, _ = split_list[part]
        images = pixels(6, 3, 32, 32).transpose(2, 3, 1, 0)
        savemat(folder / name, {"X": images, "y": np.array([[10], [1], [2], [9], [10], [5]], np.uint8)})
        split_list[part] = [url, name, md5(folder / name)]
    monkeypatch.setattr(SVHN, "split_list", split_list)


def leaf_files(folder: Path, samples: Callable[[int], tuple[list[Any], list[Any]]]) -> None:
    """Two training files of two users each and one test file; user k has k + 2 training and two test samples."""
    users = ["ann", "bob", "cy", "dee"]
    for part, several in (("train", (users[:2], users[2:])), ("test", (users,))):
        (folder / part).mkdir(parents=True)
        for number, names in enumerate(several):
            counts = [users.index(name) + 2 if part == "train" else 2 for name in names]
            data = {
                name: dict(zip("xy", samples(count), strict=True)) for name, count in zip(names, counts, strict=True)
            }
            content = {"users": names, "num_samples": counts, "user_data": data}
            (folder / part / f"all_data_{number}_niid_0_keep_0_{part}_9.json").write_text(json.dumps(content))


def femnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf_files(folder / "femnist", lambda n: ((pixels(n, 784) / 255).tolist(), [*range(n)]))


def shakespeare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(PLAY.split())
    leaf_files(folder / "shakespeare", lambda n: ([text[i : i + 80] for i in range(n)], [*text[80 : 80 + n]]))


def leaf(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaf_files(folder / "leaf", lambda n: ([[i, 0.5, -1.0] for i in range(n)], [float(i % 3) for i in range(n)]))


def text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(PLAY)


def image_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two clients with two classes of five images each, of which the last one is for testing."""
    for client in ("ann", "bob"):
        for label in ("cat", "dog"):
            place = folder / "images" / client / label
            place.mkdir(parents=True)
            for number in range(5):
                Image.fromarray(pixels(6, 4, 3, seed=number)).save(place / f"{number}.png")


def california_housing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten districts as scikit-learn keeps them: value, income, age, rooms, bedrooms, people, households, place."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(0).uniform(1, 9, size=(10, 9))
    joblib.dump(rows, folder / "cal_housing_py3.pkz", compress=6)


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    made.__name__: made
    for made in (
        emnist, cifar10, cifar100, svhn, femnist, shakespeare, leaf, text, image_folder, california_housing,
    )
}  # fmt: skip
