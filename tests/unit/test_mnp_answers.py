# SPDX-License-Identifier: MIT
"""Acknowledgements that wait for an answer to carry them: only where answers are known to come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from mnp_peer import ACK, DATA, FIN, NO_ACK, Peer, close_all, rest

from machnet.sim import Network

US = 1_000
ANSWERS = 4  # ACKs that an answer followed before the next one waits
DELAY_US = 50


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def answer(peer: Peer, after_us: int = 0) -> None:
    message = peer.channel.recv(timeout=0)
    if after_us:
        peer.stack.advance(after_us * US)
    peer.channel.send(message.flow, b"answer")


def acknowledge(peer: Peer) -> None:
    (data,) = [p for p in peer.got() if p.kind == DATA]
    peer.ack_to(data.seq + 1)


def answering(extended: bool = True, after_us: int = 0, **settings: Any) -> Peer:
    """A flow whose application has answered `ANSWERS` times."""
    peer = Peer.make(**settings)
    peer.accept(extended=extended)
    for i in range(ANSWERS):
        peer.data(b"ask")
        assert peer.one(ACK).ack == peer.seq, i
        answer(peer, after_us)
        acknowledge(peer)
    return peer


def test_the_answer_carries_the_acknowledgement() -> None:
    peer = answering()
    for _ in range(10):
        peer.data(b"ask")
        assert peer.got() == []
        peer.stack.advance((DELAY_US - 1) * US)
        assert peer.got() == []
        answer(peer)
        sent = peer.one(DATA)
        assert sent.ack == peer.seq
        peer.ack_to(sent.seq + 1)
    peer.stack.advance(1000 * US)
    assert peer.got() == []
    assert peer.stack.stats()["mnp_acks_delayed"] == 0


def test_it_waits_no_longer_than_the_setting() -> None:
    peer = answering(mnp_delack_us=200)
    peer.data(b"ask", 5)
    peer.data(b"ask", 5)
    peer.stack.advance(190 * US)
    assert peer.got() == []
    peer.stack.advance(20 * US)
    assert peer.one(ACK).ack == peer.seq
    assert peer.stack.stats()["mnp_acks_delayed"] == 1


def test_a_wait_in_vain_ends_it() -> None:
    peer = answering()
    peer.data(b"ask")
    peer.stack.advance(2 * DELAY_US * US)
    assert peer.one(ACK).ack == peer.seq
    for _ in range(5):
        peer.data(b"more")
        assert peer.one(ACK).ack == peer.seq


def test_the_echo_is_the_first_packets_clock() -> None:
    peer = answering()
    for ts in (700, 800):
        peer.put(DATA, flags=5, payload=b"x", rest=rest(word12=1, ts=ts))
        peer.seq += 1
    answer(peer)
    assert peer.one(DATA).ts[1] == 700


def test_sixteen_packets_do_not_wait() -> None:
    peer = answering()
    for _ in range(15):
        peer.data(b"ask")
    assert peer.got() == []
    peer.data(b"ask")
    assert peer.one(ACK).ack == peer.seq


@pytest.mark.parametrize("what", ["gap", "old", "fin"])
def test_what_is_not_plain_progress_is_answered_at_once(what: str) -> None:
    peer = answering()
    peer.data(b"ask")
    assert peer.got() == []
    if what == "gap":
        peer.data(b"ahead", ahead=1)
        assert peer.one(ACK).held == {peer.seq + 1}
        peer.data(b"fills")
        peer.seq += 1
    elif what == "old":
        peer.put(DATA, peer.seq - 1, flags=5, payload=b"ask", rest=rest(word12=3))
    else:
        peer.put(FIN, rest=rest())
        peer.seq += 1
    assert peer.one(ACK).ack == peer.seq


def test_slow_answers_are_not_waited_for() -> None:
    peer = answering(after_us=DELAY_US + 10)
    peer.data(b"ask")
    assert peer.one(ACK).ack == peer.seq


def test_the_setting_turns_it_off() -> None:
    peer = answering(mnp_delack_us=0)
    peer.data(b"ask")
    assert peer.one(ACK).ack == peer.seq


def test_plain_mode_acknowledges_each_packet() -> None:
    peer = Peer.make()
    peer.accept(extended=False)
    for _ in range(3 * ANSWERS):
        peer.data(b"ask")
        assert peer.one(ACK).ack == peer.seq
        answer(peer)
        sent = peer.one(DATA)
        assert sent.ack == NO_ACK
        peer.ack_to(sent.seq + 1)


def test_requests_and_answers_are_a_packet_each() -> None:
    with Network(seed=1) as net:
        a, b = net.host("10.0.0.1"), net.host("10.0.0.2")
        net.link(a, b, latency="10us")
        client, server = a.attach(), b.attach()
        server.listen("10.0.0.2", 888)
        flow = client.connect("10.0.0.1", "10.0.0.2", 888)
        for i in range(200):
            client.send(flow, b"%d" % i)
            message = server.recv(timeout=1.0)
            server.send(message.flow, message.data)
            assert client.recv(timeout=1.0).data == b"%d" % i
        for host in (a, b):
            stats = host.stack.stats()
            assert stats["tx_frames"] <= 200 + 2 * ANSWERS + 5, stats
            assert stats["mnp_retransmits"] == 0
