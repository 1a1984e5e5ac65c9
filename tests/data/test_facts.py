"""The shape of a dataset's samples and the number of its classes, read from the data."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from flrl.data import DatasetSource, Splits, TensorSource
from flrl.data.datasets import digits
from flrl.data.facts import Facts, facts_of


class Listed(Dataset[Any]):
    def __init__(self, *samples: Any) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Any:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)


def both(*samples: Any, **options: Any) -> Splits:
    source = DatasetSource(Listed(*samples), **options)
    return Splits(source, source)


IMAGE = torch.zeros(3, 4, 5)


@pytest.mark.parametrize(
    ("splits", "facts"),
    [
        (digits(), Facts((1, 8, 8), 10)),
        (both((IMAGE, 1), (IMAGE, 4)), Facts((3, 4, 5), 5)),
        (both((np.zeros((7,), np.float32), 0)), Facts((7,), 1)),
        (both({"image": IMAGE, "label": 2}), Facts((3, 4, 5), 3)),
        (both({"image": IMAGE, "digit": 2}, label_key="digit"), Facts(None, 3)),
        (both({"image": IMAGE, "mask": IMAGE}), Facts(None, None)),
        (both(IMAGE), Facts((3, 4, 5), None)),
        (both(("a text", 1)), Facts(None, 2)),
        (both((IMAGE, 0.5)), Facts((3, 4, 5), None)),
    ],
)
def test_facts(splits: Splits, facts: Facts) -> None:
    assert facts_of(splits) == facts


def test_a_class_that_only_the_test_set_has_counts() -> None:
    train, test = (TensorSource(torch.zeros(2, 3), torch.tensor(labels)) for labels in ([0, 1], [2, 6]))
    assert facts_of(Splits(train, test)) == Facts((3,), 7)


def test_an_empty_test_set_is_no_hindrance() -> None:
    splits = digits()
    assert facts_of(Splits(splits.train, splits.test.subset(np.empty(0, np.int64)))) == Facts((1, 8, 8), 10)
