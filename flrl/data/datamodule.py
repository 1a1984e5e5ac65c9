"""Bring your own data: a `LightningDataModule`, or two map-style datasets."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset, TensorDataset

from flrl.data.sources import DatasetSource, Source, Splits, TensorSource


def from_datasets(*, train: Dataset[Any], test: Dataset[Any], num_workers: int = 0) -> Splits:
    """Two map-style datasets as a federated dataset; a `TensorDataset` of two tensors is batched by indexing."""
    return Splits(train=_source(train, num_workers=num_workers), test=_source(test, num_workers=num_workers))


def from_datamodule(*, datamodule: pl.LightningDataModule) -> Splits:
    """The datasets behind a data module's train and test (else validation) loaders.

    Batch size and order are the trainer's; the loaders' `collate_fn` and `num_workers` are kept.

    Raises:
        ValueError: a loader is missing, is not a single DataLoader, or has a dataset without length or indexing.
    """
    datamodule.prepare_data()
    datamodule.setup("fit")
    train = _single(datamodule.train_dataloader(), "train_dataloader")
    datamodule.setup("test")
    has_test = type(datamodule).test_dataloader is not pl.LightningDataModule.test_dataloader
    name = "test_dataloader" if has_test else "val_dataloader"
    if not has_test and type(datamodule).val_dataloader is pl.LightningDataModule.val_dataloader:
        raise ValueError(f"{type(datamodule).__name__} has neither a test_dataloader nor a val_dataloader")
    test = _single(getattr(datamodule, name)(), name)
    return Splits(train=_from_loader(train), test=_from_loader(test))


def _single(loader: object, name: str) -> DataLoader[Any]:
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        kind = "several loaders" if isinstance(loader, Iterable) else type(loader).__name__
        raise ValueError(f"{name} must return one torch DataLoader, got {kind}")
    if not (hasattr(loader.dataset, "__len__") and hasattr(loader.dataset, "__getitem__")):
        raise ValueError(f"{name}: {type(loader.dataset).__name__} is not a map-style dataset")
    return loader


def _from_loader(loader: DataLoader[Any]) -> Source:
    return DatasetSource(loader.dataset, num_workers=loader.num_workers, collate_fn=loader.collate_fn)


def _source(dataset: Dataset[Any], *, num_workers: int) -> Source:
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return TensorSource(*dataset.tensors)
    return DatasetSource(dataset, num_workers=num_workers)
