"""Encoded updates on their way from a worker to the controller: what moves is the buffer that a compressor has made.

That is so wherever an update leaves its process by itself: for rules that need every update, and with a dedicated
server, which sums them itself. Other workers sum their clients' updates, and the sum moves.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from flrl.aggregation import Parcel, Reducer, RowsReducer, stats_of
from flrl.aggregation.base import Stats, check_sizes
from flrl.backends.pool.messages import ENCODED, VECTOR
from flrl.transforms import Compressor, Downlink
from flrl.transforms.apply import sizes_after
from flrl.types import Broadcast, ClientUpdate, Tensors
from flrl.worker import Worker

_WEIGHT = "weight"


class EncodedReducer:
    """Keeps updates as they were encoded; those that are not, and other vectors, as they are.

    Args:
        reducer: one that could add the updates here, which says what is rejected.
        sizes: number of elements of each vector in the updates, by name.
    """

    def __init__(self, reducer: Reducer, sizes: Mapping[str, int]) -> None:
        self._reducer, self._sizes = reducer, dict(sizes)
        self._kept: dict[str, Tensor] = {}

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """The rejection reason of an update that must be left out, or None."""
        return self._reducer.rejection(update, stats)

    def add(self, update: ClientUpdate, stats: Stats) -> None:
        """Keep one update.

        Raises:
            ValueError: its vectors are not those announced.
        """
        check_sizes(update, self._sizes)
        for name in self._sizes:
            kind, vector = VECTOR, update.vectors[name].to("cpu", torch.float64)
            if name in update.encoded:
                kind, vector = ENCODED, update.encoded[name]
            self._kept[f"{update.client_id}/{kind}/{name}"] = vector
        self._kept[f"{update.client_id}/{_WEIGHT}/"] = torch.tensor([update.weight], dtype=torch.float64)

    def parcel(self) -> Parcel:
        """All updates as extras, each named `<client>/encoded/<vector>`, `<client>/vector/<vector>`, or its weight."""
        return Parcel(None, self._kept, {ENCODED: 1})

    def merge(self, others: list[Parcel]) -> Tensor | None:
        """Always raises TypeError: updates are only kept here."""
        raise TypeError("encoded updates are merged by the controller")

    def result(self) -> tuple[dict[str, Tensor], float]:
        """Always raises TypeError: updates are only kept here."""
        raise TypeError("encoded updates are aggregated by the controller")


def leaving(worker: Worker, broadcast: Broadcast, *, each: bool) -> Reducer:
    """A worker's empty reducer for a round: one of encoded updates if they leave it one by one, and are encoded.

    Args:
        worker: the worker.
        broadcast: what its clients are sent.
        each: whether updates leave it one by one whatever the rule.
    """
    reducer, layout = worker.reducer(broadcast), worker.model.layout
    encodes = any(transform.encodes for transform in worker.strategy.transforms.values())
    if encodes and (each or isinstance(reducer, RowsReducer)):
        return EncodedReducer(reducer, sizes_after(worker.strategy.transforms, worker.strategy.vector_sizes(layout)))
    return reducer


def decoded_into(reducer: Reducer, parcels: Sequence[Parcel], worker: Worker) -> list[Parcel]:
    """Add the updates of all parcels of encoded ones to a reducer, decoded; returns the other parcels."""
    coders = [part for part in worker.strategy.transforms.values() if isinstance(part, Compressor)]
    for parcel in parcels:
        if ENCODED not in parcel.numbers:
            continue
        updates: dict[int, dict[str, Tensor]] = {}
        weights: dict[int, float] = {}
        for key, tensor in parcel.extras.items():
            client, kind, name = key.split("/", 2)
            vectors = updates.setdefault(int(client), {})
            if kind == _WEIGHT:
                weights[int(client)] = float(tensor)
            elif kind == ENCODED:
                vectors[name] = torch.from_numpy(coders[0].decode(tensor.numpy(), worker.model.layout))
            else:
                vectors[name] = tensor
        for client_id, found in updates.items():
            vectors = {name: vector.to(worker.model.local.device) for name, vector in found.items()}
            update = ClientUpdate(client_id, weights[client_id], vectors, {}, 0)
            reducer.add(update, stats_of(update))
    return [parcel for parcel in parcels if ENCODED not in parcel.numbers]


def vector_of(received: Tensors, worker: Worker) -> Tensor:
    """The model among the tensors that `of_broadcast` has made, decoded if it came encoded."""
    if ENCODED not in received:
        return received[VECTOR]
    coder = next(part for part in worker.strategy.transforms.values() if isinstance(part, Downlink))
    return coder.decode(received[ENCODED], worker.model.layout)
