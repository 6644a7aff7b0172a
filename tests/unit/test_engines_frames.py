# SPDX-License-Identifier: MIT
"""Several engines on one address, frame by frame: what arrives in which queue, and who answers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from engines_net import OURS, PEER, all_to

from machnet.sim import Wire
from machnet.stack.engines import Engines, EngineView, open_engines
from machnet.testing import RawPeer, arp, icmp, tcp, udp

if TYPE_CHECKING:
    from collections.abc import Iterator

SEC = 1_000_000_000


class Lab:
    """Engines on a wire that is fed by hand."""

    def __init__(self, wire: Wire, engines: Engines) -> None:
        self.wire, self.engines = wire, engines
        self.channels = [stack.attach() for stack in engines]
        self.peer = RawPeer(engines[0], ip=PEER)

    def into(self, queue: int) -> RawPeer:
        """The peer, whose frames arrive in that queue from now on."""
        self.wire.spread(all_to(queue))
        return self.peer

    def stats(self, name: str) -> list[int]:
        """A counter of each engine."""
        return [stack.stats()[name] for stack in self.engines]

    def usage(self, name: str) -> list[int]:
        """What a pool of each engine holds."""
        return [stack.usage()[name] for stack in self.engines]


@contextlib.contextmanager
def lab(n: int, **arguments: int) -> Iterator[Lab]:
    wire = Wire(queues=n, rss_hidden=True)
    with open_engines(wire, n, f"{OURS}/24", **arguments) as engines:
        yield Lab(wire, engines)


# --- ARP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 16])
def test_a_question_is_answered_once_and_all_engines_learn(n):
    with lab(n) as net:
        net.peer.send(arp("request", target_ip=OURS))
        replies = net.peer.drain("10ms")
        assert [p.kind for p in replies] == [], "ARP is not shown"
        assert sum(net.stats("arp_replies")) == 1
        assert net.usage("neighbors") == [1] * n
        for i, channel in enumerate(net.channels):
            channel._connect_start(OURS, PEER, 80, "tcp", 1.0, 6000 + i)
            net.peer.expect(tcp("S", sport=6000 + i))
        assert sum(net.stats("arp_requests")) == 0


def test_the_answer_to_one_engines_question_reaches_it_from_any_queue():
    with lab(4) as net:
        net.peer.neighbors[OURS] = net.engines[0].mac
        for i in (3, 1):
            net.channels[i]._connect_start(OURS, PEER, 80, "tcp", 1.0, 6000 + i)
            net.peer.expect(tcp("S", sport=6000 + i))
        assert net.stats("arp_requests") == [0, 1, 0, 1], "each asks for itself"
        assert net.stats("drop_arp_unsolicited") == [2, 0, 0, 0], "counted where it came in"


def test_a_question_for_another_host_stays_where_it_arrives():
    with lab(4) as net:
        net.peer.send(arp("request", target_ip="10.0.0.77"))
        assert sum(net.stats("handoff_sent")) == 0
        assert net.stats("drop_arp_other") == [1, 0, 0, 0]


# --- SYN ------------------------------------------------------------------------------------------


def listen_on_all(net: Lab, port: int = 888) -> list:
    return [channel.listen(OURS, port, "stream") for channel in net.channels]


def test_a_repeated_syn_in_another_queue_opens_no_second_connection():
    with lab(4) as net:
        listeners = listen_on_all(net)
        syn = net.into(2).send(tcp("S", sport=7000, dport=888, seq=100, mss=1460))
        first = net.peer.expect(tcp("SA", ack=101))
        net.into(1).send(syn)
        again = net.peer.expect(tcp("SA", ack=101))
        assert again.seq == first.seq
        assert net.usage("half_open") == [0, 0, 1, 0]
        net.into(3).send(tcp("A", sport=7000, dport=888, seq=101, ack=first.seq + 1))
        assert listeners[2].accept(timeout=0).remote == (PEER, 7000)
        assert sum(net.stats("tcp_resets_sent")) == 0


def test_a_new_syn_finds_the_time_wait_of_another_engine():
    with lab(2) as net:
        listeners = listen_on_all(net)
        peer = net.into(0)
        peer.send(tcp("S", sport=7000, dport=888, seq=100, mss=1460))
        synack = peer.expect(tcp("SA", ack=101))
        peer.send(tcp("A", sport=7000, dport=888, seq=101, ack=synack.seq + 1))
        flow = listeners[0].accept(timeout=0)
        flow.close()
        fin = peer.expect(tcp("FA"))
        peer.send(tcp("FA", sport=7000, dport=888, seq=101, ack=fin.seq + 1))
        peer.expect(tcp("A", ack=102))
        assert net.usage("time_wait") == [1, 0]
        net.into(1).send(tcp("S", sport=7000, dport=888, seq=500_000, mss=1460))
        peer.expect(tcp("SA", ack=500_001))
        assert net.stats("tcp_time_wait_reused") == [1, 0]
        assert net.usage("time_wait") == [0, 0]


@pytest.fixture
def no_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines with different secrets, so that none understands the others' hints."""
    monkeypatch.setattr(EngineView, "shared_secret", lambda view: bytes([view.index] * 16))


