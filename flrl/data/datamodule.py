"""A user's own data: a `LightningDataModule`, or two map-style datasets."""

from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flrl.data.sources import DatasetSource, Source, Splits, TensorSource
from flrl.lightning.hooks import overridden


def from_datasets(
    *, train: Dataset[Any], test: Dataset[Any], num_workers: int = 0, label_key: str | None = None
) -> Splits:
    """Two map-style datasets as a federated dataset.

    A `TensorDataset` of two floating-point tensors is batched by indexing; the samples are the same.

    Args:
        train: training samples.
        test: central test samples.
        num_workers: worker processes of the DataLoaders.
        label_key: if training samples are dicts, the key of their class; see `flrl.data.labels.labels_of`.

    Raises:
        ValueError: samples do not have the key.
    """
    return Splits(_source(train, num_workers=num_workers, label_key=label_key), _source(test, num_workers=num_workers))


def from_datamodule(*, datamodule: pl.LightningDataModule, label_key: str | None = None) -> Splits:
    """The datasets behind a data module's train and test (else validation) loaders.

    Batch size and order are the trainer's; the loaders' `collate_fn` and `num_workers` are kept.

    Args:
        datamodule: any LightningDataModule.
        label_key: if training samples are dicts, the key of their class; see `flrl.data.labels.labels_of`.

    Raises:
        ValueError: a loader is missing, is not a single DataLoader, or has a dataset without length or indexing.
    """
    datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.setup("test")
    name = type(datamodule).__name__
    if not overridden(datamodule, "train_dataloader"):
        raise ValueError(f"{name} has no train_dataloader")
    own = [loader for loader in ("test_dataloader", "val_dataloader") if overridden(datamodule, loader)]
    if not own:
        raise ValueError(f"{name} has neither a test_dataloader nor a val_dataloader")
    train = _single(datamodule.train_dataloader(), "train_dataloader")
    test = _single(getattr(datamodule, own[0])(), own[0])
    return Splits(train=_from_loader(train, label_key), test=_from_loader(test))


def _single(loader: object, name: str) -> DataLoader[Any]:
    if isinstance(loader, list | tuple) and len(loader) == 1:
        loader = loader[0]
    if not isinstance(loader, DataLoader):
        kind = "several loaders" if isinstance(loader, Iterable) else type(loader).__name__
        raise ValueError(f"{name} must return one torch DataLoader, got {kind}")
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise ValueError(f"{name}: {type(loader.dataset).__name__} is not a map-style dataset")
    return loader


def _from_loader(loader: DataLoader[Any], label_key: str | None = None) -> Source:
    options: dict[str, Any] = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
    return DatasetSource(loader.dataset, label_key=label_key, **options)


def _source(dataset: Dataset[Any], *, num_workers: int, label_key: str | None = None) -> Source:
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2 and dataset.tensors[0].dtype != torch.uint8:
        return TensorSource(*dataset.tensors)
    return DatasetSource(dataset, num_workers=num_workers, label_key=label_key)
