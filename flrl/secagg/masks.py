"""A client's masks, and the sum of masked vectors, which an aggregator between clients and server may add up too."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from flrl.errors import RefusedMessageError
from flrl.secagg.crypto import Agreement, Secrets, add_masks
from flrl.secagg.messages import MaskedInput


def in_common(agreement: Agreement, public: bytes, round: int) -> bytes:
    """The key of the mask that two clients have in common in a round."""
    return agreement.key(public, f"mask/{round}")


@dataclass(frozen=True, slots=True)
class Masking:
    """What a client masks its vector with.

    Attributes:
        round: the round.
        client: its id.
        secrets: its secrets.
        peers: the public keys for masks of those of its neighbours that have sent shares, by client.
    """

    round: int
    client: int
    secrets: Secrets
    peers: Mapping[int, bytes]

    def input(self, words: np.ndarray) -> MaskedInput:
        """`words + PRG(own) + sum over peers v < u of PRG(u, v) - sum over v > u of PRG(u, v)` modulo 2^64.

        Args:
            words: the client's vector, uint64 `[n]`; masked in place.
        """
        agreement = Agreement(self.secrets.masking)
        pairs = [(in_common(agreement, key, self.round), peer < self.client) for peer, key in self.peers.items()]
        add_masks(words, [(self.secrets.own, True), *pairs])
        return MaskedInput(self.round, self.client, words)


class MaskedSum:
    """The sum modulo 2^64 of clients' masked vectors.

    Args:
        round: the round.
        size: words of each vector.

    Attributes:
        clients: whose vectors are in it.
        words: the sum, uint64 `[size]`.
    """

    def __init__(self, round: int, size: int) -> None:
        self.round = round
        self.clients: set[int] = set()
        self.words = np.zeros(size, np.uint64)

    def add(self, message: MaskedInput) -> None:
        """Add a client's vector.

        Raises:
            RefusedMessageError: it is of another round or length, or that client's is in the sum.
        """
        if message.round != self.round:
            raise RefusedMessageError(f"secagg: a masked vector of round {message.round} in round {self.round}")
        self._expect([message.client], message.words)
        self.words += message.words

    def merge(self, clients: Iterable[int], words: np.ndarray) -> None:
        """Add the sum of other clients' vectors; arguments as the attributes.

        Raises:
            RefusedMessageError: it is of another length, or the vector of one of them is in the sum.
        """
        self._expect(clients, words)
        self.words += words

    def _expect(self, clients: Iterable[int], words: np.ndarray) -> None:
        added = set(clients)
        if twice := added & self.clients:
            raise RefusedMessageError(f"secagg: client {min(twice)} has sent its masked vector already")
        if words.shape != self.words.shape:
            raise RefusedMessageError(f"secagg: a masked vector of {words.size} words, expected {self.words.size}")
        self.clients |= added