@pytest.mark.usefixtures("no_hints")
def test_a_syn_that_was_taken_twice_does_not_hurt_the_peer():
    """As may happen when copies of it arrive in two queues at the same time."""
    with lab(3) as net:
        listeners = listen_on_all(net)
        syn = tcp("S", sport=7000, dport=888, seq=100, mss=1460)
        net.into(0).send(syn)
        first = net.peer.expect(tcp("SA", ack=101))
        net.into(1).send(syn)
        second = net.peer.expect(tcp("SA", ack=101))
        assert net.usage("half_open") == [1, 1, 0]
        assert second.seq != first.seq
        net.peer.send(tcp("A", sport=7000, dport=888, seq=101, ack=first.seq + 1))
        assert listeners[0].accept(timeout=0).remote == (PEER, 7000)
        net.peer.send(tcp("PA", sport=7000, dport=888, seq=101, ack=first.seq + 1, payload=b"data"))
        net.peer.expect(tcp("A", ack=105), skip=True, within="100ms")
        assert sum(net.stats("tcp_resets_sent")) == 0


@pytest.mark.usefixtures("no_hints")
@pytest.mark.parametrize("n", [2, 4, 16])
def test_without_hints_a_segment_finds_its_engine_within_n_hops(n):
    with lab(n) as net:
        listeners = listen_on_all(net)
        for owner in range(n):
            port = 7000 + owner
            peer = net.into(owner)
            peer.send(tcp("S", sport=port, dport=888, seq=100, mss=1460))
            synack = peer.expect(tcp("SA", ack=101))
            peer.send(tcp("A", sport=port, dport=888, seq=101, ack=synack.seq + 1))
            flow = listeners[owner].accept(timeout=0)
            for queue in range(n):
                before = sum(net.stats("handoff_sent"))
                net.into(queue).send(
                    tcp(
                        "PA",
                        sport=port,
                        dport=888,
                        seq=101 + queue,
                        ack=synack.seq + 1,
                        payload=b"x",
                    )
                )
                assert flow.read(timeout=0) == b"x"
                hops = sum(net.stats("handoff_sent")) - before
                assert (hops == 0) == (queue == owner)
                assert hops <= n - 1
        assert sum(net.stats("tcp_resets_sent")) == 0


def test_data_for_nobody_is_refused_by_one_reset():
    with lab(4) as net:
        for queue in range(4):
            net.into(queue).send(tcp("PA", sport=7000, dport=5, seq=1, ack=77, payload=b"x"))
            net.peer.expect(tcp("R", seq=77))
            assert net.peer.recv("10ms") is None
        assert sum(net.stats("tcp_resets_sent")) == 4
        assert sum(net.stats("drop_tcp_port")) == 4
        # Each was seen by all, as was each answer to a question for the peer's address.
        assert sum(net.stats("handoff_sent")) == 4 * 3 + 3 * sum(net.stats("arp_requests"))


def test_a_reset_for_nobody_is_answered_by_nobody():
    with lab(4) as net:
        net.peer.send(tcp("R", sport=7000, dport=5, seq=1))
        assert net.peer.recv("10ms") is None
        assert sum(net.stats("tcp_resets_sent")) == 0


