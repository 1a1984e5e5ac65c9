"""Images from folders of classes, of clients and classes, and of train and test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flrl.data.folder import image_folder
from tests.tiny_files import WRITERS, pixels


def put(folder: Path, *names: str, size: tuple[int, int] = (4, 6)) -> None:
    """A grey image a name, the first one black, the next one brighter."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, number).save(path)


def test_clients_and_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    WRITERS["image_folder"](tmp_path, monkeypatch)
    splits = image_folder(root=str(tmp_path / "images"))
    assert splits.train.inputs.shape == (16, 3, 6, 4)
    assert splits.train.inputs[1].permute(1, 2, 0).tolist() == pixels(6, 4, 3, seed=1).tolist()
    assert splits.train.labels.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    assert splits.groups.tolist() == [0] * 8 + [1] * 8
    assert splits.groups.dtype == np.int64
    assert splits.test.labels.tolist() == [0, 1, 0, 1]
    assert splits.test.inputs[3].permute(1, 2, 0).tolist() == pixels(6, 4, 3, seed=4).tolist()
    batch, _ = next(splits.train.batches(np.array([1]), 1))
    assert torch.allclose(batch[0], torch.from_numpy(pixels(6, 4, 3, seed=1).transpose(2, 0, 1) / 255).float())


def test_classes_alone_in_train_and_test(tmp_path: Path) -> None:
    put(tmp_path, "train/b/0.png", "train/b/1.PNG", "test/a/2.png", "train/b/notes.bmp")
    (tmp_path / "train" / "b" / "readme.txt").write_text("no image")
    splits = image_folder(root=str(tmp_path), channels=1)
    assert (splits.groups, splits.num_classes) == (None, 2)
    assert splits.train.inputs[:, 0, 0, 0].tolist() == [0, 1, 3]
    assert (splits.train.labels.tolist(), splits.test.labels.tolist()) == ([1, 1, 1], [0])


def test_sizes_differ_or_are_made_equal(tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "b/0.png")
    put(tmp_path, "a/1.png", size=(5, 3))
    with pytest.raises(ValueError, match=r"1\.png: has 3 x 5 pixels, and others have 6 x 4: dataset\.size=\[height,w"):
        image_folder(root=str(tmp_path))
    assert image_folder(root=str(tmp_path), size=[2, 7]).train.inputs.shape == (3, 3, 2, 7)
    assert len(image_folder(root=str(tmp_path), size=[2, 7]).test) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"channels": 2}, r"^dataset\.channels=2: must be 1 or 3$"),
        ({"size": [3]}, r"^dataset\.size=\[3\]: must be a height and a width, or null$"),
        ({"test_share": -0.1}, r"^dataset\.test_share=-0\.1: must be at least 0 and below 1$"),
        ({}, r"images must lie in <class>/ or all in <client>/<class>/"),
    ],
)
def test_what_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "a/b/0.png")
    with pytest.raises(ValueError, match=said):
        image_folder(root=str(tmp_path), **options)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"^dataset\.root: there are no images below .*: put them into <class>/"
    ):
        image_folder(root=str(tmp_path / "none"))
