"""The protocol: sums to the bit with any drop-outs, aborts, refused messages, and what the server sees."""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flrl.errors import RefusedMessageError, SecureAggregationError
from flrl.secagg import Client, MaskedSum, Secrets
from flrl.secagg.crypto import Agreement, add_masks, public_key
from flrl.secagg.masks import in_common
from flrl.secagg.messages import (
    MASKING,
    OWN,
    KeyList,
    MaskedInput,
    Message,
    ShareKeys,
    ShareList,
    UnmaskRequest,
    UnmaskShares,
    decode,
)
from tests.secagg.playing import ROUND, Play, graph_of, vectors_of


def check(play: Play) -> bool:
    """The sum is exact, or nothing comes out; returns whether there is one."""
    if not play.succeeds:
        with pytest.raises(SecureAggregationError, match=r"are needed|nobody is left"):
            play.sum()
        with pytest.raises(RefusedMessageError, match="there is no sum in stage"):
            play.server.sum()
        return False
    assert np.array_equal(play.sum(), play.expected)
    return True


def test_all_drop_outs_of_three_clients() -> None:
    """Two of three are needed: 5 ways for each to be lost, or not."""
    graph, vectors = graph_of([2, 5, 9]), vectors_of([2, 5, 9], 3)
    done = [
        check(Play(graph, vectors, dict(zip(vectors, drops, strict=True)))) for drops in product(range(5), repeat=3)
    ]
    # All four stages need two of the three: at most one is lost, in one of four stages.
    assert sum(done) == 1 + 3 * 4


@pytest.mark.slow
def test_all_drop_outs_of_four_clients() -> None:
    graph, vectors = graph_of(range(4)), vectors_of(range(4), 3)
    done = [check(Play(graph, vectors, dict(enumerate(drops)))) for drops in product(range(5), repeat=4)]
    assert sum(done) == 1 + 4 * 4


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_drop_outs_of_many_clients(data: st.DataObject) -> None:
    clients = data.draw(st.lists(st.integers(0, 1000), min_size=5, max_size=9, unique=True))
    graph = graph_of(clients, data.draw(st.sampled_from([None, 2, 4])), data.draw(st.sampled_from([0.5, 0.7])))
    lost = data.draw(st.dictionaries(st.sampled_from(clients), st.integers(0, 3), max_size=3))
    check(Play(graph, vectors_of(clients, 5), lost))


@pytest.mark.parametrize(("degree", "drops"), [(None, {1: 0, 4: 1, 7: 2, 8: 3}), (6, {1: 0, 7: 2}), (6, {2: 1, 9: 3})])
def test_sums_with_drop_outs_in_every_stage(degree: int | None, drops: dict[int, int]) -> None:
    assert check(Play(graph_of(range(12), degree), vectors_of(range(12), 70_000 if degree is None else 4), drops))


def test_masked_vectors_are_uniform_and_independent_of_what_they_mask() -> None:
    """The bytes of masked zeros have chi squared with 255 degrees of freedom; so have those of partial sums."""
    zeros = dict.fromkeys(range(5), np.zeros(4096, np.uint64))
    play = Play(graph_of(range(5)), zeros, {1: 2}).until(2)
    words = {client: MaskedInput.decode(data).words for client, data in play.up[2].items()}
    partial = words[0] + words[2] + words[3]
    whole = partial + words[4]  # without client 1, whose masks are left in it
    for seen in (*words.values(), partial, whole, words[0] - words[4]):
        counts = np.bincount(seen.view(np.uint8), minlength=256)
        assert 1e-4 < stats.chisquare(counts).pvalue < 1 - 1e-4
        bits = np.unpackbits(seen.view(np.uint8)).reshape(len(seen), 64).mean(axis=0)
        assert np.abs(bits - 0.5).max() < 4.5 * 0.5 / len(seen) ** 0.5
    assert np.abs(np.corrcoef([own.astype(np.float64) for own in words.values()]) - np.eye(4)).max() < 0.07


def test_masks_are_those_of_the_paper() -> None:
    """With all of them known, a masked vector is the sum of its parts: PRG of the seed, and of each pair by sign."""
    play = Play(graph_of([1, 2, 3]), vectors_of([1, 2, 3], 6)).until(2)
    sent = {client: MaskedInput.decode(data).words for client, data in play.up[2].items()}
    left = {client: sent[client] - play.vectors[client] for client in sent}
    alone = Play(graph_of([1, 2, 3]), dict.fromkeys((1, 2, 3), np.zeros(6, np.uint64))).until(2)
    assert all(np.array_equal(left[c], MaskedInput.decode(alone.up[2][c]).words) for c in left)  # do not depend on it
    own = np.zeros(6, np.uint64)
    add_masks(own, [(Secrets.of_seed(5, ROUND, client).own, True) for client in left])
    assert np.array_equal(np.sum(list(left.values()), axis=0, dtype=np.uint64), own)  # the others cancel


