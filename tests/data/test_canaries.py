"""Sample canaries: which they are, who has them, and that a coin changes one sample alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flrl.data import DatasetSource, FederatedData, Splits
from flrl.data.canaries import with_canaries
from flrl.data.datasets import digits
from tests.toys import blobs, blocks


def federated(num: int = 40, coin_seed: int = 0, **options: Any) -> FederatedData:
    splits = with_canaries(dataset=digits(), num=num, coin_seed=coin_seed)
    return FederatedData(splits, blocks([400, 38, 1000]), seed=0, **options)


def test_mislabelled_samples_have_another_class_and_the_others_are_as_they_were() -> None:
    plain, splits = digits().train, with_canaries(dataset=digits(), num=200, coin_seed=1)
    assert splits.canaries is not None
    own = np.isin(np.arange(len(plain)), splits.canaries.indices)
    assert own.sum() == 200
    assert torch.equal(splits.train.inputs, plain.inputs)  # type: ignore[attr-defined]
    assert ((splits.train.labels == plain.labels) == ~own).all()
    assert (splits.train.labels == splits.train.targets.numpy()).all()  # type: ignore[attr-defined]
    assert 0.35 < splits.canaries.included.mean() < 0.65
    assert len(np.unique((splits.train.labels - plain.labels)[own] % 10)) == 9  # type: ignore[operator]


def test_noise_is_between_the_smallest_and_the_largest_input() -> None:
    plain = digits().train
    splits = with_canaries(dataset=digits(), num=50, kind="noise", coin_seed=1)
    assert splits.canaries is not None
    noisy = splits.train.inputs[splits.canaries.indices]  # type: ignore[attr-defined]
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert noisy.mean() == pytest.approx(0.5, abs=0.02)
    own = np.isin(np.arange(len(plain)), splits.canaries.indices)
    assert torch.equal(splits.train.inputs[~own], plain.inputs[~own])  # type: ignore[attr-defined]


def test_coins_and_samples_have_seeds_of_their_own() -> None:
    a, b = (with_canaries(dataset=digits(), num=100, coin_seed=coin).canaries for coin in (0, 1))
    c = with_canaries(dataset=digits(), num=100, seed=1, coin_seed=0).canaries
    assert a is not None
    assert b is not None
    assert c is not None
    assert (a.indices == b.indices).all()
    assert (a.included != b.included).any()
    assert (a.indices != c.indices).any()
    assert (a.included == c.included).all()


def test_a_coin_changes_one_sample_of_one_client_alone(tmp_path: Path) -> None:
    """What is out is nobody's; all others stay with their clients, in their order."""
    without = FederatedData(Splits(digits().train, digits().test), blocks([400, 38, 1000]), seed=0)
    data = federated()
    canaries = data.splits.canaries
    assert canaries is not None
    gone = canaries.indices[~canaries.included]
    for client in range(3):
        before = without.train_indices(client)
        assert data.train_indices(client).tolist() == before[~np.isin(before, gone)].tolist()
    assert data.sizes.sum() == 1438 - len(gone)
    assert data.hash != without.hash
    data.save(tmp_path / "partition.npz")
    with np.load(tmp_path / "partition.npz") as saved:
        assert saved["canaries"].tolist() == canaries.indices.tolist()
        assert saved["included"].tolist() == canaries.included.tolist()
        assert sorted(saved["indices"]) == sorted(set(range(1438)) - set(gone.tolist()))
    without.save(tmp_path / "plain.npz")
    with np.load(tmp_path / "plain.npz") as saved:
        assert sorted(saved.files) == ["ends", "hash", "indices", "sizes"]


def test_a_process_that_holds_some_clients_has_their_samples() -> None:
    data, part = federated(), federated().only([1], test=False)
    assert part.train_indices(1).tolist() == list(range(len(data.train_indices(1))))
    held = part.splits.train.inputs  # type: ignore[attr-defined]
    assert torch.equal(held, data.splits.train.inputs[data.train_indices(1)])  # type: ignore[attr-defined]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset.num=0: must be at least 1 and at most 1438"):
        federated(num=0)
    with pytest.raises(ValueError, match=r"dataset.num: client 1 has nothing but canaries, which are out"):
        FederatedData(with_canaries(dataset=digits(), num=1438, coin_seed=0), blocks([1436, 1, 1]), seed=0)
    for name, value in (("holdout", 0.1), ("root_samples", 3), ("public_samples", 4)):
        with pytest.raises(ValueError, match=rf"{name}={value}: with canaries it must be 0"):
            federated(**{name: value})
    with pytest.raises(ValueError, match=r"dataset.kind='odd': must be 'mislabelled' or 'noise'"):
        with_canaries(dataset=digits(), num=3, kind="odd", coin_seed=0)  # type: ignore[arg-type]
    source = DatasetSource(torch.utils.data.TensorDataset(blobs(5).inputs, blobs(5).targets))
    with pytest.raises(ValueError, match=r"dataset.dataset: canaries need samples with a class, in memory"):
        with_canaries(dataset=Splits(source, source), num=3, coin_seed=0)
