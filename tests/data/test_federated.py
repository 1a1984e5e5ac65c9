"""FederatedData: who owns what, what is held out, and the hash that stands for both."""

import hashlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flrl.data import FederatedData, Splits, TensorSource
from flrl.data.federated import Partition
from flrl.data.partitions import iid, natural
from flrl.data.statistics import partition_statistics
from flrl.seeding import SERVER, generator_for
from tests.counting import calls, peak_bytes
from tests.toys import blocks


def splits(num_samples: int, labels: list[int] | None = None) -> Splits:
    targets = torch.zeros(num_samples) if labels is None else torch.tensor(labels)
    source = TensorSource(torch.arange(float(num_samples)).view(-1, 1), targets)
    return Splits(source, source)


def federated(num_samples: int, partition: Partition, *, seed: int = 0, holdout: float = 0.0) -> FederatedData:
    return FederatedData(splits(num_samples), partition, seed=seed, holdout=holdout)


def test_a_partition_that_asks_for_the_dataset_is_given_it() -> None:
    given = replace(splits(4), groups=np.array([1, 0, 1, 5]))
    data = FederatedData(given, partial(natural, num_clients=None), seed=0)
    assert [sorted(data.train_indices(client)) for client in range(3)] == [[1], [0, 2], [3]]
    part = data.only([2, 0], test=False)
    assert part.splits.groups is not None
    assert part.splits.groups.tolist() == [5, 0]


def test_min_samples_are_given_before_samples_are_set_apart() -> None:
    law = partial(iid, num_clients=10, min_samples=140)
    data = FederatedData(splits(1420), law, seed=0, holdout=0.5)
    assert [len(data.train_indices(c)) + data.holdout_size(c) for c in range(10)] == [142] * 10
    assert data.sizes.tolist() == [71] * 10
    with_root = FederatedData(splits(1420), law, seed=0, root_samples=1000)
    assert with_root.sizes.sum() == 420
    assert partition_statistics(with_root)["size_min"] == with_root.sizes.min() >= 1
    needed = partial(iid, num_clients=10, min_samples=125)
    assert FederatedData(splits(1250), needed, seed=0, holdout=0.2).sizes.tolist() == [100] * 10


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 2**40),
)
@settings(deadline=None, max_examples=100)
def test_each_sample_is_owned_exactly_once(sizes: list[int], holdout: float, seed: int) -> None:
    data = federated(sum(sizes), blocks(sizes), seed=seed, holdout=holdout)
    assert data.num_clients == len(sizes)
    assert data.sizes.dtype == np.int64
    everything = []
    for client, (size, start) in enumerate(zip(sizes, np.cumsum([0, *sizes]), strict=False)):
        train, held = data.train_indices(client), data.holdout_indices(client)
        assert (len(train), len(train) + len(held)) == (data.sizes[client], size)
        assert len(train) >= 1
        assert bool(len(held)) == (holdout > 0 and size > 1)
        assert sorted([*train, *held]) == list(range(start, start + size))
        everything += [*train, *held]
    assert sorted(everything) == list(range(sum(sizes)))


@pytest.mark.parametrize(
    ("holdout", "held"),
    [
        (0.0, [0, 0, 0, 0, 0]),
        (0.001, [0, 1, 1, 1, 1]),
        (0.2, [0, 1, 1, 2, 20]),
        (0.5, [0, 1, 2, 5, 50]),
        (0.99, [0, 1, 2, 9, 99]),
    ],
)
def test_holdout_sizes(holdout: float, held: list[int]) -> None:
    counts = [1, 2, 3, 10, 100]
    data = federated(116, blocks(counts), holdout=holdout)
    assert [len(data.holdout_indices(client)) for client in range(5)] == held
    assert data.sizes.tolist() == [count - out for count, out in zip(counts, held, strict=True)]


def test_holding_out_takes_the_last_of_the_same_order() -> None:
    whole = federated(12, partial(iid, num_clients=3))
    part = federated(12, partial(iid, num_clients=3), holdout=0.25)
    for client in range(3):
        order = whole.train_indices(client)
        assert np.array_equal(part.train_indices(client), order[:3])
        assert np.array_equal(part.holdout_indices(client), order[3:])


