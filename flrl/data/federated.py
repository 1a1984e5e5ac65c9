"""A dataset divided among clients: one copy of the samples, and indices into it for each client."""

import hashlib
import inspect
import zipfile
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flrl.data.apart import drawn, held_out, taken, without_canaries
from flrl.data.grouping import by_owner, spans
from flrl.data.ranges import Consecutive, Ranges
from flrl.data.shifts import NOBODY, Shift, shifted
from flrl.data.sources import Splits
from flrl.seeding import EVERYBODY, SERVER, generator_for

Partition = Callable[..., np.ndarray | Consecutive]
"""Called as `partition(num_samples, labels, rng)`; with `splits` too, by name, if it has an argument of that name."""


class FederatedData:
    """Training samples by client, and the central test samples.

    Each client's samples are in a random order fixed by the seed, or in the dataset's order if they are `Consecutive`;
    its last ones may be held out for evaluation.

    Args:
        splits: the dataset.
        partition: a function that assigns each training sample to a client, see `flrl.data.partitions`.
        seed: seed of the partition and of each client's order.
        holdout: share of each client's samples, in [0, 1), held out from its training. A client keeps at least one
            training sample; one with two samples or more holds out at least one if the share is positive.
        root_samples: how many training samples, drawn by seed from those of all clients, the server has instead of
            their clients; every client keeps at least one. They are `train_indices(SERVER)`.
        held_out_clients: how many of the partition's clients never take part, or which fraction of them below 1 (at
            least one then), drawn by seed. They have the last ids, the others the first ones, both in their order.
        public_samples: how many samples, drawn by seed from the dataset's public ones, the server and all clients have;
            of a dataset without any, from the clients' training samples, which they are taken from likewise.
        shift: what becomes of the samples of clients, seeded by `seed`; null for nothing.

    Attributes:
        splits: the dataset; its `public` are those that were drawn, its `train` is shifted.
        num_clients: number of clients that take part.
        held_out_clients: ids of those that never do: `num_clients` and on.
        sizes: number of training samples of each client that takes part, int64 `[num_clients]`.
        num_dataset_samples: number of training samples of the whole dataset, of which a part may be held here.
        num_root_samples: number of samples of the server's own.
        hash: SHA-256 of the partition.

    Raises:
        ValueError: the dataset has no training samples, the partition's result is invalid, a client has no samples,
            the server cannot have so many, or so many clients cannot be held out.
    """

    def __init__(
        self,
        splits: Splits,
        partition: Partition,
        *,
        seed: int,
        holdout: float = 0.0,
        root_samples: int = 0,
        held_out_clients: int | float = 0,
        public_samples: int = 0,
        shift: Shift | None = None,
    ) -> None:
        if not 0 <= holdout < 1:
            raise ValueError(f"holdout={holdout}: must be at least 0 and below 1")
        if not isinstance(splits, Splits):
            raise ValueError(f"the dataset must be given as flrl.data.Splits, got {type(splits).__name__}")
        for source in (splits.train, splits.test):
            if not hasattr(source, "batches"):
                raise ValueError(
                    f"Splits holds sources of samples, got {type(source).__name__}: wrap it in flrl.data.DatasetSource"
                )
        num_samples = len(splits.train)
        if num_samples == 0:
            raise ValueError("the dataset has no training samples")
        rng = generator_for(seed, 0, SERVER, "partition")
        more = {"splits": splits} if _asks_for_splits(partition) else {}
        owner = partition(num_samples, splits.train.labels, rng, **more)
        counts = _counted(owner, num_samples)
        self.num_dataset_samples = num_samples
        self._place: np.ndarray | None = None
        never = held_out(held_out_clients, len(counts), holdout, generator_for(seed, 0, SERVER, "held-out clients"))
        self.num_clients = len(counts) - len(never)
        self.held_out_clients = range(self.num_clients, len(counts))
        order = np.concatenate([np.delete(np.arange(len(counts)), never), never]) if len(never) else None
        counts = counts if order is None else counts[order]
        indices: Any = _by_client(owner, order, rng)
        if splits.canaries is not None or root_samples or public_samples or shift is not None:
            indices = indices[:]  # ranges become an array
        if splits.canaries is not None:
            apart = {"holdout": holdout, "root_samples": root_samples, "public_samples": public_samples}
            indices, counts = without_canaries(splits.canaries, indices, counts, apart)
        indices, counts, self._root = taken("root", root_samples, indices, counts, self.num_clients, seed)
        self.num_root_samples = len(self._root)
        self._public: np.ndarray | None = None
        if splits.public is not None:
            self.splits = replace(splits, public=drawn(splits.public, public_samples, seed))
        else:
            indices, counts, self._public = taken("public", public_samples, indices, counts, self.num_clients, seed)
            self.splits = replace(splits, public=splits.train.subset(self._public)) if public_samples else splits
        self._indices = indices
        self._ends = np.cumsum(counts)
        self._shift, self._turns = shift, np.empty(0)
        if shift is not None:
            owners = np.full(num_samples, NOBODY)
            owners[indices] = np.repeat(np.arange(len(counts)), counts)
            self.splits = replace(self.splits, train=shifted(splits.train, shift, owners, len(counts), seed))
            if shift.follows_rounds:
                self._turns = generator_for(seed, 0, SERVER, "shift/turns").random(num_samples)
        held = np.where(counts > 1, np.minimum(np.maximum(np.rint(holdout * counts), holdout > 0), counts - 1), 0)
        self._kept = counts - held.astype(np.int64)
        self.sizes = self._kept[: self.num_clients]
        if len(never) and not held[self.num_clients :].any():
            raise ValueError(f"held_out_clients={held_out_clients}: each has a single sample, and holds none out")
        self.hash = partition_hash(ends=self._ends, sizes=self._kept, indices=self._indices)

    def train_indices(self, client_id: int, round: int = 0) -> np.ndarray:
        """The client's training samples, the server's, or everybody's: indices into `splits.train`, int64 `[n]`.

        Args:
            client_id: the client, `SERVER`, or `EVERYBODY` for all that take part.
            round: the round in which they are asked for, which a shift may follow; 0: before the first.
        """
        if client_id == SERVER:
            return self._placed(SERVER, round)
        if client_id == EVERYBODY:
            return np.concatenate([self.train_indices(client, round) for client in range(self.num_clients)])
        return self._placed(client_id, round)[: self._kept[client_id]]

    def dataset_indices(self, client_id: int) -> np.ndarray:
        """`train_indices` as indices into the training samples of the whole dataset, of which a part may be held."""
        if client_id == EVERYBODY:
            return np.concatenate([self.dataset_indices(client) for client in range(self.num_clients)])
        return self._owned(client_id)[: self._kept[client_id]]

    def holdout_indices(self, client_id: int, round: int = 0) -> np.ndarray:
        """The client's held-out samples: indices into `splits.train`, as they are in a round; may be empty."""
        return self._placed(client_id, round)[self._kept[client_id] :]

    def holdout_size(self, client_id: int) -> int:
        """Number of samples that the client holds out."""
        return len(self._owned(client_id)) - int(self._kept[client_id])

    def holding_out(self) -> np.ndarray:
        """Ids of the clients that hold out samples, held-out clients among them, ascending; int64 `[n]`."""
        return np.flatnonzero(np.diff(self._ends, prepend=0) > self._kept)

    def _owned(self, client_id: int) -> np.ndarray:
        if client_id == SERVER:
            return self._root
        start = self._ends[client_id - 1] if client_id else 0
        owned: np.ndarray = self._indices[start : self._ends[client_id]]
        return owned

    def _placed(self, client_id: int, round: int) -> np.ndarray:
        """The client's samples in a round as indices into this object's `splits.train`, which may be a subset."""
        owned = self._owned(client_id)
        placed: np.ndarray = owned if self._place is None else self._place[owned]
        if self._place is not None and (placed < 0).any():
            owner = "the server" if client_id == SERVER else f"client {client_id}"
            raise ValueError(f"the samples of {owner} are not held here")
        if self._shift is None or not self._shift.follows_rounds:
            return placed
        placed = placed + (self._turns[owned] < self._shift.share(round)) * (len(self.splits.train) // 2)
        return placed

    def only(self, client_ids: Iterable[int], *, test: bool) -> "FederatedData":
        """The same federation with the samples of the given clients alone; indices of other clients raise ValueError.

        Args:
            client_ids: the clients whose training and held-out samples are kept.
            test: whether the server's samples are kept: the central test samples, and its root samples.

        Raises:
            ValueError: a source has no `subset`.
        """
        for source in (self.splits.train, self.splits.test):
            if not hasattr(source, "subset"):
                raise ValueError(f"{type(source).__name__} cannot be taken apart: it has no method `subset`")
        clients = np.fromiter(client_ids, np.int64)
        counts = np.diff(self._ends, prepend=0)[clients]
        chosen = self._indices[spans(self._ends[clients] - counts, counts)]
        if test and self.num_root_samples:
            chosen = np.concatenate([chosen, self._root])
        other = copy(self)
        other._place = np.full(self.num_dataset_samples, -1, np.int64)
        other._place[chosen] = np.arange(len(chosen))
        nothing = np.empty(0, np.int64)
        tests = self.splits.test if test else self.splits.test.subset(nothing)
        groups = None if self.splits.groups is None else self.splits.groups[chosen]
        if self._shift is not None and self._shift.follows_rounds:
            chosen = np.concatenate([chosen, chosen + self.num_dataset_samples])
        other.splits = replace(self.splits, train=self.splits.train.subset(chosen), test=tests, groups=groups)
        return other

    def label_counts(self, clients: range | None = None) -> np.ndarray | None:
        """Number of training samples by client and class, int64 `[clients, classes]`; None if unknown.

        Args:
            clients: consecutive ids among those that take part; more are left out. None: all of them.
        """
        labels = self.splits.train.labels
        if labels is None or self._place is not None:
            return None
        some = range(self.num_clients)[slice(None) if clients is None else slice(clients.start, clients.stop)]
        sizes, classes = self.sizes[some.start : some.stop], int(labels.max()) + 1
        owner = np.repeat(np.arange(len(some)), sizes)
        starts = self._ends - np.diff(self._ends, prepend=0)
        chosen = self._indices[spans(starts[some.start : some.stop], sizes)]
        counts = np.bincount(owner * classes + labels[chosen], minlength=len(some) * classes)
        return counts.reshape(len(some), classes)

    def save(self, path: Path) -> None:
        """Write `partition.npz`: `indices` of all clients in a row, `ends` of each client's part, `sizes`, `hash`.

        Client c owns `indices[ends[c-1]:ends[c]]`, the first `sizes[c]` of them for training; held-out clients come
        last. Where clients have consecutive samples, `starts` has the first one of each instead of `indices`, which
        `saved_indices` gives. `root` has the server's samples and `public` those that were taken for everybody, if
        there are any; `canaries` has the samples that an audit looks for, and `included` which of them a client has.
        """
        ranges = isinstance(self._indices, Ranges)
        of_clients = {"starts": self._indices.starts} if ranges else {"indices": self._indices}
        arrays = {**of_clients, "ends": self._ends, "sizes": self._kept, "hash": np.array(self.hash)}
        taken = {"root": self._root, "public": self._public}
        arrays |= {name: indices for name, indices in taken.items() if indices is not None and len(indices)}
        if self.splits.canaries is not None:
            arrays |= {"canaries": self.splits.canaries.indices, "included": self.splits.canaries.included}
        # The format of `np.savez_compressed`, at a level that takes a tenth of its time for 6 % more bytes.
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)


