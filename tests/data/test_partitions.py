"""Partitions: hand-computed cases with scripted randomness, properties, and the statistics of skew."""

import hashlib
import heapq
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flrl.data import DatasetSource, Splits, TensorSource
from flrl.data.partitions import dirichlet, iid, natural, quantity_skew, shards
from flrl.data.partitions.sharing import top_up
from tests.counting import calls

MNIST_CLASS_SIZES = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)


class Scripted:
    """A generator whose permutations are the identity, unless given, and whose Dirichlet draws are given."""

    def __init__(self, *draws: Sequence[float], permutation: Sequence[int] | None = None) -> None:
        self.draws = [np.array(draw) for draw in draws]
        self.order = permutation
        self.asked: list[list[float]] = []

    def permutation(self, what: Any) -> np.ndarray:
        items = np.arange(what) if np.ndim(what) == 0 else np.array(what)
        return items if self.order is None else items[list(self.order)]

    def dirichlet(self, alpha: np.ndarray) -> np.ndarray:
        self.asked.append(alpha.tolist())
        return self.draws.pop(0)


def sizes_of(owner: np.ndarray, num_clients: int) -> np.ndarray:
    return np.bincount(owner, minlength=num_clients)


def class_counts(owner: np.ndarray, labels: np.ndarray, num_clients: int) -> np.ndarray:
    counts = np.zeros((num_clients, int(labels.max()) + 1), dtype=int)
    np.add.at(counts, (owner, labels), 1)
    return counts


def test_iid_assigns_a_permutation_in_turn() -> None:
    assert iid(7, None, Scripted(), num_clients=3).tolist() == [0, 1, 2, 0, 1, 2, 0]
    backwards = Scripted(permutation=[6, 5, 4, 3, 2, 1, 0])
    assert iid(7, None, backwards, num_clients=2).tolist() == [0, 1, 0, 1, 0, 1, 0]
    shuffled = Scripted(permutation=[2, 0, 3, 1])
    assert iid(4, None, shuffled, num_clients=4).tolist() == [1, 3, 0, 2]


def test_dirichlet_shares_out_each_class_by_its_own_draw() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    rng = Scripted([0.5, 0.25, 0.25], [0.0, 0.1, 0.9])
    owner = dirichlet(8, labels, rng, num_clients=3, alpha=0.7)
    assert owner.tolist() == [0, 2, 0, 2, 1, 2, 2, 2]
    assert rng.asked == [[0.7, 0.7, 0.7]] * 2
    backwards = Scripted([0.5, 0.25, 0.25], [0.0, 0.1, 0.9], permutation=[3, 2, 1, 0])
    assert dirichlet(8, labels, backwards, num_clients=3, alpha=0.7).tolist() == [2, 2, 1, 2, 0, 2, 0, 2]


def test_dirichlet_tops_up_from_the_largest_client() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    rng = Scripted([0.5, 0.25, 0.25], [0.0, 0.1, 0.9])
    owner = dirichlet(8, labels, rng, num_clients=3, alpha=0.7, min_samples=2)
    assert owner.tolist() == [0, 2, 0, 2, 1, 2, 2, 1]


def test_quantity_skew_cuts_a_permutation_by_one_draw() -> None:
    rng = Scripted([0.7, 0.2, 0.1])
    assert quantity_skew(10, None, rng, num_clients=3, alpha=2.0).tolist() == [0] * 7 + [1] * 2 + [2]
    assert rng.asked == [[2.0, 2.0, 2.0]]


def test_shares_are_rounded_to_the_nearest_number() -> None:
    """Ends at 6.6, 8.3 and 10 become 7, 8 and 10, whose last one is given whatever the rounding."""
    owner = quantity_skew(10, None, Scripted([0.66, 0.17, 0.17]), num_clients=3, alpha=1.0)
    assert sizes_of(owner, 3).tolist() == [7, 1, 2]
    owner = quantity_skew(10, None, Scripted([0.34, 0.3, 0.36]), num_clients=3, alpha=1.0)
    assert sizes_of(owner, 3).tolist() == [3, 3, 4]


