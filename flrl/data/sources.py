"""Sources of samples: tensors in memory, or any map-style dataset.

A source returns batches for an array of indices; it has no notion of clients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from flrl.data.labels import LABEL_KEYS as LABEL_KEYS
from flrl.data.labels import labels_of as labels_of

# A TensorSource gathers and normalises this many bytes of float32 inputs at a time: many small batches share the cost
# of the calls, and the block still fits the cache.
_BLOCK_BYTES = 2**20
# Sources on one machine keep at most this many bytes of prepared samples for indices that are requested repeatedly.
_KEPT_BYTES = 2**28
# Overhead of two tensors, their key and their entry in the dict (measured). Samples that take less are not kept: they
# are prepared quickly, and the overhead of a million small clients would fill memory.
_KEPT_ENTRY_BYTES = 1200


class Source(Protocol):
    """The interface of a source of samples."""

    labels: np.ndarray | None
    """Class of each sample, int64 `[len]`, or None if samples have no class."""

    def __len__(self) -> int:
        """Number of samples."""

    def batches(self, indices: np.ndarray, batch_size: int, *, reuse: bool = False) -> Iterator[Any]:
        """The samples of `indices` (int64 `[n]`), in that order, in batches; the last one may be smaller.

        With `reuse`, prepared samples may be kept, as the same indices will be requested repeatedly.
        """

    def subset(self, indices: np.ndarray) -> "Source":
        """A source of the given samples alone, in that order."""


@dataclass(frozen=True, slots=True)
class SampleCanaries:
    """Training samples that an audit looks for: see `flrl.data.canaries`.

    Attributes:
        indices: the samples, int64 `[m]`, ascending.
        included: whether each is in the training data of its client, bool `[m]`; else nobody has it.
    """

    indices: np.ndarray
    included: np.ndarray


@dataclass(frozen=True, slots=True)
class Splits:
    """A dataset.

    Attributes:
        train: training samples, which are divided among clients.
        test: central test samples.
        public: samples that the server and all clients have; None for none.
        groups: natural owner of each training sample, int64 `[len(train)]`, for `partition=natural`; None for none.
        num_classes: number of classes, where samples may show fewer (a vocabulary); None: the largest class plus one.
        canaries: training samples that an audit looks for, of which some are left out; None for none.
    """

    train: Source
    test: Source
    public: Source | None = None
    groups: np.ndarray | None = None
    num_classes: int | None = None
    canaries: SampleCanaries | None = None


class TensorSource:
    """Samples in memory as two tensors, batched by indexing; pixels become floats only in batches.

    Args:
        inputs: `[samples, ...]`; uint8 inputs are taken as pixels and divided by 255.
        targets: `[samples]` or `[samples, ...]`; int64 targets of one dimension are the samples' classes.
        mean: subtracted from each channel (dimension 1 of `inputs`) after division by 255.
        std: each channel is divided by it after that.

    Attributes:
        inputs: as given, or on the device that they have moved to.
        targets: as given, or on that device too.
        kept_limit: largest size in bytes of prepared samples that are kept; copies on one machine should divide it.

    Raises:
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets")
        if (mean is None) != (std is None):
            raise ValueError("mean and std come together: one is given, the other is not")
        if mean is not None and std is not None:
            _check_normalisation(inputs, list(mean), list(std))
        self.inputs = inputs
        self.targets = targets
        self.labels = targets.cpu().numpy() if targets.dtype == torch.int64 and targets.ndim == 1 else None
        channels = (-1,) + (1,) * (inputs.ndim - 2)
        self._mean = None if mean is None else torch.tensor(list(mean), dtype=torch.float32).view(channels)
        self._std = None if std is None else torch.tensor(list(std), dtype=torch.float32).view(channels)
        self._white = torch.tensor([255.0])
        self.kept_limit = _KEPT_BYTES
        self._device: torch.device | None = None
        self._forget()

    def move_to(self, device: torch.device) -> None:
        """Move the samples to a device at the first batch, unless they take more than a quarter of its free memory."""
        self._device = device

    def _move(self) -> None:
        device, self._device = self._device, None
        if device is None or (device.type == "cuda" and self._nbytes > torch.cuda.mem_get_info(device)[0] / 4):
            return
        with torch.inference_mode(False):  # the next batches may be needed for training
            self.inputs, self.targets = self.inputs.to(device), self.targets.to(device)
            self._white = self._white.to(device)
            if self._mean is not None and self._std is not None:
                self._mean, self._std = self._mean.to(device), self._std.to(device)

    @property
    def _nbytes(self) -> int:
        return self.inputs.nbytes + self.targets.nbytes

    def _forget(self) -> None:
        self._kept: dict[bytes, tuple[Tensor, Tensor, int]] = {}
        self._kept_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        """A copy starts without prepared samples."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state from `__getstate__`."""
        vars(self).update(state)
        self._forget()

    def subset(self, indices: np.ndarray) -> "TensorSource":
        """A new source with copies of the given samples, where these are."""
        self._move()
        chosen = torch.from_numpy(np.array(indices)).to(self.inputs.device)
        other = TensorSource(self.inputs.index_select(0, chosen), self.targets.index_select(0, chosen))
        other._mean, other._std, other._white = self._mean, self._std, self._white
        other.kept_limit = self.kept_limit
        return other

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.inputs)

    def batches(self, indices: np.ndarray, batch_size: int, *, reuse: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of (inputs, targets); inputs that were pixels or that have a mean come as float32."""
        self._move()
        kept = self._keep(indices) if reuse else None
        if kept is not None:
            yield from zip(torch.split(kept[0], batch_size), torch.split(kept[1], batch_size), strict=True)
            return
        order = torch.from_numpy(np.array(indices)).to(self.inputs.device)
        sample_bytes = 4 * max(1, self.inputs[:1].numel())
        block = batch_size * max(1, _BLOCK_BYTES // (sample_bytes * batch_size))
        for start in range(0, len(order), block):
            chosen = order[start : start + block]
            inputs = self._prepare(self.inputs.index_select(0, chosen))
            targets = self.targets.index_select(0, chosen)
            yield from zip(torch.split(inputs, batch_size), torch.split(targets, batch_size), strict=True)

    def _keep(self, indices: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """The prepared samples of `indices`, made once; None if they are too large or too small to be kept.

        Batches are views of the kept tensors. If one was changed in place, as their versions show, they are made anew.
        """
        key = np.ascontiguousarray(indices).tobytes()
        if key not in self._kept:
            one = 4 * self.inputs[:1].numel() + self.targets[:1].nbytes
            size = one * len(indices) + len(key) + _KEPT_ENTRY_BYTES
            if one * len(indices) < _KEPT_ENTRY_BYTES or self._kept_bytes + size > self.kept_limit:
                return None
            self._kept_bytes += size
        elif self._kept[key][2] == self._kept[key][0]._version + self._kept[key][1]._version:
            return self._kept[key][:2]
        order, step = torch.from_numpy(np.array(indices)).to(self.inputs.device), 512
        with torch.inference_mode(False):  # the same batches may be needed for training
            targets = self.targets.index_select(0, order)
            like = self._prepare(self.inputs[:0])
            inputs = torch.empty(len(order), *self.inputs.shape[1:], dtype=like.dtype, device=like.device)
            for start in range(0, len(order), step):
                inputs[start : start + step] = self._prepare(self.inputs.index_select(0, order[start : start + step]))
        self._kept[key] = (inputs, targets, inputs._version + targets._version)
        return inputs, targets

    def _prepare(self, inputs: Tensor) -> Tensor:
        if inputs.dtype == torch.uint8:
            # A tensor as divisor: for a number, CUDA multiplies by its inverse, with other bits than on a CPU.
            inputs = inputs.to(torch.float32).div_(self._white)
        if self._mean is not None and self._std is not None:
            inputs = inputs.to(torch.float32).sub_(self._mean).div_(self._std)
        return inputs


def _check_normalisation(inputs: Tensor, mean: list[float], std: list[float]) -> None:
    channels = inputs.shape[1] if inputs.ndim > 1 else 1
    if len(mean) != len(std) or len(mean) not in (1, channels):
        raise ValueError(f"mean={mean} and std={std}: the inputs have {channels} channels")
    if not all(value > 0 for value in std):
        raise ValueError(f"std={std}: every channel's must be positive")


class DatasetSource:
    """Any map-style `torch.utils.data.Dataset`, batched by a DataLoader.

    Args:
        dataset: the dataset; random transforms draw from the client's seed while they run in this process.
        labels: class of each sample, int64 `[len]`; found by `labels_of` if not given.
        label_key: if samples are dicts, the key of their class; null takes the first of `LABEL_KEYS` that exists.
        num_workers: worker processes of the DataLoader; 0 loads in this process.
        collate_fn: collate function of the DataLoader.

    Raises:
        ValueError: the number of labels is not that of samples, or samples do not have the key.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        labels: np.ndarray | None = None,
        label_key: str | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.dataset = dataset
        self.labels = labels_of(dataset, label_key) if labels is None else labels
        if self.labels is not None and len(self.labels) != len(self):
            raise ValueError(f"{len(self)} samples but {len(self.labels)} labels")
        self._num_workers = num_workers
        self._collate_fn = collate_fn

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.dataset)  # type: ignore[arg-type]  # a map-style dataset is sized

    def batches(self, indices: np.ndarray, batch_size: int, *, reuse: bool = False) -> Iterator[Any]:
        """Batches of the dataset's samples, collated; nothing is kept, since samples may be random."""
        # Without this generator the loader would draw a base seed from the global one, which belongs to the client.
        seed = int(torch.initial_seed() % 2**63) if self._num_workers else 0
        yield from DataLoader(
            Subset(self.dataset, indices.tolist()),
            batch_size=batch_size,
            num_workers=self._num_workers,
            collate_fn=self._collate_fn,
            generator=torch.Generator().manual_seed(seed),
        )

    def subset(self, indices: np.ndarray) -> "DatasetSource":
        """A source of the given samples of the same dataset."""
        return self.of(Subset(self.dataset, indices.tolist()), None if self.labels is None else self.labels[indices])

    def of(self, dataset: Dataset[Any], labels: np.ndarray | None) -> "DatasetSource":
        """A source of another dataset, loaded like this one; arguments as for the constructor."""
        return DatasetSource(dataset, labels=labels, num_workers=self._num_workers, collate_fn=self._collate_fn)
