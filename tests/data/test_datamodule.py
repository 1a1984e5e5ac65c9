"""A user's own datasets and data modules."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from flrl.data import DatasetSource, TensorSource, from_datamodule, from_datasets

TRAIN = TensorDataset(torch.arange(12.0).view(6, 2), torch.arange(6) % 3)
TEST = TensorDataset(torch.arange(4.0).view(2, 2), torch.tensor([1, 0]))
EVERY = np.arange(6)


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"number": index}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(1), 0


class SizedStream(Stream):
    def __len__(self) -> int:
        return 1


class TrainOnly(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(TRAIN, batch_size=5, shuffle=True, drop_last=True)


class WithVal(TrainOnly):
    def val_dataloader(self) -> Any:
        return [DataLoader(TEST, batch_size=1)]


class WithBoth(WithVal):
    def test_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.zeros(7, 2), torch.zeros(7, dtype=torch.int64)))


class Staged(pl.LightningDataModule):
    """Builds its datasets in the hooks that Lightning has for it, and only there."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def prepare_data(self) -> None:
        self.calls.append("prepare")

    def setup(self, stage: str) -> None:
        self.calls.append(stage)
        setattr(self, stage, TRAIN if stage == "fit" else TEST)

    def train_dataloader(self) -> Any:
        return DataLoader(self.fit)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test)


def first(source: Any, count: int) -> Any:
    return next(iter(source.batches(np.arange(count), count)))


def test_two_tensors_are_batched_by_indexing() -> None:
    splits = from_datasets(train=TRAIN, test=TEST)
    assert isinstance(splits.train, TensorSource)
    assert splits.train.inputs is TRAIN.tensors[0]
    assert (len(splits.train), len(splits.test)) == (6, 2)
    assert splits.train.labels is not None
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    inputs, targets = first(splits.test, 2)
    assert (inputs.tolist(), targets.tolist()) == ([[0.0, 1.0], [2.0, 3.0]], [1, 0])


def test_other_datasets_go_through_a_loader() -> None:
    three = TensorDataset(torch.zeros(2, 1), torch.tensor([4, 5]), torch.ones(2))
    splits = from_datasets(train=Pairs(), test=three)
    assert isinstance(splits.train, DatasetSource)
    assert isinstance(splits.test, DatasetSource)
    assert splits.train.labels is None
    assert first(splits.train, 4)["number"].tolist() == [0, 1, 2, 3]
    assert [part.tolist() for part in first(splits.test, 2)] == [[[0.0], [0.0]], [4, 5], [1.0, 1.0]]
    assert splits.test.labels is not None
    assert splits.test.labels.tolist() == [4, 5]


def test_a_subclass_of_tensor_dataset_keeps_its_own_samples() -> None:
    class Negated(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            inputs, target = super().__getitem__(index)
            return -inputs, target

    inputs, _ = first(from_datasets(train=Negated(*TEST.tensors), test=TEST).train, 2)
    assert inputs.tolist() == [[0.0, -1.0], [-2.0, -3.0]]


def test_train_and_test_loaders_of_a_data_module() -> None:
    splits = from_datamodule(datamodule=WithBoth())
    assert (len(splits.train), len(splits.test)) == (6, 7)
    assert splits.train.labels is not None
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    inputs, targets = first(splits.train, 6)
    assert torch.equal(inputs, TRAIN.tensors[0])
    assert torch.equal(targets, TRAIN.tensors[1])


def test_the_validation_loader_stands_in_for_a_missing_test_loader() -> None:
    splits = from_datamodule(datamodule=WithVal())
    assert len(splits.test) == 2
    assert first(splits.test, 2)[1].tolist() == [1, 0]


def test_data_is_prepared_and_set_up_as_lightning_does() -> None:
    datamodule = Staged()
    splits = from_datamodule(datamodule=datamodule)
    assert datamodule.calls == ["prepare", "fit", "test"]
    assert (len(splits.train), len(splits.test)) == (6, 2)


def test_loaders_collate_functions_are_kept() -> None:
    class Summing(WithBoth):
        def train_dataloader(self) -> Any:
            return DataLoader(TRAIN, collate_fn=lambda samples: sum(float(inputs.sum()) for inputs, _ in samples))

    splits = from_datamodule(datamodule=Summing())
    assert list(splits.train.batches(EVERY, 4)) == [28.0, 38.0]


def test_lightnings_own_from_datasets() -> None:
    both = pl.LightningDataModule.from_datasets(train_dataset=TRAIN, test_dataset=TEST)
    splits = from_datamodule(datamodule=both)
    assert (len(splits.train), len(splits.test)) == (6, 2)
    with_val = pl.LightningDataModule.from_datasets(train_dataset=TRAIN, val_dataset=TEST)
    assert len(from_datamodule(datamodule=with_val).test) == 2


def loading(**loaders: Any) -> pl.LightningDataModule:
    methods = {name: (lambda self, value=value: value) for name, value in loaders.items()}
    return type("Mine", (WithBoth,), methods)()


@pytest.mark.parametrize(
    ("datamodule", "message"),
    [
        (TrainOnly(), "^TrainOnly has neither a test_dataloader nor a val_dataloader$"),
        (pl.LightningDataModule(), "train_dataloader"),
        (loading(train_dataloader=None), "^train_dataloader must return one torch DataLoader, got NoneType$"),
        (loading(train_dataloader=[DataLoader(TRAIN)] * 2), "must return one torch DataLoader, got several loaders"),
        (loading(train_dataloader={"a": DataLoader(TRAIN)}), "must return one torch DataLoader, got several loaders"),
        (loading(test_dataloader=3), "^test_dataloader must return one torch DataLoader, got int$"),
        (loading(train_dataloader=DataLoader(Stream())), "^train_dataloader: Stream is not a map-style dataset$"),
        (loading(test_dataloader=DataLoader(Stream())), "^test_dataloader: Stream is not a map-style dataset$"),
        (loading(train_dataloader=DataLoader(SizedStream())), "SizedStream is not a map-style dataset$"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(datamodule: pl.LightningDataModule, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_datamodule(datamodule=datamodule)


def test_loaders_that_are_assigned_in_setup() -> None:
    class Late(pl.LightningDataModule):
        def setup(self, stage: str) -> None:
            self.train_dataloader = lambda: DataLoader(TRAIN)  # type: ignore[method-assign]
            self.test_dataloader = lambda: DataLoader(TEST)  # type: ignore[method-assign]

    splits = from_datamodule(datamodule=Late())
    assert (len(splits.train), len(splits.test)) == (6, 2)


def test_bytes_in_a_tensor_dataset_are_left_alone_either_way() -> None:
    pixels = TensorDataset(torch.full((2, 1), 255, dtype=torch.uint8), torch.tensor([0, 1]))
    inputs, _ = first(from_datasets(train=pixels, test=pixels).train, 2)
    assert (inputs.dtype, inputs.tolist()) == (torch.uint8, [[255], [255]])
