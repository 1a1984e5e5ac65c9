"""Tables of scikit-learn, with standardised columns, for classification and for regression."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flrl.data.download import short_timeout
from flrl.data.sources import Splits, TensorSource


def breast_cancer() -> Splits:
    """Wisconsin's breast cancer data: 569 samples of 30 measurements, two classes; nothing to download.

    Every fifth sample (the fifth, the tenth, ...) is a test sample, in all tables. Each column has mean 0 and standard
    deviation 1 over the training samples.
    """
    from sklearn.datasets import load_breast_cancer

    return _classes(*load_breast_cancer(return_X_y=True))


def wine() -> Splits:
    """Wines of three cultivars: 178 samples of 13 chemical measurements; made like `breast_cancer`."""
    from sklearn.datasets import load_wine

    return _classes(*load_wine(return_X_y=True))


def diabetes() -> Splits:
    """The progression of diabetes after a year, 25 to 346, from 10 measurements: 442 patients; for regression.

    Made like `breast_cancer`; targets are float32 as they are.
    """
    from sklearn.datasets import load_diabetes

    return _numbers(*load_diabetes(return_X_y=True))


def california_housing(*, data_dir: str, download: bool = True) -> Splits:
    """The median value of houses, in 100,000 dollars, from 8 numbers about their district: 20,640; for regression.

    Made like `diabetes`.

    Args:
        data_dir: where scikit-learn's file `cal_housing_py3.pkz` is searched, and put.
        download: whether a missing file is fetched.

    Raises:
        FileNotFoundError: the file is missing and could not be fetched.
    """
    from sklearn.datasets import fetch_california_housing

    folder = Path(data_dir).resolve()
    given: dict[str, Any] = {"data_home": str(folder), "return_X_y": True, "n_retries": 1, "delay": 0.1}
    try:
        with short_timeout(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Retry downloading")
            inputs, targets = fetch_california_housing(download_if_missing=download, **given)
    except OSError as error:
        tried = str(error).splitlines()[0] if download else "dataset.download=false"
        raise FileNotFoundError(
            f"cal_housing_py3.pkz is not in {folder} and could not be fetched ({tried}): put it there by hand, from a "
            "machine where sklearn.datasets.fetch_california_housing() has made it in ~/scikit_learn_data"
        ) from None
    return _numbers(inputs, targets)


def _classes(inputs: np.ndarray, targets: np.ndarray) -> Splits:
    return _table(inputs, targets.astype(np.int64))


def _numbers(inputs: np.ndarray, targets: np.ndarray) -> Splits:
    return _table(inputs, targets.astype(np.float32))


def _table(inputs: np.ndarray, targets: np.ndarray) -> Splits:
    held = np.arange(len(inputs)) % 5 == 4
    mean, std = inputs[~held].mean(0), inputs[~held].std(0)
    columns = torch.from_numpy(((inputs - mean) / np.where(std > 0, std, 1)).astype(np.float32))
    wanted = torch.from_numpy(targets)
    train, test = (TensorSource(columns[chosen], wanted[chosen]) for chosen in (~held, held))
    return Splits(train, test)
