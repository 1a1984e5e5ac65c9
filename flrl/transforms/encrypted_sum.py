"""A reducer that adds ciphertexts: what a server has of its clients' updates when they are encrypted."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flrl.aggregation.base import Parcel, Reducer, Stats
from flrl.aggregation.mean import MeanReducer
from flrl.encryption import KeyHolder, Scheme
from flrl.types import ClientUpdate


class EncryptedSum:
    """Encrypts each client's part of the exact mean's sum, and adds ciphertexts; weights are added in the clear.

    In a deployment `add` up to the encryption runs at the client, and all else on the server.

    Args:
        inner: an empty reducer of the exact mean, which the key holder is to fill.
        scheme: the public side of a scheme.
        largest: the largest absolute value that the scheme can hold; a client with a larger one sends nothing.

    Attributes:
        ciphertexts: of the sum, serialised; empty before the first update.
        addends: number of updates in the sum.
    """

    def __init__(self, inner: MeanReducer, scheme: Scheme, *, largest: float = float("inf")) -> None:
        self.inner, self.scheme, self.largest = inner, scheme, largest
        self.weights = inner.empty({})
        self.ciphertexts: list[bytes] = []
        self.addends = 0

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """The rejection reason of an update that cannot be summed or encrypted, or None; known to the client."""
        for name, known in stats.items():
            if self.largest < known.largest < float("inf"):
                return f"{name} is too large to be encrypted ({known.largest:.3g}, at most {self.largest:.3g})"
        return self.inner.rejection(update, stats)

    def add(self, update: ClientUpdate, stats: Stats) -> None:
        """Encrypt one update and add it.

        Raises:
            ValueError: its vectors are not those announced, or are not finite.
            OverflowError: a value leaves the exact range.
        """
        alone = self.inner.empty(self.inner.sizes)
        alone.add(update, stats)
        self._add(self.scheme.encrypt(alone.sum.parts[:, :-1].cpu().numpy()))
        self.weights.add(replace(update, vectors={}), {})
        self.addends += 1

    def parcel(self) -> Parcel:
        """The ciphertexts as extras, in order; the weights as a summand."""
        parcel = self.weights.parcel()
        sent = {f"{place:08}": as_tensor(each) for place, each in enumerate(self.ciphertexts)}
        return replace(parcel, extras=sent, numbers={**parcel.numbers, "addends": self.addends})

    def merge(self, others: list[Parcel]) -> Tensor | None:
        """Add the ciphertexts of the other workers; the caller adds their weights to what is returned."""
        for parcel in others:
            self._add([as_bytes(parcel.extras[name]) for name in sorted(parcel.extras)])
            self.addends += parcel.numbers["addends"]
        return self.weights.merge(others)

    def result(self) -> tuple[dict[str, Tensor], float]:
        """Raise RuntimeError: only the key holder can decrypt, see `opened`."""
        raise RuntimeError("an encrypted sum has no result without the private key")

    def _add(self, ciphertexts: list[bytes]) -> None:
        if not self.ciphertexts:
            self.ciphertexts = ciphertexts
        elif ciphertexts:
            self.ciphertexts = self.scheme.add(self.ciphertexts, ciphertexts)


def opened(reducer: Reducer, holders: Mapping[str, KeyHolder]) -> Reducer:
    """The reducer of the plain sum that the key holder decrypts, and hands to the server; others as they are.

    Raises:
        OverflowError: a number of the sum is outside of the exact sum's range.
    """
    if not isinstance(reducer, EncryptedSum):
        return reducer
    (holder,) = holders.values()
    inner = reducer.inner
    if reducer.ciphertexts:
        size = sum(inner.sizes.values())
        numbers = torch.from_numpy(np.ascontiguousarray(holder.decrypt(reducer.ciphertexts, size)))
        weights = reducer.weights.sum
        inner.sum.parts = torch.cat([numbers, weights.parts.cpu()], 1)
        inner.sum.bound, inner.sum.pending = weights.bound, weights.pending
    return inner


def as_tensor(content: bytes) -> Tensor:
    """Bytes as a uint8 tensor."""
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> bytes:
    """A uint8 tensor as bytes."""
    return tensor.cpu().numpy().tobytes()