def test_masks_of_two_rounds_are_different_and_both_sides_have_the_same() -> None:
    one, two = (Agreement(Secrets.of_seed(5, ROUND, client).masking) for client in (1, 2))
    publics = [public_key(Secrets.of_seed(5, ROUND, client).masking) for client in (1, 2)]
    assert in_common(one, publics[1], 3) == in_common(two, publics[0], 3)
    assert in_common(one, publics[1], 3) != in_common(one, publics[1], 4)


MANY = {client: np.arange(4, dtype=np.uint64) for client in range(5)}


def other_round(data: bytes) -> bytes:
    return data[:1] + (ROUND + 1).to_bytes(4, "little") + data[5:]


def of_client(data: bytes, client: int) -> bytes:
    return data[:5] + client.to_bytes(4, "little") + data[9:]


@pytest.mark.parametrize("stage", range(4))
def test_the_server_refuses_what_is_repeated_or_does_not_belong(stage: int) -> None:
    """And then goes on as if nothing had come."""
    play = Play(graph_of(range(5)), MANY, {4: 0}).until(stage)
    first = play.up[stage][0]
    kind = type(decode(first)).__name__
    wrong = {
        other_round(first): rf"client 0 has sent {kind} of round 4 in round 3",
        of_client(first, 77): "client 77 takes no part, or has dropped out",
        first[:-1]: "bytes are no message",
        first + b"\0": "bytes are no message",
        b"": "0 bytes are no message",
        b"\x63" + first[1:]: "are no message: 99",
    }
    if stage > 0:
        wrong[of_client(first, 4)] = "client 4 takes no part, or has dropped out"
        wrong[play.up[stage - 1][1]] = r"(AdvertiseKeys|ShareKeys|MaskedInput) from client 1 is out of turn"
    for data, message in wrong.items():
        with pytest.raises(RefusedMessageError, match=message):
            play.server.receive(data)
    play.server.receive(first)
    with pytest.raises(RefusedMessageError, match=rf"client 0 has sent {kind} already"):
        play.server.receive(first)
    del play.up[stage][0]
    play.send(stage)
    for later in range(stage + 1, 4):
        play.up[later] = {client: play.make(later, client) for client in play.heard(later)}
        play.send(later)
    assert np.array_equal(play.server.sum(), play.expected)


def test_clients_refuse_what_is_repeated_or_does_not_belong() -> None:
    play = Play(graph_of(range(5)), MANY).until(3)
    end, kinds = play.clients[0], (KeyList, ShareList, UnmaskRequest)
    for call, cls, data in zip(
        (end.share_keys, end.masking, end.unmask), kinds, [d[0] for d in play.down], strict=True
    ):
        with pytest.raises(RefusedMessageError, match="client 0 is in stage 5, not"):
            call(cls.decode(data))  # type: ignore[operator]
    with pytest.raises(RefusedMessageError, match="is in stage 5, not 1"):
        end.advertise_keys()
    fresh = Client(0, round=ROUND, graph=play.graph, secrets=Secrets.random())
    fresh.advertise_keys()
    with pytest.raises(RefusedMessageError, match="was sent a message for client 1, round 3"):
        fresh.share_keys(KeyList.decode(play.down[0][1]))
    with pytest.raises(RefusedMessageError, match="was sent a message for client 0, round 4"):
        fresh.share_keys(KeyList.decode(other_round(play.down[0][0])))
    with pytest.raises(RefusedMessageError, match="ShareList from client 0 is out of turn"):
        KeyList.decode(play.down[1][0])


def at_stage(stage: int) -> tuple[Play, Client, Any]:
    """Client 0 before a stage, and the server's message to it."""
    play = Play(graph_of(range(5)), MANY)
    play.until(stage - 1).send(stage - 1)
    return play, play.clients[0], decode(play.down[stage - 1][0])


def changed(message: Any, parts: Mapping[int, bytes]) -> Any:
    return type(message)(message.round, message.client, {**message.parts, **parts})