def test_partitions_are_pinned() -> None:
    """Published runs name their partition's hash: the same seed must go on to give it."""
    labels = np.arange(1000) % 10
    partitions = {
        "iid": iid(1000, None, np.random.default_rng(0), num_clients=7),
        "dirichlet": dirichlet(1000, labels, np.random.default_rng(0), num_clients=7, alpha=0.3),
        "shards": shards(1000, labels, np.random.default_rng(0), num_clients=7),
        "quantity": quantity_skew(1000, None, np.random.default_rng(0), num_clients=7, alpha=0.3, min_samples=5),
    }
    found = {name: hashlib.sha256(owner.astype("<i8").tobytes()).hexdigest()[:16] for name, owner in partitions.items()}
    assert found == {
        "iid": "38d5900d890ce890",
        "dirichlet": "0c293ff1ba63b3eb",
        "shards": "218dbffb16be8b1e",
        "quantity": "515067282ae3b5ca",
    }


def test_quantity_skew_tops_up_one_sample_at_a_time() -> None:
    assert quantity_skew(4, None, Scripted([1.0, 0.0, 0.0]), num_clients=3, alpha=1.0).tolist() == [0, 0, 2, 1]
    # Clients 0 and 1 hold four each; the third client's two come from one of each: the lower id gives first.
    owner = quantity_skew(8, None, Scripted([0.5, 0.5, 0.0]), num_clients=3, alpha=1.0, min_samples=2)
    assert owner.tolist() == [0, 0, 0, 2, 1, 1, 1, 2]


def test_shards_are_cut_from_samples_sorted_by_class() -> None:
    labels = np.array([0, 1, 0, 1, 2, 2, 0, 1])  # sorted: 0 2 | 6 1 | 3 7 | 4 5
    assert shards(8, labels, Scripted(), num_clients=2).tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    rng = Scripted(permutation=[2, 0, 3, 1])
    assert shards(8, labels, rng, num_clients=2).tolist() == [1, 0, 1, 1, 0, 0, 0, 1]
    one_each = shards(8, labels, Scripted(), num_clients=2, shards_per_client=1)
    assert one_each.tolist() == [0, 0, 0, 1, 1, 1, 0, 1]
    # Seven samples in three shards: sizes 3, 2, 2.
    uneven = shards(7, np.zeros(7, dtype=int), Scripted(), num_clients=3, shards_per_client=1)
    assert uneven.tolist() == [0, 0, 0, 1, 1, 2, 2]


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    num_clients = draw(st.integers(1, 12))
    min_samples = draw(st.integers(1, 4))
    num_samples = num_clients * min_samples + draw(st.integers(0, 60))
    classes = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32))
    return {
        "num_clients": num_clients,
        "min_samples": min_samples,
        "labels": np.random.default_rng(seed).integers(0, classes, num_samples),
        "seed": seed,
        "alpha": draw(st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 10.0, 1e6])),
    }


def own(partition: Callable[..., np.ndarray], problem: dict[str, Any], **options: Any) -> np.ndarray:
    labels = problem["labels"].copy()
    options = {"num_clients": problem["num_clients"], "min_samples": problem["min_samples"]} | options
    owner = partition(len(labels), labels, np.random.default_rng(problem["seed"]), **options)
    assert np.array_equal(labels, problem["labels"])
    assert owner.dtype == np.int64
    assert owner.shape == labels.shape
    assert owner.min() >= 0
    assert owner.max() < problem["num_clients"]
    assert sizes_of(owner, problem["num_clients"]).min() >= problem["min_samples"]
    repeated = partition(len(labels), labels, np.random.default_rng(problem["seed"]), **options)
    assert np.array_equal(owner, repeated)
    return owner


@given(problems())
@settings(deadline=None, max_examples=80)
def test_every_client_gets_its_minimum_and_the_generator_decides(problem: dict[str, Any]) -> None:
    iid_sizes = sizes_of(own(iid, problem), problem["num_clients"])
    assert iid_sizes.max() - iid_sizes.min() <= 1
    own(dirichlet, problem, alpha=problem["alpha"])
    own(quantity_skew, problem, alpha=problem["alpha"])