def partition_hash(*, ends: np.ndarray, sizes: np.ndarray, indices: np.ndarray | Ranges) -> str:
    """SHA-256 of the arrays of these names in `partition.npz`, as 64 hexadecimal digits."""
    parts = hashlib.sha256()
    for numbers in (ends, sizes, indices):
        for start in range(0, len(numbers), _HASHED):
            parts.update(np.ascontiguousarray(numbers[start : start + _HASHED], "<i8").data)
    return parts.hexdigest()


def saved_indices(saved: Mapping[str, np.ndarray]) -> np.ndarray | Ranges:
    """The indices of all clients in a row, from the arrays of `partition.npz`."""
    if "starts" in saved:
        return Ranges(saved["starts"], np.diff(saved["ends"], prepend=0))
    return saved["indices"]


_HASHED = 2**20
"""Numbers that are hashed at once."""


def _counted(owner: np.ndarray | Consecutive, num_samples: int) -> np.ndarray:
    """Samples of each client, int64 `[clients]`; ValueError unless each sample has an owner, and each client one."""
    found = owner if isinstance(owner, Consecutive) else np.asarray(owner)
    if found.shape != (num_samples,):
        raise ValueError(f"the partition returned shape {found.shape}, expected one owner for {num_samples} samples")
    if isinstance(found, Consecutive):
        counts = found.sizes
    elif np.issubdtype(found.dtype, np.integer) and found.min() >= 0:
        counts = np.bincount(found)
    else:
        raise ValueError("the partition must return client ids: whole numbers from 0 on")
    if not counts.all():
        raise ValueError(f"the partition left client {int(np.argmin(counts))} without samples")
    return counts


def _by_client(
    owner: np.ndarray | Consecutive, order: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray | Ranges:
    """The samples of all clients, in some order of these, one client after another; a client's are shuffled."""
    if isinstance(owner, Consecutive):
        return owner.indices(order)
    owners = np.asarray(owner) if order is None else _inverse(order)[owner]
    return by_owner(owners, _inverse(rng.permutation(len(owners))))


def _asks_for_splits(partition: Partition) -> bool:
    try:
        return "splits" in inspect.signature(partition).parameters
    except (TypeError, ValueError):  # written in C
        return False


def _inverse(permutation: np.ndarray) -> np.ndarray:
    inverse = np.empty_like(permutation)
    inverse[permutation] = np.arange(len(permutation))
    return inverse