def test_keys_that_cannot_be_right_are_refused() -> None:
    for wrong, expected in (
        ({9: bytes(64)}, "client 9 is no neighbour of client 0"),
        ({1: bytes(64)}, "sent a public key twice"),
        ({1: bytes(32) + b"\1" * 32}, "a public key cannot be used"),
    ):
        _, end, keys = at_stage(1)
        with pytest.raises(RefusedMessageError, match=expected):
            end.share_keys(changed(keys, wrong))
    _, end, keys = at_stage(1)
    with pytest.raises(RefusedMessageError, match="twice"):
        end.share_keys(changed(keys, {1: keys.parts[2]}))  # the server in the place of a client


def test_shares_that_were_changed_are_refused() -> None:
    """A flipped bit, shares for another client, of another client, and of one without keys."""
    play, end, shares = at_stage(2)
    flipped = bytes([shares.parts[1][0] ^ 1]) + shares.parts[1][1:]
    for wrong in (flipped, shares.parts[2], decode(play.down[1][3]).parts[1]):  # type: ignore[attr-defined]
        _, end, _ = at_stage(2)
        with pytest.raises(RefusedMessageError, match="a ciphertext has been changed"):
            end.masking(changed(shares, {1: wrong}))
    _, end, _ = at_stage(2)
    with pytest.raises(RefusedMessageError, match="client 9 has sent shares and no keys to client 0"):
        end.masking(changed(shares, {9: shares.parts[1]}))


def request(*survivors: int) -> UnmaskRequest:
    return UnmaskRequest(ROUND, 0, survivors)


def test_no_client_gives_both_kinds_of_shares() -> None:
    """A server that asks again, with client 1 lost this time, gets nothing."""
    _, end, honest = at_stage(3)
    answer = end.unmask(honest)
    assert {origin: kind for origin, (kind, _) in answer.shares.items()} == dict.fromkeys(range(5), OWN)
    with pytest.raises(RefusedMessageError, match="is in stage 5, not 4"):
        end.unmask(request(0, 2, 3, 4))
    _, end, _ = at_stage(3)
    kinds = {origin: kind for origin, (kind, _) in end.unmask(request(0, 2, 3, 4)).shares.items()}
    assert kinds == {0: OWN, 1: MASKING, 2: OWN, 3: OWN, 4: OWN}


@pytest.mark.parametrize(
    ("survivors", "error", "message"),
    [
        ((1, 2, 3, 4), RefusedMessageError, "client 0 is asked to unmask a sum that it is not in"),
        ((0, 1, 2, 9), RefusedMessageError, "client 9 has sent no shares to client 0"),
        ((0, 1), SecureAggregationError, "2 clients hold its shares, 3 are needed"),
    ],
)
def test_requests_that_would_uncover_a_client_are_not_answered(
    survivors: tuple[int, ...], error: type[Exception], message: str
) -> None:
    _, end, _ = at_stage(3)
    with pytest.raises(error, match=message):
        end.unmask(request(*survivors))


def test_the_server_keeps_one_kind_of_share_of_each_client() -> None:
    """The other kind is refused, also from clients that would send it; none is kept for clients of both kinds."""
    play = Play(graph_of(range(5)), MANY, {1: 2}).until(3)
    honest = UnmaskShares.decode(play.up[3][0])
    for origin, kind in ((1, OWN), (2, MASKING)):
        both = {**honest.shares, origin: (kind, honest.shares[origin][1])}
        with pytest.raises(RefusedMessageError, match="client 0 has sent the other kind of share"):
            play.server.receive(UnmaskShares(ROUND, 0, both).encode())
    with pytest.raises(RefusedMessageError, match="client 0 has no shares of client 9"):
        play.server.receive(UnmaskShares(ROUND, 0, {**honest.shares, 9: (OWN, 1)}).encode())
    play.send(3)
    own, keys = play.server._shares
    assert (set(own), set(keys)) == ({0, 2, 3, 4}, {1})
    assert np.array_equal(play.server.sum(), play.expected)


def test_shares_that_do_not_give_the_key_are_noticed() -> None:
    play = Play(graph_of(range(5)), MANY, {1: 2}).until(3)
    honest = UnmaskShares.decode(play.up[3][0])
    kind, share = honest.shares[1]
    play.up[3][0] = UnmaskShares(ROUND, 0, {**honest.shares, 1: (kind, share ^ 1)}).encode()
    play.send(3)
    with pytest.raises(RefusedMessageError, match=r"shares of client 1('s key do not give it| do not give a secret)"):
        play.server.sum()


