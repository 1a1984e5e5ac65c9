"""The datasets that come with flrl. Each is a function that returns `Splits`, and a yaml in `conf/dataset/`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flrl.data.clusters import gaussian_clusters
from flrl.data.download import FASHION_MNIST, MNIST, IdxFiles, fetch
from flrl.data.sources import Splits, TensorSource
from flrl.seeding import SERVER, seed_for


def mnist(*, data_dir: str, download: bool = True, mean: Sequence[float], std: Sequence[float]) -> Splits:
    """MNIST (LeCun et al., 1998): 60,000 training and 10,000 test images of handwritten digits, 28 x 28 pixels.

    Args:
        data_dir: files are searched, and put, in `<data_dir>/MNIST/raw`.
        download: whether missing files are fetched.
        mean: mean of the pixels in [0, 1], one for each channel.
        std: standard deviation of the pixels in [0, 1], one for each channel.

    Raises:
        ValueError: a file's SHA-256 is not the published one.
        FileNotFoundError: a file is missing and no source could be reached.
    """
    return _idx_dataset(MNIST, data_dir, download, mean, std)


def fashion_mnist(*, data_dir: str, download: bool = True, mean: Sequence[float], std: Sequence[float]) -> Splits:
    """Fashion-MNIST (Xiao, Rasul, Vollgraf, 2017, arXiv 1708.07747); arguments and errors as for `mnist`."""
    return _idx_dataset(FASHION_MNIST, data_dir, download, mean, std)


def digits() -> Splits:
    """scikit-learn's digits: 1,797 images of 8 x 8 pixels with values 0 to 16, scaled to [0, 1]; nothing to download.

    Every fifth image (the fifth, the tenth, ...) is a test image: 1,438 for training, 359 for testing.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    inputs = torch.from_numpy(images.astype(np.float32) / 16).view(-1, 1, 8, 8)
    targets = torch.from_numpy(labels.astype(np.int64))
    held = torch.arange(len(inputs)) % 5 == 4
    return Splits(TensorSource(inputs[~held], targets[~held]), TensorSource(inputs[held], targets[held]))


def synthetic_classification(
    *, num_samples: int, test_samples: int, input_shape: Sequence[int], num_classes: int, separation: float, seed: int
) -> Splits:
    """Gaussian clusters on the corners of a hypercube, one per class (scikit-learn's `make_classification`).

    Args:
        num_samples: number of training samples.
        test_samples: number of test samples.
        input_shape: shape of one sample; its product is the number of features, which are all informative.
        num_classes: number of classes, at most 2 to the number of features.
        separation: distance between the clusters; at 1.0 they overlap a little.
        seed: seed of the data; the run's seed by default in the yaml.

    Raises:
        ValueError: a number of samples is below 1, or there are too many classes.
    """
    for name, value in (("num_samples", num_samples), ("test_samples", test_samples)):
        if value < 1:
            raise ValueError(f"dataset.{name}={value}: must be at least 1")
    features = int(np.prod(list(input_shape)))
    if num_classes > 2**features:
        raise ValueError(f"dataset.num_classes={num_classes}: {features} features have room for {2**features} at most")
    inputs, labels = gaussian_clusters(
        num_samples + test_samples,
        features,
        num_classes=num_classes,
        separation=separation,
        seed=seed_for(seed, 0, SERVER, "synthetic") % 2**32,
    )
    x = torch.from_numpy(inputs).view(-1, *input_shape)
    y = torch.from_numpy(labels)
    return Splits(TensorSource(x[:num_samples], y[:num_samples]), TensorSource(x[num_samples:], y[num_samples:]))


def _idx_dataset(
    files: IdxFiles,
    data_dir: str,
    download: bool,
    mean: Sequence[float],
    std: Sequence[float],
) -> Splits:
    arrays = [read_idx(path) for path in fetch(files, Path(data_dir), download=download)]
    images = [torch.from_numpy(array).unsqueeze(1) for array in arrays[::2]]
    labels = [torch.from_numpy(array.astype(np.int64)) for array in arrays[1::2]]
    train, test = (TensorSource(x, y, mean=mean, std=std) for x, y in zip(images, labels, strict=True))
    return Splits(train, test)


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes (http://yann.lecun.com/exdb/mnist): shape in the header, then the data.

    The array is mapped from the file: only what is read is loaded.
    """
    with path.open("rb") as file:
        dimensions = file.read(4)[3]
        shape = tuple(np.frombuffer(file.read(4 * dimensions), dtype=">i4").tolist())
    # Copy on write: all processes that read the file share its memory, and cannot change the file.
    return np.memmap(path, dtype=np.uint8, mode="c", offset=4 + 4 * dimensions, shape=shape)
