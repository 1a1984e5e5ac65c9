"""Statistics of partitions by hand, and what their picture shows."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from flrl.data import FederatedData, Splits, TensorSource
from flrl.data.pictures import partition_figure, save_partition
from flrl.data.statistics import partition_statistics
from tests.toys import blocks


def federation(sizes: list[int], labels: list[int] | None, **options: Any) -> FederatedData:
    targets = torch.zeros(sum(sizes)) if labels is None else torch.tensor(labels)
    source = TensorSource(torch.zeros(sum(sizes), 1), targets)
    return FederatedData(Splits(source, source), blocks(sizes), seed=0, **options)


def test_statistics_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes 2, 2, 4; all samples are half of class 0; distances 0.5, 0, 0.25; Gini (-2*2 + 0*2 + 2*4) / (3 * 8)."""
    data = federation([2, 2, 4], [0, 0, 0, 2, 0, 2, 2, 2])
    expected = {
        "size_min": 2, "size_max": 4, "size_mean": 8 / 3, "size_gini": 1 / 6, "label_entropy_min": 0.0,
        "label_entropy_mean": (np.log(2) - 0.25 * np.log(0.25) - 0.75 * np.log(0.75)) / 3,
        "label_distance_mean": 0.25, "label_distance_max": 0.5,
    }  # fmt: skip
    assert partition_statistics(data) == pytest.approx(expected)
    monkeypatch.setattr("flrl.data.statistics._AT_ONCE", 2)
    assert partition_statistics(data) == pytest.approx(expected)
    assert not np.signbit(partition_statistics(data)["label_entropy_min"])


def test_held_out_samples_and_clients_do_not_count_and_classes_may_be_unknown() -> None:
    held = federation([4, 4, 8], [0, 1] * 8, holdout=0.5, held_out_clients=1)
    assert partition_statistics(held)["size_mean"] == held.sizes.mean()
    unknown = partition_statistics(federation([2, 6], None))
    assert unknown == {"size_min": 2, "size_max": 6, "size_mean": 4.0, "size_gini": 0.25}
    assert len(partition_statistics(held.only([0], test=False))) == 4


def test_counts_of_some_clients_are_those_of_all() -> None:
    data = federation([2, 2, 4], [0, 0, 0, 2, 0, 2, 2, 2])
    whole = data.label_counts()
    assert whole is not None
    assert whole.tolist() == [[2, 0, 0], [1, 0, 1], [1, 0, 3]]
    for clients in (range(1), range(1, 3), range(2, 9)):
        some = data.label_counts(clients)
        assert some is not None
        assert some.tolist() == whole[clients.start : clients.stop].tolist()


def test_bars_are_the_counts_one_on_the_other() -> None:
    left, right = partition_figure(np.array([[1, 2], [3, 0], [0, 5]])).axes
    first, second = left.patches
    assert first.get_data().values.tolist() == [1, 3, 0]
    assert (second.get_data().baseline.tolist(), second.get_data().values.tolist()) == ([1, 3, 0], [3, 3, 5])
    assert sum(bar.get_height() for bar in right.patches) == 3
    many = partition_figure(np.ones((1000, 50), int))
    assert len(many.axes[0].patches) == 20
    assert many.axes[0].get_xlabel() == "client, the first 100 of 1000"
    assert many.axes[0].patches[-1].get_data().values.tolist() == [50] * 100


def test_a_run_has_its_picture_and_statistics(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flrl.data.pictures.save_partition", save_partition)
    shift = ("partition=classes", "partition/shift=drift", "partition/shift@partition.shift.shift=label_noise")
    done = cli(*shift, "partition.shift.shift.low=0.4", "strategy.rounds=2", "partition.shift.start=2", "holdout=0.2",
               "evaluation=clients", "callbacks=none", "logger=none", "hydra.run.dir=run")  # fmt: skip
    assert (done.code, done.err) == (0, "")
    assert matplotlib.image.imread("run/partition.png").shape == (324, 720, 4)
    found = json.loads(Path("run/summary.json").read_text())
    assert len(found["partition"]) == 64
    assert found["partition_statistics"]["label_entropy_min"] > 0.4
    assert found["partition_statistics"]["label_distance_mean"] == pytest.approx(0.8, abs=0.01)