@given(problems(), st.integers(1, 4))
@settings(deadline=None, max_examples=80)
def test_shards_sizes_and_classes(problem: dict[str, Any], shards_per_client: int) -> None:
    num_samples, num_clients = len(problem["labels"]), problem["num_clients"]
    num_shards = num_clients * shards_per_client
    if num_samples // num_shards * shards_per_client < problem["min_samples"]:
        with pytest.raises(ValueError, match=f"samples do not make {num_shards} shards"):
            own(shards, problem, shards_per_client=shards_per_client)
        return
    owner = own(shards, problem, shards_per_client=shards_per_client)
    sizes = sizes_of(owner, num_clients)
    assert sizes.min() >= num_samples // num_shards * shards_per_client
    assert sizes.max() <= -(-num_samples // num_shards) * shards_per_client
    # Each of the boundaries between classes falls into one shard at the most.
    pairs = np.count_nonzero(class_counts(owner, problem["labels"], num_clients))
    assert pairs <= num_shards + len(np.unique(problem["labels"])) - 1


@pytest.mark.parametrize("partition", [iid, partial(dirichlet, alpha=0.5), shards, partial(quantity_skew, alpha=0.5)])
def test_another_generator_state_gives_another_partition(partition: Callable[..., np.ndarray]) -> None:
    labels = np.arange(200) % 10
    first, second = (partition(200, labels, np.random.default_rng(seed), num_clients=10) for seed in (0, 1))
    assert not np.array_equal(first, second)
    assert len(first) == len(second) == 200


@pytest.mark.parametrize(("per_client", "most"), [(1, 1), (2, 2), (5, 5)])
def test_a_client_has_no_more_classes_than_shards(per_client: int, most: int) -> None:
    labels = np.random.default_rng(3).permutation(np.repeat(np.arange(10), 60))
    owner = shards(600, labels, np.random.default_rng(0), num_clients=20, shards_per_client=per_client)
    counts = class_counts(owner, labels, 20)
    assert counts.sum(axis=1).tolist() == [30] * 20
    assert np.count_nonzero(counts, axis=1).max() == most


def test_shards_of_classes_of_unequal_size_cross_nine_boundaries_at_most() -> None:
    labels = np.repeat(np.arange(10), MNIST_CLASS_SIZES)
    owner = shards(60_000, labels, np.random.default_rng(0), num_clients=100)
    counts = class_counts(owner, labels, 100)
    assert counts.sum(axis=1).tolist() == [600] * 100
    classes = np.count_nonzero(counts, axis=1)
    assert 1 <= classes.min() <= classes.max() <= 4
    assert classes.sum() <= 200 + 9


def test_a_small_alpha_gives_a_class_to_one_client_and_a_large_one_to_all_alike() -> None:
    labels = np.arange(10_000) % 10
    largest_share = {}
    for alpha in (1e-2, 1e-1, 1.0, 1e6):
        owner = dirichlet(10_000, labels, np.random.default_rng(0), num_clients=10, alpha=alpha)
        counts = class_counts(owner, labels, 10)
        assert counts.sum(axis=0).tolist() == [1000] * 10
        largest_share[alpha] = (counts.max(axis=0) / 1000).mean()
    assert largest_share[1e-2] > 0.9
    assert largest_share[1e-2] > largest_share[1e-1] > largest_share[1.0] > largest_share[1e6]
    assert 0.1 <= largest_share[1e6] <= 0.102


def test_dirichlet_shares_have_the_moments_of_the_distribution() -> None:
    # For K clients the expected sum of squared shares is (alpha + 1) / (K alpha + 1).
    labels = np.arange(120_000) % 600
    owner = dirichlet(120_000, labels, np.random.default_rng(1), num_clients=5, alpha=0.5)
    shares = class_counts(owner, labels, 5) / 200
    assert shares.mean(axis=1) == pytest.approx([0.2] * 5, abs=0.03)
    assert (shares**2).sum(axis=0).mean() == pytest.approx(1.5 / 3.5, abs=0.025)


def test_quantity_skew_has_the_moments_of_the_distribution() -> None:
    rng = np.random.default_rng(2)
    sizes = [sizes_of(quantity_skew(500, None, rng, num_clients=5, alpha=0.5), 5) for _ in range(600)]
    shares = np.array(sizes) / 500
    assert shares.mean(axis=0) == pytest.approx([0.2] * 5, abs=0.03)
    assert (shares**2).sum(axis=1).mean() == pytest.approx(1.5 / 3.5, abs=0.025)


def test_quantity_skew_skews_sizes_but_not_classes() -> None:
    labels = np.repeat(np.arange(4), 10_000)
    owner = quantity_skew(40_000, labels, np.random.default_rng(0), num_clients=8, alpha=0.5, min_samples=2000)
    counts = class_counts(owner, labels, 8)
    sizes = counts.sum(axis=1)
    assert sizes.min() >= 2000
    assert sizes.max() > 2 * sizes.min()
    assert np.abs(counts / sizes[:, None] - 0.25).max() < 0.05
    even = quantity_skew(40_000, labels, np.random.default_rng(0), num_clients=8, alpha=1e6)
    assert sizes_of(even, 8) == pytest.approx([5000] * 8, rel=0.01)


def one_by_one(owner: np.ndarray, num_clients: int, min_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Topping up as it is meant: sample by sample, from a heap of whoever has more than the minimum."""
    sizes = np.bincount(owner, minlength=num_clients)
    order = rng.permutation(len(owner))
    by_client = order[np.argsort(owner[order], kind="stable")]
    ends = np.cumsum(sizes)
    largest = [(-int(size), client) for client, size in enumerate(sizes) if size > min_samples]
    heapq.heapify(largest)
    for client in np.flatnonzero(sizes < min_samples):
        for _ in range(min_samples - sizes[client]):
            size, giver = largest[0]
            ends[giver] -= 1
            owner[by_client[ends[giver]]] = client
            if -size - 1 > min_samples:
                heapq.heapreplace(largest, (size + 1, giver))
            else:
                heapq.heappop(largest)
    return owner


@given(st.lists(st.integers(0, 12), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=200)
def test_topping_up_at_once_is_topping_up_one_by_one(sizes: list[int], min_samples: int, seed: int) -> None:
    assume(sum(sizes) >= min_samples * len(sizes))
    owner = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    found = top_up(owner.copy(), len(sizes), min_samples, np.random.default_rng(seed))
    if min(sizes) < min_samples:
        owner = one_by_one(owner, len(sizes), min_samples, np.random.default_rng(seed))
    assert found.tolist() == owner.tolist()


@pytest.mark.parametrize(
    "partition", [iid, partial(dirichlet, alpha=0.5), shards, partial(quantity_skew, alpha=0.5, min_samples=2)]
)
def test_more_clients_take_no_more_calls(partition: Callable[..., np.ndarray]) -> None:
    labels = np.arange(40_000) % 10
    counts = [
        calls(lambda n=n: partition(2 * n, labels[: 2 * n], np.random.default_rng(0), num_clients=n))
        for n in (200, 200, 20_000)
    ]
    assert counts[2] <= counts[1]


LABELS = np.arange(10) % 2
FEW = r"10 training samples are too few for 3 \(partition\.min_samples\) each; at most 3 clients"


@pytest.mark.parametrize(
    "partition",
    [iid, partial(dirichlet, alpha=1.0), partial(shards, shards_per_client=1), partial(quantity_skew, alpha=1)],
)
def test_all_partitions_refuse_too_many_clients(partition: Callable[..., np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=rf"^partition\.num_clients=4: {FEW}$"):
        partition(10, LABELS, rng, num_clients=4, min_samples=3)
    with pytest.raises(ValueError, match=r"^partition\.num_clients=11: 10 .* 1 .* at most 10 clients$"):
        partition(10, LABELS, rng, num_clients=11)
    with pytest.raises(ValueError, match=r"^partition\.num_clients=0: must be at least 1$"):
        partition(10, LABELS, rng, num_clients=0)
    with pytest.raises(ValueError, match=r"^partition\.min_samples=0: must be at least 1$"):
        partition(10, LABELS, rng, num_clients=2, min_samples=0)
    assert sizes_of(partition(10, LABELS, rng, num_clients=10), 10).tolist() == [1] * 10


@pytest.mark.parametrize("partition", [dirichlet, quantity_skew])
@pytest.mark.parametrize("alpha", [0.0, -0.5, float("inf"), float("nan")])
def test_alpha_must_be_positive_and_finite(partition: Callable[..., np.ndarray], alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"^partition\.alpha={alpha}: must be positive and finite$"):
        partition(10, LABELS, np.random.default_rng(0), num_clients=2, alpha=alpha)


@pytest.mark.parametrize(("partition", "name"), [(partial(dirichlet, alpha=1.0), "dirichlet"), (shards, "shards")])
def test_label_skew_needs_labels(partition: Callable[..., np.ndarray], name: str) -> None:
    with pytest.raises(ValueError, match=f"^partition {name} needs class labels, which this dataset does not have: "):
        partition(10, None, np.random.default_rng(0), num_clients=2)


def test_shards_refuses_what_cannot_be_cut() -> None:
    with pytest.raises(ValueError, match=r"^partition\.shards_per_client=0: must be at least 1$"):
        shards(10, LABELS, np.random.default_rng(0), num_clients=2, shards_per_client=0)
    expected = "10 samples do not make 12 shards with at least 1 samples for each of 4 clients"
    with pytest.raises(ValueError, match=rf"^partition\.shards_per_client=3: {expected}$"):
        shards(10, LABELS, np.random.default_rng(0), num_clients=4, shards_per_client=3)


@pytest.mark.parametrize("partition", [dirichlet, quantity_skew])
def test_an_alpha_beyond_numbers_is_refused(partition: Any) -> None:
    with pytest.raises(ValueError, match=r"^partition\.alpha=1e\+308: must be positive and finite$"):
        partition(10, LABELS, np.random.default_rng(0), num_clients=4, alpha=1e308)


def owned(groups: Any, num_clients: int | None = None, **options: Any) -> list[int]:
    source = TensorSource(torch.zeros(6, 1), torch.zeros(6))
    splits = Splits(source, source, groups=None if groups is None else np.array(groups))
    return natural(6, None, np.random.default_rng(0), splits, num_clients=num_clients, **options).tolist()


def test_natural_clients_are_the_datasets_own_in_their_order() -> None:
    assert owned([40, 7, 40, 7, 7, 9]) == [2, 0, 2, 0, 0, 1]
    assert owned([40, 7, 40, 7, 7, 9], 3) == [2, 0, 2, 0, 0, 1]
    joined = iid(4, None, np.random.default_rng(0), num_clients=2)
    assert owned([0, 1, 2, 3, 0, 1], 2) == joined[[0, 1, 2, 3, 0, 1]].tolist()


def test_natural_clients_come_from_a_column() -> None:
    class Spoken(torch.utils.data.TensorDataset):
        speakers = ("b", "a", "b", "c")

    spoken = DatasetSource(Spoken(torch.zeros(4, 1), torch.arange(4)))
    given = partial(natural, 4, None, np.random.default_rng(0), Splits(spoken, spoken))
    assert given(column="speakers").tolist() == [1, 0, 1, 2]
    with pytest.raises(ValueError, match=r"^partition\.column=writers: training samples are a Spoken; it has none"):
        given(column="writers")
    with pytest.raises(
        ValueError, match=r"^partition\.column=tensors: has shape \(2, 0\), must be one value of 4 each$"
    ):
        given(column="tensors")


def test_natural_refuses_what_it_cannot_find() -> None:
    with pytest.raises(ValueError, match=r"^partition natural needs a dataset that says .* no Splits\.groups"):
        owned(None)
    with pytest.raises(ValueError, match=r"^partition\.num_clients=4: the dataset has 2 clients of its own"):
        owned([0, 0, 0, 1, 1, 1], 4)
    with pytest.raises(ValueError, match=r"^partition\.min_samples=3: client 1 has 2$"):
        owned([0, 0, 0, 0, 1, 1], min_samples=3)
