"""Marks on images, and clients that have nothing else."""

import numpy as np
import pytest
import torch

from flrl.data import DatasetSource, FederatedData, Splits, TensorSource
from flrl.data.datasets import digits
from flrl.data.marked import Mark, marked
from flrl.data.partitions import blocks


def test_a_mark_is_a_square_in_the_lower_right_corner() -> None:
    source = TensorSource(torch.arange(32, dtype=torch.uint8).view(1, 2, 4, 4), torch.tensor([3]), mean=[0.5], std=[2])
    white = Mark(size=2)(source)
    changed = (white.inputs != source.inputs)[0]
    assert changed.nonzero().tolist() == [[0, 2, 2], [0, 2, 3], [0, 3, 2], [0, 3, 3], [1, 2, 2], [1, 2, 3], [1, 3, 2]]
    assert white.inputs[0, :, 2:, 2:].unique().tolist() == [31]
    inputs, classes = next(white.batches(np.arange(1), 1))
    assert inputs[0, 0, 3, 3] == pytest.approx((31 / 255 - 0.5) / 2)
    assert classes.tolist() == [3]
    assert Mark(size=1, value=7)(source).inputs[0, :, 3, 3].tolist() == [7, 7]


def test_the_last_samples_are_marked_and_the_last_clients_have_them() -> None:
    plain = digits()
    splits = marked(dataset=digits(), mark=Mark(), share=0.25)
    assert isinstance(splits.train, TensorSource)
    has = splits.train.inputs[:, 0, 6:, 6:].flatten(1).min(1).values == 1
    first = round(0.75 * len(splits.train))
    assert not has[:first].any()
    assert has[first:].all()
    assert torch.equal(splits.train.inputs[:first], plain.train.inputs[:first])  # type: ignore[attr-defined]
    assert torch.equal(splits.test.inputs, plain.test.inputs)  # type: ignore[attr-defined]
    data = FederatedData(splits, lambda *a: blocks(*a, num_clients=8, share=0.25), seed=0)
    shares = [has[data.train_indices(client)].double().mean().item() for client in range(8)]
    assert shares == [0.0] * 6 + [1.0] * 2
    assert data.sizes.max() - data.sizes.min() <= 1


@pytest.mark.parametrize(("share", "clients"), [(0.0, 4), (1.0, 4), (0.1, 4), (0.5, 1)])
def test_both_blocks_need_clients(share: float, clients: int) -> None:
    with pytest.raises(ValueError, match=rf"partition.share={share}: both blocks need some of the {clients} clients"):
        blocks(100, None, np.random.default_rng(0), num_clients=clients, share=share)


def test_what_cannot_be_marked_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0: must be at least 1"):
        Mark(size=0)
    with pytest.raises(ValueError, match=r"samples of shape \(5,\) have no corner"):
        Mark()(TensorSource(torch.zeros(2, 5), torch.tensor([0, 1])))
    with pytest.raises(ValueError, match=r"dataset.share=1.0: must be above 0 and below 1"):
        marked(dataset=digits(), mark=Mark(), share=1.0)
    lazy = DatasetSource([(torch.zeros(1, 8, 8), 0)] * 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs samples in memory, and has a DatasetSource"):
        marked(dataset=Splits(lazy, lazy), mark=Mark(), share=0.5)