def test_shares_go_to_all_neighbours_and_to_nobody_else() -> None:
    play = Play(graph_of(range(5)), MANY).until(1)
    honest = ShareKeys.decode(play.up[1][0])
    few = {other: part for other, part in honest.parts.items() if other != 2}
    with pytest.raises(RefusedMessageError, match="client 0 has sent shares to others than its neighbours"):
        play.server.receive(ShareKeys(ROUND, 0, few).encode())


def test_a_sum_takes_each_vector_once() -> None:
    total, words = MaskedSum(ROUND, 4), np.ones(4, np.uint64)
    total.add(MaskedInput(ROUND, 1, words))
    for wrong, message in (
        (MaskedInput(ROUND, 1, words), "client 1 has sent its masked vector already"),
        (MaskedInput(ROUND + 1, 2, words), "a masked vector of round 4 in round 3"),
        (MaskedInput(ROUND, 2, words[:3]), "a masked vector of 3 words, expected 4"),
    ):
        with pytest.raises(RefusedMessageError, match=message):
            total.add(wrong)
    with pytest.raises(RefusedMessageError, match="client 1 has sent its masked vector already"):
        total.merge([0, 1], words)
    total.merge([0, 2], 2 * words)
    assert (total.clients, total.words.tolist()) == ({0, 1, 2}, [3, 3, 3, 3])


def test_the_server_takes_sums_of_clients_that_have_sent_shares_alone() -> None:
    play = Play(graph_of(range(5)), MANY, {1: 1}).until(2)
    with pytest.raises(RefusedMessageError, match="client 1 has sent no shares"):
        play.server.receive_sum([0, 1], np.zeros(4, np.uint64))
    parts = [MaskedInput.decode(play.up[2][client]).words for client in (0, 2)]
    play.server.receive_sum([0, 2], parts[0] + parts[1])
    with pytest.raises(RefusedMessageError, match="client 2 has sent MaskedInput already"):
        play.server.receive(play.up[2][2])
    play.up[2] = {client: play.up[2][client] for client in (3, 4)}
    play.send(2)
    with pytest.raises(RefusedMessageError, match="a sum of masked vectors is out of turn"):
        play.server.receive_sum([3], parts[0])
    play.up[3] = {client: play.make(3, client) for client in (0, 2, 3, 4)}
    play.send(3)
    assert np.array_equal(play.server.sum(), play.expected)


def lengths(messages: Mapping[int, bytes]) -> set[int]:
    return {len(data) for data in messages.values()}


@pytest.mark.parametrize(("clients", "degree", "words"), [(4, None, 10), (9, None, 10), (9, None, 2), (12, 4, 10)])
def test_bytes_grow_as_in_the_papers(clients: int, degree: int | None, words: int) -> None:
    """A client sends and gets O(n) bytes besides its vector, O(k) with k neighbours; the server n times that."""
    play = Play(graph_of(range(clients), degree), vectors_of(range(clients), words))
    play.sum()
    near, held = (clients - 1, clients) if degree is None else (degree, degree)
    assert [lengths(up) for up in play.up] == [
        {9 + 2 * 32},
        {9 + 4 + near * (4 + 2 * 33 + 16)},
        {9 + 8 + 8 * words},
        {9 + 4 + held * (4 + 1 + 33)},
    ]
    assert [lengths(down) for down in play.down[:3]] == [
        {9 + 4 + near * (4 + 2 * 32)},
        {9 + 4 + near * (4 + 2 * 33 + 16)},
        {9 + 4 + 4 * (near + 1)},
    ]
    assert play.down[3] == {} or lengths(play.down[3]) == set()


def test_messages_are_what_was_encoded() -> None:
    play = Play(graph_of([3, 70_000]), vectors_of([3, 70_000], 3))
    play.sum()
    for data in [*(d for up in play.up for d in up.values()), *(d for down in play.down for d in down.values())]:
        message: Message = decode(data)
        assert message.encode() == data
        assert (message.round, message.client in (3, 70_000)) == (ROUND, True)


def test_secrets_follow_from_seed_round_and_client_and_are_not_shown() -> None:
    first = Secrets.of_seed(1, 2, 3)
    assert first == Secrets.of_seed(1, 2, 3)
    others = [Secrets.of_seed(0, 2, 3), Secrets.of_seed(1, 3, 3), Secrets.of_seed(1, 2, 4), Secrets.random()]
    parts = [part for own in (first, *others) for part in (own.channel, own.masking, own.own, own.polynomials)]
    assert len(set(parts)) == 20
    assert {len(part) for part in parts} == {32}
    assert "channel" not in repr(first)
