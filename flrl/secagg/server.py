"""The server's end of the protocol, which is given messages as bytes and nothing else."""

from collections.abc import Iterable, Mapping, Set

import numpy as np

from flrl.errors import RefusedMessageError, SecureAggregationError
from flrl.secagg.client import place
from flrl.secagg.crypto import KEY_BYTES, Agreement, add_masks, public_key
from flrl.secagg.graph import Graph
from flrl.secagg.masks import MaskedSum, in_common
from flrl.secagg.messages import (
    MASKING,
    OWN,
    AdvertiseKeys,
    KeyList,
    MaskedInput,
    Message,
    ShareKeys,
    ShareList,
    UnmaskRequest,
    UnmaskShares,
    decode,
)
from flrl.secagg.shamir import join

_EXPECTED = (AdvertiseKeys, ShareKeys, MaskedInput, UnmaskShares)


class Server:
    """The server in one round of four stages.

    `receive` takes a client's message, and `next` ends a stage: it gives the messages that go to clients. Whoever has
    not been heard by then has dropped out. After the fourth stage `sum` has the sum.

    Args:
        round: the round.
        graph: who are neighbours.
        size: words of each vector.
    """

    def __init__(self, *, round: int, graph: Graph, size: int) -> None:
        self.round, self.graph = round, graph
        self.stage = 0
        self._keys: dict[int, AdvertiseKeys] = {}
        self._sealed: dict[int, Mapping[int, bytes]] = {}
        self._masked = MaskedSum(round, size)
        self._answered: set[int] = set()
        self._shares: tuple[dict[int, dict[int, int]], dict[int, dict[int, int]]] = ({}, {})

    @property
    def present(self) -> Set[int]:
        """The clients that have been heard in this stage."""
        return (self._keys.keys(), self._sealed.keys(), self._masked.clients, self._answered)[min(self.stage, 3)]

    @property
    def lost(self) -> set[int]:
        """The clients that have sent shares, and whose vectors are not in the sum."""
        return self._sealed.keys() - self._masked.clients

    def receive(self, data: bytes) -> None:
        """Take a client's message of this stage.

        Raises:
            RefusedMessageError: it is none, or has come before, or is of another stage or round, or its sender takes no
                part or has dropped out; the server is as it was.
        """
        message = decode(data)
        self._check_turn(message)
        match message:
            case AdvertiseKeys():
                self._keys[message.client] = message
            case ShareKeys():
                self._check_receivers(message)
                self._sealed[message.client] = message.parts
            case MaskedInput():
                self._masked.add(message)
            case UnmaskShares():
                self._take_shares(message)

    def receive_sum(self, clients: Iterable[int], words: np.ndarray) -> None:
        """Take the sum of masked vectors that an aggregator between clients and server has added up.

        Args:
            clients: whose vectors are in it.
            words: the sum modulo 2^64, uint64 `[size]`.

        Raises:
            RefusedMessageError: as for `receive`.
        """
        clients = list(clients)
        if self.stage != 2:
            raise RefusedMessageError("secagg: a sum of masked vectors is out of turn")
        if unknown := set(clients) - self._sealed.keys():
            raise RefusedMessageError(f"secagg: client {min(unknown)} has sent no shares")
        self._masked.merge(clients, words)

    def next(self) -> dict[int, Message]:
        """End the stage; returns the message to each client that is still there.

        Raises:
            SecureAggregationError: fewer clients are left than the threshold.
        """
        present = self.present
        self._check_enough(present)
        self.stage += 1
        messages: dict[int, Message] = {}
        for client in sorted(present):
            near = [other for other in self.graph.neighbours[client] if other in present]
            if self.stage == 1:
                keys = {other: self._keys[other].channel + self._keys[other].masking for other in near}
                messages[client] = KeyList(self.round, client, keys)
            elif self.stage == 2:
                sealed = {other: self._sealed[other][client] for other in near}
                messages[client] = ShareList(self.round, client, sealed)
            elif self.stage == 3:
                survivors = tuple(sorted([client, *near]))
                messages[client] = UnmaskRequest(self.round, client, survivors)
        return messages

    def sum(self) -> np.ndarray:
        """The sum of the vectors, uint64 `[size]`, without masks.

        Raises:
            RefusedMessageError: the four stages have not ended, or the shares do not give a client's key.
        """
        if self.stage != 4:
            raise RefusedMessageError(f"secagg: there is no sum in stage {self.stage + 1}")
        words, masks = self._masked.words.copy(), []
        for client in sorted(self._masked.clients):
            masks.append((self._secret(client, OWN), False))
        for client in sorted(self.lost):
            near = [other for other in self.graph.neighbours[client] if other in self._masked.clients]
            if not near:
                continue
            private = self._secret(client, MASKING)
            if public_key(private) != self._keys[client].masking:
                raise RefusedMessageError(f"secagg: the shares of client {client}'s key do not give it")
            agreement = Agreement(private)
            for other in near:  # `other` has added the mask if its id is the larger one
                masks.append((in_common(agreement, self._keys[other].masking, self.round), other < client))
        add_masks(words, masks)
        return words

    def _secret(self, client: int, kind: int) -> bytes:
        shares = self._shares[kind][client]
        holders = sorted(shares)[: self.graph.threshold]
        secret = join({place(holder): shares[holder] for holder in holders})
        try:
            return secret.to_bytes(KEY_BYTES, "little")
        except OverflowError:
            raise RefusedMessageError(f"secagg: the shares of client {client} do not give a secret") from None

    def _check_turn(self, message: Message) -> None:
        client, kind = message.client, type(message).__name__
        if message.round != self.round:
            raise RefusedMessageError(
                f"secagg: client {client} has sent {kind} of round {message.round} in round {self.round}"
            )
        if self.stage > 3 or not isinstance(message, _EXPECTED[self.stage]):
            raise RefusedMessageError(f"secagg: {kind} from client {client} is out of turn")
        known = (self.graph.neighbours, self._keys, self._sealed, self._masked.clients)[self.stage]
        if client not in known:
            raise RefusedMessageError(f"secagg: client {client} takes no part, or has dropped out")
        if client in self.present:
            raise RefusedMessageError(f"secagg: client {client} has sent {kind} already")

    def _check_receivers(self, message: ShareKeys) -> None:
        expected = {other for other in self.graph.neighbours[message.client] if other in self._keys}
        if message.parts.keys() != expected:
            raise RefusedMessageError(f"secagg: client {message.client} has sent shares to others than its neighbours")

    def _take_shares(self, message: UnmaskShares) -> None:
        """Keep shares of own masks of who is in the sum and of keys of who is not: never both kinds of one client."""
        for origin, (kind, _) in message.shares.items():
            if origin not in self._sealed or message.client not in self.graph.holders[origin]:
                raise RefusedMessageError(f"secagg: client {message.client} has no shares of client {origin}")
            if (kind == OWN) != (origin in self._masked.clients):
                raise RefusedMessageError(f"secagg: client {message.client} has sent the other kind of share")
        self._answered.add(message.client)
        for origin, (kind, share) in message.shares.items():
            self._shares[kind].setdefault(origin, {})[message.client] = share
        assert not self._shares[OWN].keys() & self._shares[MASKING].keys(), "both kinds of a client's shares"

    def _check_enough(self, present: Set[int]) -> None:
        needed = self.graph.threshold
        for client in self._sealed if self.stage >= 2 else present:
            if client in self.lost and self.stage >= 2 and not present & set(self.graph.neighbours[client]):
                continue  # nobody's vector has its masks
            holders = len(present & set(self.graph.holders[client]))
            if holders < needed:
                raise SecureAggregationError(
                    f"secagg: round {self.round}: after stage {self.stage + 1} of 4 {holders} holders of client "
                    f"{client}'s shares are left, {needed} are needed (strategy.transforms.secagg.threshold)"
                )
        if not present:
            raise SecureAggregationError(f"secagg: round {self.round}: nobody is left after stage {self.stage + 1}")