def test_samples_stand_in_a_random_order_fixed_by_the_seed() -> None:
    first, equal, other = (federated(40, blocks([20, 20]), seed=seed) for seed in (5, 5, 6))
    assert np.array_equal(first.train_indices(1), equal.train_indices(1))
    assert sorted(first.train_indices(1)) == sorted(other.train_indices(1)) == list(range(20, 40))
    assert first.train_indices(1).tolist() not in (list(range(20, 40)), other.train_indices(1).tolist())


def test_the_partition_is_called_with_the_labels_and_the_seeds_generator() -> None:
    calls: list[Any] = []

    def spy(num_samples: int, labels: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        calls.append((num_samples, labels, rng.integers(2**60)))
        return np.zeros(num_samples, dtype=np.int64)

    FederatedData(splits(3, [2, 0, 1]), spy, seed=9)
    federated(3, spy, seed=9)
    expected = generator_for(9, 0, SERVER, "partition").integers(2**60)
    assert [(n, None if labels is None else labels.tolist(), drawn) for n, labels, drawn in calls] == [
        (3, [2, 0, 1], expected),
        (3, None, expected),
    ]


def test_the_hash_is_stable_and_differs_between_partitions() -> None:
    by_three = partial(iid, num_clients=3)
    data = federated(12, by_three, holdout=0.25)
    assert data.hash == "ceb361208208a7014d0f407a15a1bbd2601276cfb4e1e4a92418a0b18286cd24"
    assert federated(12, by_three, holdout=0.25).hash == data.hash
    others = [
        federated(12, by_three, holdout=0.25, seed=1),
        federated(12, by_three, holdout=0.5),
        federated(12, by_three),
        federated(12, partial(iid, num_clients=4), holdout=0.25),
        federated(13, by_three, holdout=0.25),
        federated(12, blocks([4, 4, 4]), holdout=0.25),
    ]
    assert len({data.hash} | {other.hash for other in others}) == 7


def test_the_hash_is_the_sha256_of_ends_sizes_and_indices() -> None:
    data = federated(5, blocks([2, 3]), holdout=0.5)
    rows = [data.train_indices(0), data.holdout_indices(0), data.train_indices(1), data.holdout_indices(1)]
    numbers = [2, 5, 1, 1, *np.concatenate(rows)]
    assert data.hash == hashlib.sha256(b"".join(int(n).to_bytes(8, "little") for n in numbers)).hexdigest()


def test_label_counts() -> None:
    data = FederatedData(splits(6, [0, 2, 2, 0, 1, 2]), blocks([2, 3, 1]), seed=0)
    counts = data.label_counts()
    assert counts is not None
    assert counts.dtype == np.int64
    assert counts.tolist() == [[1, 0, 1], [1, 1, 1], [0, 0, 1]]
    assert federated(6, blocks([2, 4])).label_counts() is None


def test_label_counts_are_of_training_samples() -> None:
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    data = FederatedData(splits(10, labels), blocks([4, 6]), seed=0, holdout=0.5)
    counts = data.label_counts()
    assert counts is not None
    expected = [np.bincount(np.array(labels)[data.train_indices(c)], minlength=3).tolist() for c in range(2)]
    assert counts.tolist() == expected
    assert counts.sum(axis=1).tolist() == data.sizes.tolist()


def test_partition_file_holds_what_its_hash_names(tmp_path: Path) -> None:
    data = federated(11, blocks([1, 4, 6]), seed=3, holdout=0.4)
    path = tmp_path / "partition.npz"
    data.save(path)
    with np.load(path) as saved:
        assert sorted(saved.files) == ["ends", "hash", "indices", "sizes"]
        indices, ends, sizes, found = (saved[name] for name in ("indices", "ends", "sizes", "hash"))
    assert str(found) == data.hash
    assert ends.tolist() == [1, 5, 11]
    assert sizes.tolist() == [1, 2, 4]
    for client in range(3):
        owned = indices[ends[client - 1] if client else 0 : ends[client]]
        assert np.array_equal(owned[: sizes[client]], data.train_indices(client))
        assert np.array_equal(owned[sizes[client] :], data.holdout_indices(client))


@pytest.mark.parametrize("holdout", [-0.1, 1.0, float("nan")])
def test_holdout_is_a_share(holdout: float) -> None:
    with pytest.raises(ValueError, match=rf"^holdout={holdout}: must be at least 0 and below 1$"):
        federated(4, blocks([4]), holdout=holdout)


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (np.zeros(3, dtype=int), r"returned shape \(3,\), expected one owner for 4 samples"),
        (np.zeros((4, 1), dtype=int), r"returned shape \(4, 1\), expected one owner for 4 samples"),
        (np.zeros(4), "must return client ids: whole numbers from 0 on"),
        (np.array([0, 1, -1, 0]), "must return client ids: whole numbers from 0 on"),
        (np.array([True, False, True, True]), "must return client ids: whole numbers from 0 on"),
        (np.array([0, 3, 1, 0]), "left client 2 without samples"),
        (np.array([1, 1, 1, 1]), "left client 0 without samples"),
    ],
)
def test_bad_partitions_are_refused(owner: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        federated(4, lambda num_samples, labels, rng: owner)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint64])
def test_any_whole_numbers_are_client_ids(dtype: type) -> None:
    data = federated(4, lambda num_samples, labels, rng: np.array([1, 0, 1, 1], dtype=dtype))
    assert data.sizes.tolist() == [1, 3]
    assert data.hash == federated(4, lambda num_samples, labels, rng: np.array([1, 0, 1, 1])).hash


