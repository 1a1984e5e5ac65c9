"""Samples and indices that are made when they are asked for."""

import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flrl.data import FederatedData, PopulationSource, Splits, TensorSource
from flrl.data.federated import partition_hash, saved_indices
from flrl.data.partitions import consecutive
from flrl.data.population import synthetic_population
from flrl.data.ranges import Consecutive, Ranges
from flrl.seeding import SERVER, generator_for


def counted(client_id: int, asked: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Samples `[3, 2]` that say whose they are and which."""
    if asked is not None:
        asked.append(client_id)
    places = torch.arange(3)
    return torch.stack([torch.full((3,), float(client_id)), places.float()], dim=1), places + 10 * client_id


def whole(source: PopulationSource) -> TensorSource:
    return TensorSource(*next(source.batches(np.arange(len(source)), len(source))))


def test_samples_are_those_of_their_clients_in_the_order_that_is_asked_for() -> None:
    source = PopulationSource(counted, num_clients=4, samples=3)
    assert len(source) == 12
    first, second = source.batches(np.array([11, 0, 4, 5]), 3)
    assert first[0].tolist() == [[3, 2], [0, 0], [1, 1]]
    assert first[1].tolist() == [32, 0, 11]
    assert second[1].tolist() == [12]
    part = source.subset(np.array([5, 3, 9])).subset(np.array([2, 0]))
    assert len(part) == 2
    assert next(part.batches(np.array([0, 1, 1]), 3))[1].tolist() == [30, 12, 12]


def test_the_clients_asked_for_last_are_kept() -> None:
    asked: list[int] = []
    source = PopulationSource(partial(counted, asked=asked), num_clients=9, samples=3, kept=2)
    for client in (0, 1, 0, 2, 0, 1):
        next(source.batches(np.array([3 * client]), 1))
    assert asked == [0, 1, 2, 1]
    assert len(pickle.loads(pickle.dumps(PopulationSource(counted, num_clients=9, samples=3)))) == 27


def test_numbers_are_checked() -> None:
    with pytest.raises(ValueError, match=r"^dataset\.samples=0: must be at least 1$"):
        PopulationSource(counted, num_clients=4, samples=0)
    with pytest.raises(ValueError, match=r"^dataset\.make: client 1 has 3 and 3 samples, expected 2$"):
        next(PopulationSource(counted, num_clients=4, samples=2).batches(np.array([2]), 1))
    settings = {"num_clients": 2, "samples": 3, "alpha": 0.0, "beta": 0.0, "test_clients": 1, "seed": 0}
    for key, value in (("alpha", -1.0), ("beta", float("inf")), ("test_clients", 0)):
        with pytest.raises(ValueError, match=rf"^dataset\.{key}={value}: must be at least"):
            synthetic_population(**{**settings, key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"holdout": 0.4}, {"holdout": 0.4, "held_out_clients": 2}])
def test_ranges_are_the_indices_that_they_stand_for(options: dict[str, float], tmp_path: Path) -> None:
    """Clients own what an explicit owner of each sample gives them, in the dataset's order."""
    source = whole(PopulationSource(counted, num_clients=6, samples=3))
    data = FederatedData(Splits(source, source), partial(consecutive, num_clients=5), seed=3, **options)  # type: ignore[arg-type]
    assert isinstance(data._indices, Ranges)
    explicit = FederatedData(
        Splits(source, source),
        lambda *given: np.asarray(consecutive(*given, num_clients=5)),
        seed=3,
        **options,  # type: ignore[arg-type]
    )
    clients = range(data.num_clients + len(data.held_out_clients))
    assert data.held_out_clients == explicit.held_out_clients
    for client in clients:
        own = np.concatenate([data.train_indices(client), data.holdout_indices(client)])
        assert own.tolist() == sorted(explicit._owned(client).tolist())
    assert sorted(data._indices[:].tolist()) == list(range(18))
    assert data.hash == partition_hash(ends=data._ends, sizes=data._kept, indices=data._indices[:])
    data.save(tmp_path / "partition.npz")
    with np.load(tmp_path / "partition.npz") as saved:
        assert "indices" not in saved
        assert saved_indices(saved)[:].tolist() == data._indices[:].tolist()


def test_samples_taken_from_ranges_are_the_servers_alone() -> None:
    source = whole(PopulationSource(counted, num_clients=6, samples=3))
    data = FederatedData(Splits(source, source), partial(consecutive, num_clients=6), seed=0, root_samples=4)
    own = np.concatenate([data.train_indices(client) for client in range(6)])
    assert sorted([*own, *data.train_indices(SERVER)]) == list(range(18))
    assert all(np.diff(data.train_indices(client)).min(initial=1) > 0 for client in range(6))


def test_owners_are_what_numpy_takes_them_for() -> None:
    assert np.asarray(Consecutive(np.array([2, 0, 1]))).tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match="the partition left client 1 without samples"):
        FederatedData(Splits(source := whole(PopulationSource(counted, num_clients=1, samples=3)), source),
                      lambda *given: Consecutive(np.array([2, 0, 1])), seed=0)  # fmt: skip
    with pytest.raises(ValueError, match=r"returned shape \(4,\), expected one owner for 3 samples"):
        FederatedData(Splits(source, source), lambda *given: Consecutive(np.array([2, 2])), seed=0)


