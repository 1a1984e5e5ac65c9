"""Tables: standardised by training samples, every fifth sample for testing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_wine

from flrl.data.tabular import breast_cancer, california_housing, diabetes, wine
from tests.tiny_files import WRITERS


@pytest.mark.parametrize(
    ("make", "sizes", "columns", "classes"),
    [(breast_cancer, (456, 113), 30, 2), (wine, (143, 35), 13, 3), (diabetes, (354, 88), 10, None)],
)
def test_tables(make: Any, sizes: tuple[int, int], columns: int, classes: int | None) -> None:
    splits = make()
    inputs = splits.train.inputs.double()
    assert (inputs.shape, len(splits.test)) == ((sizes[0], columns), sizes[1])
    assert torch.allclose(inputs.mean(0), torch.zeros(columns).double(), atol=1e-5)
    assert torch.allclose(inputs.std(0, correction=0), torch.ones(columns).double(), atol=1e-5)
    assert (None if splits.train.labels is None else len(set(splits.train.labels))) == classes


def test_test_samples_have_the_training_samples_scale() -> None:
    inputs, labels = load_wine(return_X_y=True)
    kept = np.arange(len(inputs)) % 5 != 4
    expected = (inputs[4::5] - inputs[kept].mean(0)) / inputs[kept].std(0)
    assert np.allclose(wine().test.inputs.numpy(), expected, atol=1e-5)
    assert wine().test.labels.tolist() == labels[4::5].tolist()
    assert diabetes().test.targets.tolist() == load_diabetes(return_X_y=True)[1][4::5].tolist()


def test_california_is_read_from_scikit_learns_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^cal_housing_py3\.pkz is not in {tmp_path} .*download=false\): put"):
        california_housing(data_dir=str(tmp_path), download=False)
    WRITERS["california_housing"](tmp_path, monkeypatch)
    splits = california_housing(data_dir=str(tmp_path))
    values = np.random.default_rng(0).uniform(1, 9, size=(10, 9))[:, 0] / 100000
    assert splits.test.targets.tolist() == pytest.approx(values[4::5].tolist(), rel=1e-6)
    assert splits.train.inputs.shape == (8, 8)


def test_california_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> None:
        raise OSError("no way\nout")

    monkeypatch.setattr("sklearn.datasets._base.urlretrieve", refused)
    with pytest.raises(FileNotFoundError, match=r"could not be fetched \(no way\): put it there by hand"):
        california_housing(data_dir=str(tmp_path))