def test_a_list_of_owners_will_do() -> None:
    assert federated(3, lambda num_samples, labels, rng: [0, 1, 0]).sizes.tolist() == [2, 1]


def test_no_samples_are_an_error() -> None:
    empty = TensorSource(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="the dataset has no training samples"):
        FederatedData(Splits(empty, empty), lambda n, labels, rng: np.zeros(n, dtype=np.int64), seed=0)


def test_who_holds_out() -> None:
    data = federated(7, blocks([1, 2, 3, 1]), holdout=0.1)
    assert data.holding_out().tolist() == [c for c in range(4) if data.holdout_size(c)] == [1, 2]
    assert federated(7, blocks([3, 4])).holding_out().tolist() == []


def test_more_clients_take_no_more_calls_and_few_bytes() -> None:
    def build(num_clients: int, labels: torch.Tensor) -> None:
        source = TensorSource(torch.zeros(2 * num_clients, 1, dtype=torch.uint8), labels[: 2 * num_clients])
        data = FederatedData(Splits(source, source), partial(iid, num_clients=num_clients), seed=0, holdout=0.5)
        assert len(data.holding_out()) == num_clients
        counts = data.label_counts()
        assert counts is not None
        assert counts.sum() == num_clients

    labels = torch.arange(40_000) % 2
    counts = [calls(lambda n=n: build(n, labels)) for n in (200, 200, 20_000)]
    assert counts[2] <= counts[1]
    # Two samples a client: 32 bytes stay (indices, end, size), and sorting needs as many more and some.
    assert peak_bytes(lambda: build(20_000, labels)) < 100 * 20_000


def test_parts_of_many_clients_are_taken_without_a_call_for_each() -> None:
    data = federated(4000, partial(iid, num_clients=2000))
    counts = [calls(lambda n=n: data.only(range(n), test=True)) for n in (10, 10, 1000)]
    assert counts[2] <= counts[1]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 40), st.floats(0, 0.9))
@settings(deadline=None, max_examples=50)
def test_the_servers_samples_are_no_clients(sizes: list[int], root_samples: int, holdout: float) -> None:
    most = sum(sizes) - len(sizes)
    if root_samples > most:
        with pytest.raises(ValueError, match=rf"root_samples={root_samples}: .* from 0 to {most}; every client keeps"):
            FederatedData(splits(sum(sizes)), blocks(sizes), seed=0, root_samples=root_samples)
        return
    data = FederatedData(splits(sum(sizes)), blocks(sizes), seed=0, holdout=holdout, root_samples=root_samples)
    own = data.train_indices(SERVER).tolist()
    assert len(set(own)) == len(own) == data.num_root_samples == root_samples
    clients = [index for c in range(len(sizes)) for index in (*data.train_indices(c), *data.holdout_indices(c))]
    assert sorted([*own, *clients]) == list(range(sum(sizes)))
    assert min(data.sizes) >= 1