@pytest.mark.slow
def test_a_million_clients_hold_some_bytes_each() -> None:
    splits = synthetic_population(num_clients=10**6, samples=500, alpha=0.5, beta=1.0, test_clients=1, seed=0)
    ranges = consecutive(len(splits.train), None, np.random.default_rng(0), num_clients=10**6).indices()
    held = sum(array.nbytes for array in vars(ranges).values())
    assert held == 3 * 8 * 10**6
    data = FederatedData(splits, lambda *given: Consecutive(np.full(10**6, 500)), seed=0)
    arrays = [*vars(data).values(), *vars(data._indices).values()]
    whole = {id(a): a.nbytes for a in arrays if isinstance(a, np.ndarray) and a.base is None}
    assert sum(whole.values()) == 5 * 8 * 10**6
    assert ranges[500 * 777_777 : 500 * 777_778].tolist() == list(range(500 * 777_777, 500 * 777_778))
    inputs, classes = next(splits.train.batches(ranges[500 * 777_777 : 500 * 777_778], 500))
    assert inputs.shape == (500, 60)
    assert inputs.dtype == torch.float32
    assert set(classes.tolist()) <= set(range(10))


def test_devices_differ_as_the_law_says() -> None:
    make = partial(synthetic_population, num_clients=300, samples=40, test_clients=50, seed=1)
    train = make(alpha=0.0, beta=2.0).train
    inputs = torch.stack([batch[0] for batch in train.batches(np.arange(len(train)), 40)])
    # Within a device the variance of number j is j^-1.2; between devices it is 1, and 4 of B_k, common to all numbers.
    spread = torch.arange(1, 61) ** -1.2
    assert inputs.var(dim=1).mean(dim=0).tolist() == pytest.approx(spread.tolist(), rel=0.05)
    means = inputs.mean(dim=1)
    assert float(means.mean(dim=1).var()) == pytest.approx(4.0, rel=0.2)
    assert float((means - means.mean(dim=1, keepdim=True)).var()) == pytest.approx(1.0, rel=0.1)
    # Without differences of models one linear model has every sample of every device right; with them it has not.
    assert fitted(make(alpha=0.0, beta=1.0)) == 1.0
    assert 0.1 < fitted(make(alpha=3.0, beta=1.0)) < 0.35


def fitted(splits: Splits) -> float:
    """The accuracy on other devices of the common model, whose numbers are drawn first."""
    weight = generator_for(1, 0, SERVER, "population").normal(size=(61, 10))
    inputs, classes = next(splits.test.batches(np.arange(len(splits.test)), len(splits.test)))
    found = inputs.double().numpy() @ weight[:-1] + weight[-1]
    return float((found.argmax(1) == classes.numpy()).mean())
