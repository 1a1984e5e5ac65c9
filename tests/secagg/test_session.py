"""A simulated round: what workers know without messages is what the messages say."""

import numpy as np

from flrl.errors import SecureAggregationError
from flrl.secagg import STAGES, Client, MaskedSum, Session
from flrl.secagg.messages import KeyList, ShareList
from flrl.secagg.server import Server

DROPOUTS = dict.fromkeys(STAGES, 0.08)


def test_predicted_bytes_are_those_of_the_messages_whoever_drops_out() -> None:
    """And client 2 cannot send its vector, without having dropped out."""
    lost: set[str] = set()
    for seed in range(25):
        session = Session(seed, 4, range(7), 6, neighbours=[None, 4][seed % 2], dropouts=DROPOUTS)
        masked = MaskedSum(4, 6)
        for client in sorted(session.heard["masked_input"] - {2}):
            masked.add(session.masking(client).input(np.full(6, client, np.uint64)))
        try:
            words, traffic = session.unmask(masked)
        except SecureAggregationError:
            continue
        assert words.tolist() == [sum(masked.clients)] * 6
        for client in range(7):
            sent = {stage: traffic.up[stage][client] for stage in STAGES if client in traffic.up[stage]}
            assert session.up_bytes(client, sends=client != 2) == sent
        lost |= set(session.lost.values())
    assert lost == set(STAGES)


def test_a_worker_masks_as_the_client_does_that_was_sent_messages() -> None:
    session = Session(2, 4, range(6), 5, neighbours=4, dropouts={"advertise_keys": 0.1, "share_keys": 0.1})
    assert sorted(session.lost.values()) == ["advertise_keys"]
    server = Server(round=4, graph=session.graph, size=5)
    ends = {c: Client(c, round=4, graph=session.graph, secrets=session.secrets(c)) for c in session.clients}
    for client in session.heard["advertise_keys"]:
        server.receive(ends[client].advertise_keys().encode())
    for client, keys in server.next().items():
        assert isinstance(keys, KeyList)
        server.receive(ends[client].share_keys(keys).encode())
    for client, shares in server.next().items():
        assert isinstance(shares, ShareList)
        assert ends[client].masking(shares) == session.masking(client)