def test_the_servers_samples_follow_the_seed_and_stay_with_the_test_set(tmp_path: Path) -> None:
    make = partial(FederatedData, splits(100), blocks([40, 60]), root_samples=10)
    data, other = make(seed=0), make(seed=1)
    plain = federated(100, blocks([40, 60]))
    assert data.train_indices(SERVER).tolist() == make(seed=0).train_indices(SERVER).tolist()
    assert sorted(data.train_indices(SERVER)) != sorted(other.train_indices(SERVER))
    rest = [index for index in plain.train_indices(1) if index not in data.train_indices(SERVER)]
    assert data.train_indices(1).tolist() == rest  # the others are where they were
    assert data.hash != plain.hash
    server, worker = data.only((), test=True), data.only((0,), test=False)
    inputs = data.splits.train.inputs  # type: ignore[attr-defined]
    kept = server.splits.train.inputs[server.train_indices(SERVER)]  # type: ignore[attr-defined]
    assert torch.equal(kept, inputs[data.train_indices(SERVER)])
    with pytest.raises(ValueError, match="the samples of the server are not held here"):
        worker.train_indices(SERVER)
    data.save(tmp_path / "partition.npz")
    with np.load(tmp_path / "partition.npz") as saved:
        assert saved["root"].tolist() == data.train_indices(SERVER).tolist()
        assert len(saved["indices"]) == 90


def test_public_samples_are_no_clients_and_everybody_has_them() -> None:
    """Drawn from the clients' samples after the server's own, by seed; held-out clients keep theirs."""
    make = partial(FederatedData, splits(100), blocks([40, 30, 30]), holdout=0.2)
    data = make(seed=0, root_samples=10, public_samples=15, held_out_clients=1)
    public = data.splits.public
    assert isinstance(public, TensorSource)
    taken, root = [int(x) for x in public.inputs], data.train_indices(SERVER).tolist()
    owned = [index for c in range(3) for index in (*data.train_indices(c), *data.holdout_indices(c))]
    assert sorted([*owned, *root, *taken]) == list(range(100))
    assert (len(taken), len(root)) == (15, 10)
    kept = len(data.train_indices(2)) + data.holdout_size(2)
    assert kept in (30, 40)  # the held-out client's
    again, other = (make(seed=seed, root_samples=10, public_samples=15, held_out_clients=1) for seed in (0, 1))
    assert [int(x) for x in again.splits.public.inputs] == taken  # type: ignore[union-attr]
    assert [int(x) for x in other.splits.public.inputs] != taken  # type: ignore[union-attr]
    part = data.only([1], test=False)
    assert part.splits.public is public
    assert [int(x) for x in part.splits.train.inputs[part.train_indices(1)]] == data.train_indices(1).tolist()
    assert make(seed=0).splits.public is None
    assert make(seed=0).hash != data.hash
    with pytest.raises(ValueError, match=r"public_samples=98: .* from 0 to 97; every client keeps"):
        make(seed=0, public_samples=98)


def test_a_datasets_own_public_samples_are_drawn_from(tmp_path: Path) -> None:
    source = TensorSource(torch.arange(100.0, 120.0).view(-1, 1), torch.zeros(20))
    own = replace(splits(30), public=source)
    data = FederatedData(own, blocks([30]), seed=0, public_samples=5)
    chosen = [int(x) for x in data.splits.public.inputs]  # type: ignore[union-attr]
    assert chosen == sorted(set(chosen))
    assert {*chosen} <= set(range(100, 120))
    assert data.sizes.tolist() == [30]
    assert FederatedData(own, blocks([30]), seed=0).splits.public is None
    with pytest.raises(ValueError, match=r"public_samples=21: must be a whole number from 0 to 20, the dataset's"):
        FederatedData(own, blocks([30]), seed=0, public_samples=21)
    taken = FederatedData(splits(30), blocks([30]), seed=0, public_samples=5)
    taken.save(tmp_path / "partition.npz")
    with np.load(tmp_path / "partition.npz") as saved:
        assert sorted([*saved["indices"], *saved["public"]]) == list(range(30))
        assert "root" not in saved
