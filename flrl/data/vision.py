"""EMNIST, CIFAR-10, CIFAR-100 and SVHN from the files that torchvision fetches and checks.

Pixels stay uint8 in memory and are normalised on the batch, as those of MNIST are.
"""

import http.client
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from flrl.data.datasets import read_idx
from flrl.data.download import short_timeout
from flrl.data.sources import Splits, TensorSource

EMNIST_CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}


def emnist(
    *,
    data_dir: str,
    download: bool = True,
    split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = "byclass",
    mean: Sequence[float],
    std: Sequence[float],
) -> Splits:
    """EMNIST (Cohen, Afshar, Tapson, van Schaik, 2017, arXiv 1702.05373): digits and letters, 28 x 28 pixels.

    Unlike torchvision's, images are upright, and classes of `letters` are 0 to 25 (its files have 1 to 26).

    Args:
        data_dir: files are searched, and put, in `<data_dir>/EMNIST/raw`.
        download: whether missing files are fetched: one archive of 536 MB for all splits.
        split: which samples: `byclass` 697,932 + 116,323 of 62 classes, `bymerge` the same of 47, `balanced`
            112,800 + 18,800 of 47, `letters` 124,800 + 20,800 of 26, `digits` 240,000 + 40,000, `mnist` 60,000 +
            10,000.
        mean: mean of the pixels in [0, 1], one for each channel.
        std: standard deviation of the pixels in [0, 1], one for each channel.

    Raises:
        ValueError: there is no such split.
        FileNotFoundError: a file is missing and could not be fetched.
    """
    from torchvision.datasets import EMNIST

    if split not in EMNIST_CLASSES:
        raise ValueError(f"dataset.split={split}: must be one of {', '.join(EMNIST_CLASSES)}")
    folder = Path(data_dir) / "EMNIST" / "raw"
    kinds = ("images-idx3", "labels-idx1")
    names = [f"emnist-{split}-{part}-{kind}-ubyte" for part in ("train", "test") for kind in kinds]
    paths = [folder / name for name in names]
    first = 1 if split == "letters" else 0
    parts = []
    for train, (images, labels) in ((True, paths[:2]), (False, paths[2:])):
        if not (images.is_file() and labels.is_file()):
            _fetched(
                lambda load, train=train: EMNIST(data_dir, split, train=train, download=load),  # type: ignore[misc]
                "EMNIST",
                folder,
                names,
                download=download,
            )
        # The files have each image's columns as rows. Turning them is a view: the file stays mapped.
        inputs = torch.from_numpy(read_idx(images)).unsqueeze(1).transpose(2, 3)
        targets = torch.from_numpy(read_idx(labels).astype(np.int64) - first)
        parts.append(TensorSource(inputs, targets, mean=mean, std=std))
    return Splits(parts[0], parts[1], num_classes=EMNIST_CLASSES[split])


def cifar10(*, data_dir: str, download: bool = True, mean: Sequence[float], std: Sequence[float]) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009): 50,000 + 10,000 photographs of 10 classes, 3 x 32 x 32 pixels.

    Args:
        data_dir: the folder `cifar-10-batches-py` is searched, and put, there.
        download: whether missing files are fetched.
        mean: mean of the pixels in [0, 1], one for each channel.
        std: standard deviation of the pixels in [0, 1], one for each channel.

    Raises:
        FileNotFoundError: a file is missing or has not the published MD5, and could not be fetched.
    """
    from torchvision.datasets import CIFAR10

    return _cifar(CIFAR10, "CIFAR-10", 10, data_dir, download, mean, std)


def cifar100(*, data_dir: str, download: bool = True, mean: Sequence[float], std: Sequence[float]) -> Splits:
    """CIFAR-100: as many photographs of 100 classes, in `cifar-100-python`; arguments and errors as for `cifar10`."""
    from torchvision.datasets import CIFAR100

    return _cifar(CIFAR100, "CIFAR-100", 100, data_dir, download, mean, std)


def svhn(*, data_dir: str, download: bool = True, mean: Sequence[float], std: Sequence[float]) -> Splits:
    """SVHN (Netzer et al., 2011): 73,257 + 26,032 digits of house numbers, 3 x 32 x 32 pixels.

    Its files, `train_32x32.mat` and `test_32x32.mat`, are put into `data_dir`; arguments and errors as for `cifar10`.
    """
    from torchvision.datasets import SVHN

    names = [SVHN.split_list[part][1] for part in ("train", "test")]
    parts = []
    for part in ("train", "test"):
        found = _fetched(
            lambda load, part=part: SVHN(data_dir, part, download=load),  # type: ignore[misc]
            "SVHN",
            Path(data_dir),
            names,
            download=download,
        )
        parts.append((torch.from_numpy(np.ascontiguousarray(found.data)), torch.from_numpy(found.labels)))
    return _normalised(parts, 10, mean, std)


def _cifar(
    kind: Any,
    name: str,
    num_classes: int,
    data_dir: str,
    download: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> Splits:
    names = [file for file, _ in (*kind.train_list, *kind.test_list)] + [kind.meta["filename"]]
    parts = []
    for train in (True, False):
        found = _fetched(
            lambda load, train=train: kind(data_dir, train=train, download=load),  # type: ignore[misc]
            name,
            Path(data_dir) / kind.base_folder,
            names,
            download=download,
        )
        # torchvision has turned the channels last, which is undone without a copy.
        parts.append((torch.from_numpy(found.data.transpose(0, 3, 1, 2)), torch.tensor(found.targets)))
    return _normalised(parts, num_classes, mean, std)


def _normalised(
    parts: Sequence[tuple[Tensor, Tensor]], num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> Splits:
    train, test = (TensorSource(inputs, targets, mean=mean, std=std) for inputs, targets in parts)
    return Splits(train, test, num_classes=num_classes)


def _fetched(make: Callable[[bool], Any], name: str, folder: Path, files: Sequence[str], *, download: bool) -> Any:
    """What torchvision makes of the files that are there, else of those that it fetches.

    Args:
        make: makes torchvision's dataset; called with whether it may download.
        name: of the dataset.
        folder: where its files are.
        files: their names.
        download: whether they may be fetched.

    Raises:
        FileNotFoundError: files are missing or damaged, and could not be fetched.
    """
    try:
        return make(False)
    except RuntimeError as error:
        reason = "dataset.download=false" if not download else str(error)
    if download:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / ".lock"), short_timeout():
                return make(True)
        except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
    raise FileNotFoundError(
        f"{name} is not in {folder.resolve()}, or is damaged, and could not be fetched ({reason}): "
        f"put {', '.join(files)} there by hand"
    )