# --- other protocols ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4])
def test_an_icmp_error_reaches_the_engine_of_the_connection(n):
    with lab(n) as net:
        for owner in range(n):
            for queue in range(n):
                port = 6000 + 100 * owner + queue
                net.channels[owner]._connect_start(OURS, PEER, 80, "tcp", 9.0, port)
                syn = net.peer.expect(tcp("S", sport=port), skip=True)
                net.into(queue).send(icmp("unreachable", 3, quoted=syn))
        assert net.stats("icmp_errors") == [n] * n
        assert sum(net.stats("drop_icmp_quote")) == 0
        assert sum(net.usage("tcbs")) == 0, "refused"


def test_an_icmp_error_about_nothing_is_counted_once():
    with lab(4) as net:
        net.channels[1]._connect_start(OURS, PEER, 80, "tcp", 9.0, 6000)
        syn = net.peer.expect(tcp("S", sport=6000))
        net.peer.send(icmp("unreachable", 3, quoted=syn.with_(sport=6001)))
        assert sum(net.stats("drop_icmp_quote")) == 1
        assert sum(net.stats("icmp_errors")) == 0


def test_echo_is_answered_once_in_each_queue():
    with lab(4) as net:
        for queue in range(4):
            net.into(queue).send(icmp("echo-request", id=queue, seq=1, payload=b"ping"))
            net.peer.expect(icmp("echo-reply", id=queue, payload=b"ping"))
            assert net.peer.recv("10ms") is None
        assert net.stats("icmp_echo_replies") == [1] * 4


def test_a_datagram_for_nobody_is_refused_once():
    with lab(4) as net:
        net.peer.send(udp(b"anybody?", sport=7000, dport=9))
        net.peer.expect(icmp("unreachable", 3))
        assert net.peer.recv("10ms") is None
        assert sum(net.stats("icmp_unreach_sent")) == 1


# --- rings that are full --------------------------------------------------------------------------


def test_a_full_ring_loses_frames_counts_them_and_works_again():
    """The engines are polled one by one, so that one of them does not take what it is given."""
    with lab(2, ring_bytes=256 << 10) as net:
        listener = net.channels[1].listen(OURS, 888, "stream")
        net.peer.neighbors[OURS] = net.engines[0].mac
        first, second = net.engines
        net.into(0)
        data = tcp("PA", sport=7000, dport=888, seq=1, ack=1, payload=bytes(1400))
        frame = bytes(net.peer.make(data))
        for _ in range(400):
            net.wire.inject(frame)
            first.poll()
        view = net.engines.shared.views[0]
        lost = first.stats()["drop_handoff_full"]
        assert lost > 0
        assert first.stats()["handoff_sent"] == 400 - lost
        assert view.stats()["handed_full"] == lost
        assert (400 - lost) * len(frame) <= 256 << 10
        while second.poll():
            pass
        assert second.stats()["handoff_received"] == 400 - lost
        net.peer.drain("1ms")
        net.peer.send(tcp("S", sport=7001, dport=888, seq=100, mss=1460))
        synack = net.peer.expect(tcp("SA", ack=101), skip=True)
        net.peer.send(tcp("A", sport=7001, dport=888, seq=101, ack=synack.seq + 1))
        assert listener.accept(timeout=0).remote == (PEER, 7001)
        assert first.stats()["drop_handoff_full"] == lost


def test_arp_for_all_leaves_half_of_a_ring_to_segments():
    with lab(2, ring_bytes=256 << 10) as net:
        net.peer.neighbors[OURS] = net.engines[0].mac
        first = net.engines[0]
        question = bytes(net.peer.make(arp("request", target_ip=OURS)))
        for _ in range(4000):
            net.wire.inject(question)
            first.poll()
            net.wire.drain()
        arps = first.stats()["handoff_sent"]
        assert first.stats()["drop_handoff_full"] == 4000 - arps > 0
        segment = bytes(
            net.peer.make(tcp("PA", sport=7000, dport=5, seq=1, ack=1, payload=bytes(1000)))
        )
        for _ in range(100):
            net.wire.inject(segment)
            first.poll()
        assert first.stats()["handoff_sent"] == arps + 100
