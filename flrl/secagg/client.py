"""The client's end of the protocol: one message in, one message out, each once and in order."""

from flrl.errors import RefusedMessageError, SecureAggregationError
from flrl.secagg.crypto import KEY_BYTES, Agreement, Secrets, decrypt, encrypt, field_elements, public_key
from flrl.secagg.graph import Graph
from flrl.secagg.masks import Masking
from flrl.secagg.messages import (
    MASKING,
    OWN,
    AdvertiseKeys,
    KeyList,
    Message,
    ShareKeys,
    ShareList,
    UnmaskRequest,
    UnmaskShares,
    read_share,
    share_bytes,
)
from flrl.secagg.shamir import SHARE_BYTES, split


def place(client: int) -> int:
    """At which place a client holds shares; 0 is that of the secret."""
    return client + 1


class Client:
    """A client in one round.

    Call `advertise_keys`, `share_keys`, `masking` (whose `input` masks its vector) and `unmask`, in this order. A
    method that is called again, or with a message of another stage, round or client, raises `RefusedMessageError`; one
    that leaves fewer clients than the threshold raises `SecureAggregationError`. The client then sends nothing more.

    Args:
        client_id: its id.
        round: the round.
        graph: who are neighbours.
        secrets: what it keeps to itself.
    """

    def __init__(self, client_id: int, *, round: int, graph: Graph, secrets: Secrets) -> None:
        self.client_id, self.round, self.graph, self.secrets = client_id, round, graph, secrets
        self._stage = 0
        self._keys: dict[int, bytes] = {}
        self._channel = Agreement(secrets.channel)
        self._shares: dict[int, tuple[int, int]] = {}

    def advertise_keys(self) -> AdvertiseKeys:
        """Its public keys."""
        self._enter(0)
        secrets = self.secrets
        return AdvertiseKeys(self.round, self.client_id, public_key(secrets.channel), public_key(secrets.masking))

    def share_keys(self, message: KeyList) -> ShareKeys:
        """A share of the seed of its own mask, and one of its private key, for each neighbour that has sent keys."""
        self._enter(1, message)
        own, holders = self.client_id, self.graph.holders[self.client_id]
        if extra := message.parts.keys() - set(self.graph.neighbours[own]):
            raise RefusedMessageError(f"secagg: client {min(extra)} is no neighbour of client {own}")
        public = list(message.parts.values())
        if len({key[i : i + KEY_BYTES] for key in public for i in (0, KEY_BYTES)}) < 2 * len(public):
            raise RefusedMessageError(f"secagg: client {own} was sent a public key twice")
        present = [client for client in holders if client in message.parts or client == own]
        self._enough(len(present))
        self._keys = dict(message.parts)
        degree = self.graph.threshold - 1
        numbers = field_elements(self.secrets.polynomials, 2 * degree)
        places = [place(client) for client in present]
        secrets = (self.secrets.own, self.secrets.masking)
        seeds, keys = (
            split(int.from_bytes(secret, "little"), numbers[start : start + degree], places)
            for secret, start in zip(secrets, (0, degree), strict=True)
        )
        sealed = {}
        for holder, *both in zip(present, seeds, keys, strict=True):
            if holder == own:
                self._shares[own] = both[OWN], both[MASKING]
                continue
            described = _described(self.round, own, holder)
            key = self._channel.key(self._keys[holder][:KEY_BYTES], described)
            sealed[holder] = encrypt(key, b"".join(map(share_bytes, both)), described.encode())
        return ShareKeys(self.round, own, sealed)

    def masking(self, message: ShareList) -> Masking:
        """What it masks its vector with, now that it has its neighbours' shares."""
        self._enter(2, message)
        own = self.client_id
        if extra := message.parts.keys() - self._keys.keys():
            raise RefusedMessageError(f"secagg: client {min(extra)} has sent shares and no keys to client {own}")
        for sender, sealed in message.parts.items():
            described = _described(self.round, sender, own)
            plain = decrypt(self._channel.key(self._keys[sender][:KEY_BYTES], described), sealed, described.encode())
            self._shares[sender] = read_share(plain[:SHARE_BYTES]), read_share(plain[SHARE_BYTES:])
        self._enough(len(self._shares))
        peers = {sender: self._keys[sender][KEY_BYTES:] for sender in message.parts}
        return Masking(self.round, own, self.secrets, peers)

    def unmask(self, message: UnmaskRequest) -> UnmaskShares:
        """For each client whose shares it has, that of the own mask if its vector is in the sum, else that of its key.

        The request is answered once: both kinds of a client's shares would uncover its vector.
        """
        self._enter(3, message)
        survivors = set(message.survivors)
        if unknown := survivors - self._shares.keys() - {self.client_id}:
            raise RefusedMessageError(f"secagg: client {min(unknown)} has sent no shares to client {self.client_id}")
        if self.client_id not in survivors:
            raise RefusedMessageError(f"secagg: client {self.client_id} is asked to unmask a sum that it is not in")
        self._enough(len(survivors & set(self.graph.holders[self.client_id])))
        kinds = {origin: OWN if origin in survivors else MASKING for origin in self._shares}
        return UnmaskShares(
            self.round, self.client_id, {origin: (kind, self._shares[origin][kind]) for origin, kind in kinds.items()}
        )

    def _enter(self, stage: int, message: Message | None = None) -> None:
        """Begin a stage with its message, once."""
        if self._stage != stage:
            raise RefusedMessageError(f"secagg: client {self.client_id} is in stage {self._stage + 1}, not {stage + 1}")
        if message is not None and (message.round, message.client) != (self.round, self.client_id):
            raise RefusedMessageError(
                f"secagg: client {self.client_id}, round {self.round}: was sent a message for client {message.client}, "
                f"round {message.round}"
            )
        self._stage += 1

    def _enough(self, present: int) -> None:
        if present < self.graph.threshold:
            raise SecureAggregationError(
                f"secagg: client {self.client_id}, round {self.round}: {present} clients hold its shares, "
                f"{self.graph.threshold} are needed"
            )


def _described(round: int, sender: int, receiver: int) -> str:
    """What a message over a channel is for, and from and to whom."""
    return f"shares/{round}/{sender}/{receiver}"
