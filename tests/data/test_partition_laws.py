"""What every partition promises, as properties, and what each one's law says of sizes and proportions."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flrl.data import partitions
from flrl.data.partitions import classes, dirichlet_equal, inner_dirichlet, mixture, quantity_power_law
from flrl.data.partitions.sharing import by_mixes, equal_sizes
from tests.data.test_partitions import Scripted, class_counts, sizes_of

Law = Callable[[np.ndarray, np.ndarray, int], None]
"""Asserts what is said of an owner of each sample, given labels and the number of clients."""


def equal(owner: np.ndarray, labels: np.ndarray, num_clients: int) -> None:
    assert np.ptp(sizes_of(owner, num_clients)) <= 1


def two_classes(owner: np.ndarray, labels: np.ndarray, num_clients: int) -> None:
    counts = class_counts(owner, labels, num_clients)
    assert (np.count_nonzero(counts, axis=1) == 2).all()
    for of_class in counts.T:
        having = of_class[of_class > 0]
        assert not len(having) or np.ptp(having) <= 1


def anything(owner: np.ndarray, labels: np.ndarray, num_clients: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Row:
    """A partition, its settings, and what its law says."""

    name: str
    settings: dict[str, Any]
    law: Law = anything
    needs_labels: bool = True


ROWS = (
    Row("iid", {}, equal, needs_labels=False),
    Row("consecutive", {}, equal, needs_labels=False),
    Row("blocks", {"share": 0.5}, needs_labels=False),
    Row("dirichlet", {"alpha": 0.3}),
    Row("dirichlet_equal", {"alpha": 0.3}, equal),
    Row("dirichlet_equal", {"alpha": 1e-300}, equal),
    Row("inner_dirichlet", {"alpha": 0.3}, equal),
    Row("inner_dirichlet", {"alpha": 0.3, "sigma": 2.0}),
    Row("mixture", {"num_components": 2, "alpha": 0.1, "component_alpha": 0.1}, equal),
    Row("shards", {"shards_per_client": 2}),
    Row("classes", {"classes_per_client": 2}, two_classes),
    Row("quantity_skew", {"alpha": 0.3}, needs_labels=False),
    Row("quantity_lognormal", {"sigma": 2.0}, needs_labels=False),
    Row("quantity_power_law", {"exponent": 2.0}, needs_labels=False),
)


def test_every_partition_is_in_the_table() -> None:
    assert {row.name for row in ROWS} == {*partitions.__all__} - {"natural"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.settings}")
@given(st.integers(2, 8), st.integers(1, 3), st.integers(0, 40), st.integers(2, 5), st.integers(0, 2**32))
@settings(deadline=None, max_examples=25)
def test_every_sample_has_one_owner_and_the_law_holds(
    row: Row, num_clients: int, least: int, more: int, num_classes: int, seed: int
) -> None:
    """Or it is said what cannot be met, by the name of a key."""
    labels = 3 * np.random.default_rng(seed).integers(0, num_classes, num_clients * least + more) + 1
    kept = labels.copy()

    def drawn() -> np.ndarray:
        partition = getattr(partitions, row.name)
        rng, options = np.random.default_rng(seed), {"num_clients": num_clients, "min_samples": least}
        found = partition(len(labels), labels if row.needs_labels else None, rng, **options, **row.settings)
        return np.asarray(found)

    refused = None
    try:
        owner = drawn()
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        assert row.name in ("shards", "classes", "blocks")
        key = next(iter(row.settings))
        assert refused.startswith((f"partition.{key}=", "partition.min_samples=", "partition.num_clients="))
        return
    assert (owner.dtype, owner.shape) == (np.int64, labels.shape)
    assert owner.min() >= 0
    assert len(sizes_of(owner, num_clients)) == num_clients
    assert sizes_of(owner, num_clients).min() >= least
    assert np.array_equal(owner, drawn())
    assert np.array_equal(labels, kept)
    row.law(owner, labels, num_clients)


@pytest.mark.parametrize("row", [row for row in ROWS if row.needs_labels], ids=lambda row: row.name)
def test_label_skew_needs_labels(row: Row) -> None:
    with pytest.raises(ValueError, match=f"^partition {row.name} needs class labels"):
        getattr(partitions, row.name)(10, None, np.random.default_rng(0), num_clients=2, **row.settings)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}-{row.settings}")
def test_too_many_clients_are_refused_and_arguments_are_in_order(row: Row) -> None:
    partition, rng = getattr(partitions, row.name), np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^partition\.num_clients=4: 10 training samples are too few for 3"):
        partition(10, np.arange(10) % 2, rng, num_clients=4, min_samples=3, **row.settings)
    assert [*inspect.signature(partition).parameters][:4] == ["num_samples", "labels", "rng", "num_clients"]


def test_mixes_that_fit_are_met_to_the_sample() -> None:
    """Client 0 draws class 0 alone, client 1 class 1, client 2 class 2."""
    labels = np.array([5, 3, 3, 9, 9, 5])
    owner = by_mixes(labels, np.eye(3), np.array([2, 2, 2]), np.random.default_rng(0))
    assert owner.tolist() == [1, 0, 0, 2, 2, 1]


def test_who_draws_a_class_that_has_run_out_draws_again() -> None:
    """All want class 0, which has three samples; one place is left, and it gets the sample of class 1."""
    owner = by_mixes(
        np.array([0, 1, 0, 0]), np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([2, 2]), np.random.default_rng(1)
    )
    assert sizes_of(owner, 2).tolist() == [2, 2]
    counts = class_counts(owner, np.array([0, 1, 0, 0]), 2)
    assert sorted(counts[:, 0].tolist()) == [1, 2]


def test_mixes_are_drawn_in_proportion() -> None:
    labels = np.arange(40_000) % 4
    mixes = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]])
    owner = by_mixes(labels, mixes, equal_sizes(40_000, 4), np.random.default_rng(0))
    assert class_counts(owner, labels, 4) / 10_000 == pytest.approx(mixes, abs=0.01)


def test_inner_dirichlet_mixes_have_the_moments_of_the_distribution() -> None:
    """Of C classes the expected sum of squared shares is (alpha + 1) / (C alpha + 1)."""
    labels = np.arange(300_000) % 5
    owner = inner_dirichlet(300_000, labels, np.random.default_rng(0), num_clients=1000, alpha=0.5)
    shares = class_counts(owner, labels, 1000) / 300
    expected = 1.5 / 3.5
    assert (shares**2).sum(axis=1).mean() == pytest.approx(expected, abs=0.015)
    same = dirichlet_equal(300_000, labels, np.random.default_rng(0), num_clients=1000, alpha=2.5)
    assert np.array_equal(same, owner)


class Asked:
    """A generator that notes which Dirichlet distributions it is asked for."""

    def __init__(self) -> None:
        self.rng, self.asked = np.random.default_rng(0), []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rng, name)

    def dirichlet(self, alpha: np.ndarray, size: int) -> np.ndarray:
        self.asked.append((alpha.tolist(), size))
        return self.rng.dirichlet(alpha, size)


def test_mixes_are_drawn_around_the_datasets_or_an_even_one() -> None:
    labels, rng = np.repeat([0, 1], [90, 10]), Asked()
    dirichlet_equal(100, labels, rng, num_clients=5, alpha=2.0)
    inner_dirichlet(100, labels, rng, num_clients=4, alpha=0.5)
    mixture(100, labels, rng, num_clients=6, num_components=3, alpha=0.7, component_alpha=0.2)
    assert rng.asked == [([1.8, 0.2], 5), ([0.5, 0.5], 4), ([0.2, 0.2], 3), ([0.7, 0.7, 0.7], 6)]


def test_a_mixture_of_one_is_the_same_for_all_and_of_one_class_parts_it_is_one_class_each() -> None:
    labels, rng = np.arange(6000) % 3, np.random.default_rng(0)
    alike = mixture(6000, labels, rng, num_clients=6, num_components=1, alpha=1.0, component_alpha=1e6)
    assert class_counts(alike, labels, 6) / 1000 == pytest.approx(np.full((6, 3), 1 / 3), abs=0.05)
    with pytest.raises(ValueError, match=r"^partition\.num_components=0: must be at least 1$"):
        mixture(6000, labels, rng, num_clients=6, num_components=0, alpha=1.0, component_alpha=1.0)
    with pytest.raises(ValueError, match=r"^partition\.component_alpha=0: must be positive and finite$"):
        mixture(6000, labels, rng, num_clients=6, num_components=2, alpha=1.0, component_alpha=0)


def test_clients_of_a_mixture_lie_in_the_span_of_its_components() -> None:
    labels = np.arange(200_000) % 10
    options: dict[str, Any] = {"num_components": 2, "alpha": 1.0, "component_alpha": 2.0}
    owner = mixture(200_000, labels, np.random.default_rng(3), num_clients=40, **options)
    values = np.linalg.svd(class_counts(owner, labels, 40) / 5000, compute_uv=False)
    assert values[2] < 0.15 * values[1]


def test_classes_are_dealt_evenly() -> None:
    labels = np.arange(1000) % 10
    counts = class_counts(
        classes(1000, labels, np.random.default_rng(0), num_clients=10, classes_per_client=1), labels, 10
    )
    assert sorted(counts.argmax(axis=1).tolist()) == list(range(10))
    assert counts.max(axis=1).tolist() == [100] * 10
    few = class_counts(classes(1000, labels, np.random.default_rng(0), num_clients=3, classes_per_client=4), labels, 3)
    assert few.sum(axis=0).tolist() == [100] * 10
    assert np.count_nonzero(few, axis=1).tolist() == [4, 4, 4]
    for k, expected in (
        (0, "must be at least 1 and at most 10"),
        (11, "must be at least"),
        (3, "3 clients leave some"),
    ):
        with pytest.raises(ValueError, match=rf"^partition\.classes_per_client={k}: {expected}"):
            classes(1000, labels, np.random.default_rng(0), num_clients=3, classes_per_client=k)
    with pytest.raises(
        ValueError, match=r"^partition\.classes_per_client=2: the 1 samples of class 0 are too few for "
    ):
        classes(9, np.minimum(np.arange(9), 1), np.random.default_rng(0), num_clients=4, classes_per_client=2)


def test_sizes_follow_the_power_law_by_rank() -> None:
    owner = quantity_power_law(11, None, Scripted(), num_clients=3, exponent=1.0)
    assert owner.tolist() == [0] * 6 + [1] * 3 + [2] * 2
    sizes = sizes_of(quantity_power_law(110_000, None, np.random.default_rng(0), num_clients=3, exponent=1.0), 3)
    assert sorted(sizes.tolist()) == [20_000, 30_000, 60_000]
    with pytest.raises(ValueError, match=r"^partition\.exponent=-1: must be at least 0 and finite$"):
        quantity_power_law(10, None, np.random.default_rng(0), num_clients=3, exponent=-1)


def test_logarithms_of_sizes_have_the_standard_deviation() -> None:
    owner = partitions.quantity_lognormal(2_000_000, None, np.random.default_rng(0), num_clients=2000, sigma=0.7)
    assert np.log(sizes_of(owner, 2000)).std() == pytest.approx(0.7, abs=0.03)
    equal(partitions.quantity_lognormal(1000, None, np.random.default_rng(0), num_clients=7, sigma=0), None, 7)
    with pytest.raises(ValueError, match=r"^partition\.sigma=-1: must be at least 0 and finite$"):
        inner_dirichlet(10, np.arange(10), np.random.default_rng(0), num_clients=3, alpha=1.0, sigma=-1)
