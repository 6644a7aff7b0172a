# SPDX-License-Identifier: MIT
"""Several engines on one address, in virtual time, on a wire with several queues."""

from __future__ import annotations

import pytest
from engines_net import OURS, PEER, all_to, echo, net, received

from machnet.stack.nics import Rss

MS = 1_000_000
PROTOCOLS = ["tcp", "udp"]


def spreads(n: int) -> list[Rss]:
    """Tables of different kinds for n queues: fair, and one that starves all but the first."""
    return [Rss([i % n for i in range(128)]), Rss([0] * 127 + [n - 1])]


# --- connects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_a_known_hash_answers_come_to_the_engine_that_asked(n, protocol):
    with net(n) as lab:
        lab.peer_channel.listen(PEER, 80, protocol)
        for channel in lab.channels:
            for _ in range(3):
                echo(channel, channel.connect(OURS, PEER, 80, protocol), lab.peer_channel)
        copies = n * (n - 1)  # of the answer to each engine's ARP question
        assert lab.total("handoff_sent") == lab.total("handoff_received") == copies
        assert lab.connections() == [3] * n


@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_an_unknown_hash_answers_are_handed_to_the_engine_that_asked(n, protocol):
    with net(n, rss_hidden=True) as lab:
        lab.peer_channel.listen(PEER, 80, protocol)
        for channel in lab.channels:
            for _ in range(3):
                echo(channel, channel.connect(OURS, PEER, 80, protocol), lab.peer_channel)
        assert lab.connections() == [3] * n
        assert lab.total("handoff_sent") == lab.total("handoff_received") > 0
        assert lab.total("tcp_resets_sent") == 0
        for i, stack in enumerate(lab.engines):
            ports = {s.local[1] for s in stack.sockets()}
            assert {port % n for port in ports} == {i}, "whose a port is, follows from its number"


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("rss", spreads(4), ids=["fair", "skewed"])
def test_no_two_engines_take_the_same_port(rss, hidden):
    with net(4, rss=rss, rss_hidden=hidden) as lab:
        lab.peer_channel.listen(PEER, 80, "stream")
        for _ in range(20):
            for channel in lab.channels:
                channel.connect(OURS, PEER, 80, "stream")
        ports = [s.local[1] for stack in lab.engines for s in stack.sockets()]
        assert len(ports) == len(set(ports)) == 80


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_table_that_starves_engines_is_no_reason_not_to_connect(protocol):
    with net(4, rss=all_to(2)) as lab:
        lab.peer_channel.listen(PEER, 80, protocol)
        for channel in lab.channels:
            echo(channel, channel.connect(OURS, PEER, 80, protocol), lab.peer_channel)
        assert lab.total("tcp_resets_sent") == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_explicit_local_port_works_from_any_engine(protocol):
    with net(4) as lab:
        lab.peer_channel.listen(PEER, 80, protocol)
        for i, channel in enumerate(lab.channels):
            flow = channel.connect(OURS, PEER, 80, protocol, local_port=5000 + i)
            echo(channel, flow, lab.peer_channel)
            assert lab.where(5000 + i) == [i]
        assert lab.total("tcp_resets_sent") == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_refusal_reaches_the_engine_that_asked(protocol):
    with net(4, rss_hidden=True) as lab:
        for channel in lab.channels:
            with pytest.raises(ConnectionRefusedError):
                channel.connect(OURS, PEER, 81, protocol)


# --- listeners ------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_listener_on_all_engines_takes_connections_where_they_arrive(n, hidden, protocol):
    with net(n, rss_hidden=hidden) as lab:
        for channel in lab.channels:
            channel.listen(OURS, 888, protocol)
        flows = [lab.peer_channel.connect(PEER, OURS, 888, protocol) for _ in range(24)]
        for flow in flows:
            lab.peer_channel.send(flow, b"to whoever")
        lab.peer.advance(10 * MS)
        got = []
        for channel in lab.channels:
            mine = received(channel)
            got.append(len(mine))
            for message in mine:
                channel.send(message.flow, b"answer")
        assert sum(got) == 24
        assert all(got), "each engine has some"
        for _ in flows:
            assert lab.peer_channel.recv(timeout=1).data == b"answer"
        assert lab.total("handoff_sent") == n - 1, "no segment left its queue"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_listener_on_one_engine_is_reached_from_any_queue(protocol):
    with net(4) as lab:
        lab.channels[3].listen(OURS, 888, protocol)
        for _ in range(12):
            flow = lab.peer_channel.connect(PEER, OURS, 888, protocol)
            echo(lab.peer_channel, flow, lab.channels[3])
        assert lab.total("tcp_resets_sent") == 0
        assert lab.connections() == [0, 0, 0, 12]


def test_a_port_that_nobody_listens_on_is_refused_once():
    with net(4) as lab:
        for _ in range(8):
            with pytest.raises(ConnectionRefusedError):
                lab.peer_channel.connect(PEER, OURS, 889, "tcp")
        assert lab.total("tcp_resets_sent") == 8
        assert lab.total("drop_tcp_port") == 8
        assert lab.total("handoff_sent") == 8 * 3 + 3, (
            "each SYN was seen by all, and one ARP question"
        )


# --- flows that move ------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_connection_survives_that_its_queue_changes(n, protocol):
    with net(n) as lab:
        lab.peer_channel.listen(PEER, 80, protocol)
        for channel in lab.channels:
            channel.listen(OURS, 888, protocol)
        flows = [channel.connect(OURS, PEER, 80, protocol) for channel in lab.channels]
        backs = [lab.peer_channel.connect(PEER, OURS, 888, protocol) for _ in range(n)]
        for back in backs:
            lab.peer_channel.send(back, b"hello")
        lab.peer.advance(MS)
        accepted = {}
        for channel in lab.channels:
            accepted.update({message.flow: channel for message in received(channel)})
        assert len(accepted) == n
        for queue in range(n):
            lab.wire.spread(all_to(queue))
            for channel, flow in zip(lab.channels, flows, strict=True):
                echo(channel, flow, lab.peer_channel, bytes(20_000))
            for flow, channel in accepted.items():
                channel.send(flow, b"still here")
            for _ in backs:
                assert lab.peer_channel.recv(timeout=1).data == b"still here"
        assert lab.total("tcp_resets_sent") == 0
        assert lab.total("tcp_resets_received") == 0
        hops = lab.total("handoff_sent")
        assert hops == lab.total("handoff_received")


def test_the_hint_takes_a_moved_segment_straight_to_its_engine():
    with net(16) as lab:
        listener = lab.peer_channel.listen(PEER, 80, "stream")
        flow = lab.channels[9].connect(OURS, PEER, 80, "stream")
        peer_flow = listener.accept(timeout=1)
        lab.wire.spread(all_to(3))
        before = lab.total("handoff_sent")
        for _ in range(10):
            lab.peer_channel.send(peer_flow, b"x")
            assert flow.read(timeout=1) == b"x"
        assert lab.total("handoff_sent") - before == 10
        assert lab.engines[3].stats()["handoff_sent"] >= 10
