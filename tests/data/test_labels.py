"""Where the classes of samples are found, and how another place is named."""

import re
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from flrl.data import DatasetSource, from_datamodule, from_datasets
from flrl.data.partitions import dirichlet
from flrl.data.sources import labels_of


class Dicts(Dataset[Any]):
    """Samples that are dicts, with their class under some key."""

    def __init__(self, key: str, **more: Any) -> None:
        self.key, self.more = key, more

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return {"image": torch.zeros(2), self.key: torch.tensor(index % 3), **self.more}


@pytest.mark.parametrize("key", ["label", "labels", "target", "targets", "y"])
def test_labels_of_samples_that_are_dicts(key: str) -> None:
    found = labels_of(Dicts(key))
    assert found is not None
    assert (found.tolist(), found.dtype) == ([0, 1, 2, 0], np.int64)
    subset = labels_of(Subset(Dicts(key), [2, 1]))
    assert subset is not None
    assert subset.tolist() == [2, 1]


def test_the_key_of_a_dicts_label_can_be_named() -> None:
    assert labels_of(Dicts("digit")) is None
    found = DatasetSource(Dicts("digit", label=7), label_key="digit").labels
    assert found is not None
    assert found.tolist() == [0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"^label_key=digits: samples have the keys image, digit$"):
        labels_of(Dicts("digit"), "digits")
    pairs: Dataset[Any] = TensorDataset(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"^label_key=digit: samples are no dicts but of type tuple$"):
        labels_of(pairs, "digit")
    splits = from_datasets(train=Dicts("digit"), test=Dicts("digit"), label_key="digit")
    assert splits.train.labels is not None
    assert splits.train.labels.tolist() == [0, 1, 2, 0]
    assert splits.test.labels is None


@pytest.mark.parametrize("options", [{}, {"label_key": "digit"}])
def test_a_data_modules_dicts(options: dict[str, Any]) -> None:
    class Own(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(Dicts("digit" if options else "label"))

        def test_dataloader(self) -> Any:
            return self.train_dataloader()

    labels = from_datamodule(datamodule=Own(), **options).train.labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 2, 0]


def test_a_partition_that_misses_labels_names_where_they_are_taken_from() -> None:
    message = (
        "partition dirichlet needs class labels, which this dataset does not have: whole numbers are taken from its "
        "targets, labels or y, else from each sample's second part, or where samples are dicts from their label, "
        "labels, target, targets, y; label_key of flrl.data.from_datasets, from_datamodule or DatasetSource names "
        "another key"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dirichlet(4, DatasetSource(Dicts("digit")).labels, np.random.default_rng(0), num_clients=2, alpha=1.0)
