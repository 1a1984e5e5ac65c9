"""Images from a tree of folders: `root/<class>/*.png`, or `root/<client>/<class>/*.png`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from flrl.data.sources import Splits, TensorSource

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


def image_folder(
    *,
    root: str,
    channels: Literal[1, 3] = 3,
    size: Sequence[int] | None = None,
    test_share: float = 0.2,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Splits:
    """Images by class, or by client and class; they are held as uint8.

    Where `root` has the two folders `train` and `test` and nothing else, each of them is such a tree. Else the last
    images of each folder, by name, are the test images.

    Args:
        root: the tree. Classes are numbered in the order of their names, and so are clients.
        channels: 3 for colours, 1 for grey.
        size: height and width to which images are resized (bilinear); null: all have to have one size.
        test_share: share of each folder's images that are test images, rounded down, in [0, 1).
        mean: mean of the pixels in [0, 1], one for each channel; null leaves them in [0, 1].
        std: standard deviation of the pixels, one for each channel.

    Returns:
        Pixels `[images, channels, height, width]`; groups are the clients, if there are any.

    Raises:
        FileNotFoundError: there are no images.
        ValueError: a setting is invalid, images differ in size, or lie both in folders of classes and of clients.
    """
    if channels not in (1, 3):
        raise ValueError(f"dataset.channels={channels}: must be 1 or 3")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"dataset.size={[*size]}: must be a height and a width, or null")
    if not 0 <= test_share < 1:
        raise ValueError(f"dataset.test_share={test_share}: must be at least 0 and below 1")
    top = Path(root)
    if top.is_dir() and {path.name for path in top.iterdir() if path.is_dir()} == {"train", "test"}:
        train, test = _images(top / "train"), _images(top / "test")
    else:
        train, test = _divided(_images(top), test_share)
    depths = {len(parts) for parts, _ in (*train, *test)}
    if not train or depths - {1, 2} or len(depths) > 1:
        raise ValueError(
            f"dataset.root={root}: images must lie in <class>/ or all in <client>/<class>/, with some for training"
        )
    classes = sorted({parts[-1] for parts, _ in (*train, *test)})
    sources = [_source(part, classes, channels, size, mean, std) for part in (train, test)]
    groups = None
    if depths == {2}:
        _, owners = np.unique([parts[0] for parts, _ in train], return_inverse=True)
        groups = owners.astype(np.int64)
    return Splits(sources[0], sources[1], groups=groups, num_classes=len(classes))


def _images(folder: Path) -> list[tuple[tuple[str, ...], Path]]:
    """The names of the folders below `folder` that lead to each image, and its path, sorted."""
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        raise FileNotFoundError(
            f"dataset.root: there are no images below {folder.resolve()}: put them into <class>/ or <client>/<class>/"
        )
    return sorted((path.relative_to(folder).parts[:-1], path) for path in paths)


def _divided(
    images: Sequence[tuple[tuple[str, ...], Path]], share: float
) -> tuple[list[tuple[tuple[str, ...], Path]], list[tuple[tuple[str, ...], Path]]]:
    folders: dict[tuple[str, ...], list[Path]] = {}
    for parts, path in images:
        folders.setdefault(parts, []).append(path)
    train, test = [], []
    for parts, paths in folders.items():
        kept = len(paths) - int(share * len(paths))
        train += [(parts, path) for path in paths[:kept]]
        test += [(parts, path) for path in paths[kept:]]
    return train, test


def _source(
    images: Sequence[tuple[tuple[str, ...], Path]],
    classes: Sequence[str],
    channels: int,
    size: Sequence[int] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> TensorSource:
    pixels: np.ndarray | None = None
    for number, (_, path) in enumerate(images):
        with Image.open(path) as image:
            read = image.convert("L" if channels == 1 else "RGB")
        if size is not None:
            read = read.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(read).reshape(read.height, read.width, channels).transpose(2, 0, 1)
        if pixels is None:
            pixels = np.empty((len(images), *array.shape), dtype=np.uint8)
        if array.shape != pixels.shape[1:]:
            raise ValueError(
                f"{path}: has {read.height} x {read.width} pixels, and others have {pixels.shape[2]} x "
                f"{pixels.shape[3]}: dataset.size=[height,width] resizes all"
            )
        pixels[number] = array
    if pixels is None:  # no test images
        pixels = np.empty((0, channels, *(size or (1, 1))), dtype=np.uint8)
    targets = torch.tensor([classes.index(parts[-1]) for parts, _ in images], dtype=torch.int64)
    return TensorSource(torch.from_numpy(pixels), targets, mean=mean, std=std)
