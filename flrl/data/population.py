"""Populations whose samples are not held anywhere: those of a client are made when it is asked to train."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flrl.data.fedprox_synthetic import CLASSES, FEATURES
from flrl.data.sources import Source, Splits, TensorSource
from flrl.seeding import SERVER, generator_for

Make = Callable[[int], tuple[Tensor, Tensor]]
"""Called with a client's id; returns its inputs `[samples, ...]` and targets `[samples, ...]`, the same each time."""


class PopulationSource:
    """Samples that are made client by client: client c has those from `c * samples` on.

    With `partition=consecutive` neither samples nor indices are held, whatever the number of clients.

    Args:
        make: makes the samples of a client.
        num_clients: number of clients.
        samples: of each client.
        kept: samples of so many clients are kept, of those that were asked for last.

    Raises:
        ValueError: a number is below 1.
    """

    labels: np.ndarray | None = None

    def __init__(self, make: Make, *, num_clients: int, samples: int, kept: int = 16) -> None:
        for name, number in {"num_clients": num_clients, "samples": samples, "kept": kept}.items():
            if number < 1:
                raise ValueError(f"dataset.{name}={number}: must be at least 1")
        self._make, self._num_clients, self._samples, self._limit = make, num_clients, samples, kept
        self._kept: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without samples."""
        return {**vars(self), "_kept": OrderedDict()}

    def __len__(self) -> int:
        """Number of samples."""
        return self._num_clients * self._samples

    def batches(self, indices: np.ndarray, batch_size: int, *, reuse: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (inputs, targets).

        Raises:
            ValueError: what was made for a client has another number of samples.
        """
        for start in range(0, len(indices), batch_size):
            owners, places = np.divmod(indices[start : start + batch_size], self._samples)
            clients, number = np.unique(owners, return_inverse=True)
            made = [self._of(int(client)) for client in clients]
            inputs, targets = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*made, strict=True))
            chosen = torch.from_numpy(number * self._samples + places)
            yield inputs[chosen], targets[chosen]

    def subset(self, indices: np.ndarray) -> Source:
        """A source of the given samples, which are made when they are asked for too."""
        return _Part(self, indices)

    def _of(self, client_id: int) -> tuple[Tensor, Tensor]:
        if client_id not in self._kept:
            made = self._make(client_id)
            if {len(part) for part in made} != {self._samples}:
                lengths = " and ".join(str(len(part)) for part in made)
                raise ValueError(f"dataset.make: client {client_id} has {lengths} samples, expected {self._samples}")
            self._kept[client_id] = made
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(client_id)
        return self._kept[client_id]


class _Part:
    """Some of a source's samples.

    Args:
        source: the source.
        indices: which of its samples, int64 `[n]`.
    """

    labels: np.ndarray | None = None

    def __init__(self, source: PopulationSource, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def batches(self, indices: np.ndarray, batch_size: int, *, reuse: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        return self._source.batches(self._indices[indices], batch_size, reuse=reuse)

    def subset(self, indices: np.ndarray) -> Source:
        return _Part(self._source, self._indices[indices])


def synthetic_population(
    *, num_clients: int, samples: int, alpha: float, beta: float, test_clients: int, seed: int
) -> Splits:
    """Any number of devices around a common model, each made from the seed when it trains.

    The class of x on device k is argmax((W + alpha D_k) x + b + alpha d_k) with W, b, D_k, d_k ~ N(0, 1), the first two
    common to all. x ~ N(v_k, S) with v_k ~ N(B_k, 1), B_k ~ N(0, beta), and S diagonal with S_jj = j^-1.2, as in
    Synthetic(alpha, beta) of Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
    Networks", MLSys 2020, arXiv 1812.06127, appendix C.1, whose devices have no model in common.

    Args:
        num_clients: number of devices.
        samples: of each device.
        alpha: how much the devices' models differ from the common one; at least 0.
        beta: standard deviation of B_k: how much the devices' inputs differ; at least 0.
        test_clients: number of further devices, whose samples are the central test set.
        seed: of all devices.

    Returns:
        Inputs `[samples, 60]`, classes 0 to 9.

    Raises:
        ValueError: a number is out of range.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"dataset.{name}={value}: must be at least 0 and finite")
    if test_clients < 1:
        raise ValueError(f"dataset.test_clients={test_clients}: must be at least 1")
    common = generator_for(seed, 0, SERVER, "population").normal(size=(FEATURES + 1, CLASSES))
    make = partial(_device, common=common, samples=samples, alpha=alpha, beta=beta, seed=seed)
    train = PopulationSource(make, num_clients=num_clients, samples=samples)
    others = [make(num_clients + place) for place in range(test_clients)]
    inputs, classes = (torch.cat(parts) for parts in zip(*others, strict=True))
    return Splits(train, TensorSource(inputs, classes), num_classes=CLASSES)


def _device(
    client_id: int, *, common: np.ndarray, samples: int, alpha: float, beta: float, seed: int
) -> tuple[Tensor, Tensor]:
    rng = generator_for(seed, 0, client_id, "population")
    weight = common + alpha * rng.normal(size=common.shape)
    mean = rng.normal(rng.normal(0, beta), 1, FEATURES)
    x = mean + np.arange(1, FEATURES + 1) ** -0.6 * rng.standard_normal((samples, FEATURES))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy((x @ weight[:-1] + weight[-1]).argmax(1))
