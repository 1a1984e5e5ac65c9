"""The exact mean of updates of which only masked integers leave a client: what a worker reduces under `SecAgg`.

The exact sum's high parts are multiples of 2^-24 and its low parts of 2^-64, so that a number is two integers, and sums
modulo 2^64 of these are exact: the mean has the bits that it has without masks.
"""

import numpy as np
import torch
from torch import Tensor

from flrl.aggregation.base import Opened, Parcel, SealedReducer, Stats
from flrl.aggregation.mean import MeanReducer
from flrl.errors import RefusedMessageError
from flrl.secagg import STAGES, MaskedSum, Session
from flrl.types import ClientUpdate

HIGH, LOW = 24, 64
"""Binary digits after the point of the two parts."""
_RANGE = 2**52
"""Largest sum of high integers that float64 surely holds."""


class MaskedReducer(SealedReducer):
    """Adds up clients' masked integers modulo 2^64.

    Args:
        plain: the aggregator's reducer, empty; it takes the sum when it is opened.
        session: the round of the protocol.
    """

    def __init__(self, plain: MeanReducer, session: Session) -> None:
        self.plain, self.session = plain, session
        self.sum = MaskedSum(session.round, session.size)

    def rejection(self, update: ClientUpdate, stats: Stats) -> str | None:
        """The rejection reason of an update that cannot be summed, or None; known to the client."""
        return self.plain.rejection(update, stats)

    def add(self, update: ClientUpdate, stats: Stats) -> None:
        """Mask one update, as its client does, and add it.

        Raises:
            ValueError: its vectors are not those announced, or are not finite.
            RefusedMessageError: the client's update is in the sum already.
        """
        alone = MeanReducer(self.plain.sizes, total_weight=1.0, device="cpu")
        alone.scale = self.plain.scale
        alone.add(update, stats)
        self.sum.add(self.session.masking(update.client_id).input(integers(alone.sum.parts)))

    def parcel(self) -> Parcel:
        """The sum, int64, and the clients that are in it."""
        clients = torch.tensor(sorted(self.sum.clients), dtype=torch.int64)
        return Parcel(torch.from_numpy(self.sum.words.view(np.int64)), {"clients": clients})

    def merge(self, others: list[Parcel]) -> Tensor:
        """Note the other workers' clients; the caller adds their sums to the returned one (int64 `[2 (n + 1)]`).

        Raises:
            RefusedMessageError: a client's update is in two sums.
        """
        for parcel in others:
            clients = set(parcel.extras["clients"].tolist())
            if twice := clients & self.sum.clients:
                raise RefusedMessageError(f"secagg: client {min(twice)} has sent its masked vector already")
            self.sum.clients |= clients
        return torch.from_numpy(self.sum.words.view(np.int64))

    def result(self) -> tuple[dict[str, Tensor], float]:
        """The weighted mean of each vector, and the sum of weights, once the masks have been taken away."""
        return self.opened().reducer.result()

    def opened(self) -> Opened:
        """The reducer as it would be without masks: the protocol's last stage.

        Raises:
            SecureAggregationError: fewer clients are left than the threshold.
            OverflowError: the sum leaves the exact range.
        """
        words, traffic = self.session.unmask(self.sum)
        self.plain.sum.parts = parts(words)
        graph, there = self.session.graph, self.sum.clients
        numbers = {
            "secagg/neighbours": float(graph.degree),
            "secagg/threshold": float(graph.threshold),
            "secagg/lost": float(len(self.session.clients) - len(there)),
            "secagg/silent": float(len(there) - len(traffic.up["unmasking"])),
        }
        for name, bytes_of in (("up", traffic.up), ("down", traffic.down)):
            numbers |= {f"secagg/{stage}_{name}_bytes": float(sum(bytes_of[stage].values())) for stage in STAGES}
        down = sum(sum(by_client.values()) for by_client in traffic.down.values())
        return Opened(self.plain, numbers, down)


def integers(both: Tensor) -> np.ndarray:
    """The parts of an exact sum, float64 `[2, n]`, as integers modulo 2^64, uint64 `[2 n]`."""
    scaled: np.ndarray = both.numpy() * np.array([[2.0**HIGH], [2.0**LOW]])
    return scaled.astype(np.int64).reshape(-1).view(np.uint64)


def parts(words: np.ndarray) -> Tensor:
    """The inverse: parts of an exact sum whose value is that of the integers, carried.

    Raises:
        OverflowError: a sum leaves the exact range.
    """
    high, low = words.view(np.int64).reshape(2, -1)
    carry = (low + 2 ** (LOW - HIGH - 1)) >> (LOW - HIGH)
    high = high + carry
    if high.size and not (-_RANGE <= high.min() and high.max() <= _RANGE):
        raise OverflowError("secagg: the sum leaves the exact range")
    both = np.stack([high * 2.0**-HIGH, (low - (carry << (LOW - HIGH))) * 2.0**-LOW])
    return torch.from_numpy(both)
