# SPDX-License-Identifier: MIT
"""Several engines on a NIC with one queue, and what concerns any NIC: loopback, arguments, the end."""

from __future__ import annotations

import pytest
from engines_net import OURS, PEER, echo, net, received

import machnet
from machnet.sim import Wire
from machnet.stack.engines import SharedNic, open_engines
from machnet.stack.nics import Rss

MS = 1_000_000
PROTOCOLS = ["tcp", "udp"]


# --- the software dispatcher ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 4, 16])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_engines_share_a_nic_with_one_queue(n, protocol):
    with net(n, queues=1) as lab:
        assert lab.engines.shared.dispatched
        lab.peer_channel.listen(PEER, 80, protocol)
        for channel in lab.channels:
            channel.listen(OURS, 888, protocol)
            for _ in range(3):
                echo(
                    channel,
                    channel.connect(OURS, PEER, 80, protocol),
                    lab.peer_channel,
                    bytes(9000),
                )
        for _ in range(4 * n):
            lab.peer_channel.send(lab.peer_channel.connect(PEER, OURS, 888, protocol), b"hello")
        lab.peer.advance(MS)
        got = [received(channel) for channel in lab.channels]
        assert sum(map(len, got)) == 4 * n
        assert sum(map(bool, got)) > n // 2, "spread over the engines"
        assert lab.total("tcp_resets_sent") == 0
        copies = n * (n - 1)  # of answers to ARP questions
        assert lab.total("handoff_sent") <= copies + n - 1, "segments went where they belong"
        first = lab.engines.shared.views[0].stats()
        assert first["dispatched"] > 0
        assert first["relayed"] > 0
        assert first["dispatch_dropped"] == 0


def test_a_dispatcher_can_be_told_how_to_spread():
    wire, other = Wire.pair()
    with (
        machnet.Stack(other, f"{PEER}/24") as peer,
        open_engines(wire, 3, f"{OURS}/24", rss=Rss([2])) as engines,
    ):
        channels = [stack.attach() for stack in engines]
        for channel in channels:
            channel.listen(OURS, 888, "tcp")
        app = peer.attach()
        for _ in range(5):
            echo(app, app.connect(PEER, OURS, 888, "tcp"), channels[2])


def test_a_dispatcher_whose_nic_is_full_loses_nothing_and_goes_on():
    wire = {"queue_frames": 8}
    with net(2, queues=1, wire=wire) as lab:
        lab.peer_channel.listen(PEER, 80, "tcp")
        for channel in lab.channels:
            flow = channel.connect(OURS, PEER, 80, "tcp")
            channel.send(flow, bytes(500_000))
            assert lab.peer_channel.recv(timeout=60).data == bytes(500_000)


def test_large_segments_pass_a_dispatcher_and_rings():
    wire = {"segmentation": True}
    with net(2, queues=1, wire=wire) as lab:
        lab.peer_channel.listen(PEER, 80, "tcp")
        for channel in lab.channels:
            flow = channel.connect(OURS, PEER, 80, "tcp")
            echo(channel, flow, lab.peer_channel, bytes(range(256)) * 2000)


def test_large_segments_are_handed_over_with_their_marks():
    wire = {"segmentation": True}
    with net(3, rss_hidden=True, wire=wire) as lab:
        lab.peer_channel.listen(PEER, 80, "tcp")
        data = bytes(range(256)) * 2000
        for channel in lab.channels:
            flow = channel.connect(OURS, PEER, 80, "tcp")
            echo(channel, flow, lab.peer_channel)
            message = lab.peer_channel.flows()
            assert message
            for peer_flow in message:
                lab.peer_channel.send(peer_flow, data)
            assert channel.recv(timeout=5).data == data
            for other in lab.channels:
                received(other)
        assert lab.total("drop_tcp_csum") == 0
        assert lab.total("handoff_received") > 0


# --- loopback -------------------------------------------------------------------------------------


@pytest.mark.parametrize("queues", [1, 4])
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_applications_on_different_engines_reach_each_other(queues, hidden, protocol):
    with net(4, queues=queues, rss_hidden=hidden) as lab:
        for i, server in enumerate(lab.channels):
            server.listen(OURS, 800 + i, protocol)
            for client in lab.channels:
                flow = client.connect(OURS, OURS, 800 + i, protocol)
                if client is server:
                    continue
                echo(client, flow, server, bytes(30_000))
        assert lab.total("tcp_resets_sent") == 0
        assert lab.total("drop_ip_src") == 0
        assert lab.total("drop_loop_full") == 0


def test_applications_on_different_engines_with_a_listener_on_all():
    with net(4) as lab:
        for channel in lab.channels:
            channel.listen(OURS, 800, "stream")
        flows = [channel.connect(OURS, OURS, 800, "stream") for channel in lab.channels]
        assert all(flow.live for flow in flows)
        for flow in flows:
            flow.send(b"x")
        lab.peer.advance(MS)
        assert lab.total("tcp_established") == 8


def test_a_port_of_the_own_address_that_nobody_has_is_refused():
    with net(4) as lab:
        for channel in lab.channels:
            with pytest.raises(ConnectionRefusedError):
                channel.connect(OURS, OURS, 801, "tcp")
        assert lab.total("tcp_resets_sent") == 4


def test_own_addresses_from_outside_are_still_refused():
    from machnet.testing import RawPeer, tcp

    wire = Wire(queues=2)
    with open_engines(wire, 2, f"{OURS}/24") as engines:
        engines[1].attach().listen(OURS, 800, "tcp")
        peer = RawPeer(engines[0], ip=PEER)
        peer.send(tcp("S", src=OURS, sport=5, dport=800, seq=1))
        assert peer.recv("10ms") is None
        assert sum(stack.stats()["drop_ip_src"] for stack in engines) == 1
        assert sum(stack.stats()["handoff_sent"] for stack in engines) == 0


# --- arguments and the end ------------------------------------------------------------------------


def test_one_engine_is_an_ordinary_stack():
    with open_engines(Wire(), 1, f"{OURS}/24") as engines:
        assert len(engines) == 1
        assert engines.shared is None
        assert engines[0].nic.name == "wire"


@pytest.mark.parametrize("n", [0, 17, -1])
def test_the_number_of_engines_has_bounds(n):
    with pytest.raises(ValueError, match=f"engines: {n} is not within 1 to 16"):
        open_engines(Wire(), n, f"{OURS}/24")


def test_a_nic_has_one_queue_or_one_for_each_engine():
    wire = Wire(queues=3)
    with pytest.raises(ValueError, match="wire has 3 queues: 4 engines need 1 or 4"):
        open_engines(wire, 4, f"{OURS}/24")
    wire.close()


@pytest.mark.parametrize("ring_bytes", [1, 1 << 17, (1 << 20) + 1, 1 << 27])
def test_a_ring_has_bounds(ring_bytes):
    with pytest.raises(ValueError, match=f"ring_bytes: {ring_bytes} is no power of two from"):
        open_engines(Wire(), 2, f"{OURS}/24", ring_bytes=ring_bytes)


def test_a_table_must_not_name_engines_that_are_not_there():
    with pytest.raises(ValueError, match="names more than 2 engines"):
        open_engines(Wire(), 2, f"{OURS}/24", rss=Rss([0, 2]))


@pytest.mark.parametrize("name", ["cpu", "pcap"])
def test_what_belongs_to_one_engine_is_refused_for_several(name):
    with pytest.raises(TypeError, match=f"open_engines has no '{name}'"):
        open_engines(Wire(), 2, f"{OURS}/24", **{name: 0})


def test_a_wrong_argument_leaves_the_nic_free():
    wire = Wire(queues=2)
    with pytest.raises(TypeError, match="no setting"):
        open_engines(wire, 2, f"{OURS}/24", no_such_setting=1)
    with open_engines(wire, 2, f"{OURS}/24") as engines:
        assert [stack.ip for stack in engines] == [OURS] * 2
    wire.close()


def test_engines_that_share_a_wire_can_only_be_stepped():
    with pytest.raises(ValueError, match="engines that share a wire can only be stepped"):
        open_engines(Wire(queues=2), 2, f"{OURS}/24", thread=True)


def test_a_nic_in_use_can_not_be_shared_or_closed():
    wire = Wire(queues=2)
    with open_engines(wire, 2, f"{OURS}/24"):
        with pytest.raises(ValueError, match="in use"):
            SharedNic(wire, 2)
        with pytest.raises(ValueError, match="in use"):
            machnet.Stack(wire, OURS)
        with pytest.raises(RuntimeError, match="in use"):
            wire.close()
    wire.close()


def test_stacks_may_be_closed_one_by_one():
    wire = Wire(queues=3)
    engines = open_engines(wire, 3, f"{OURS}/24")
    for stack in (engines[1], engines[0], engines[2]):
        assert wire.user() is not None
        stack.close()
    assert wire.user() is None
    engines.close()
    wire.close()


@pytest.mark.parametrize("queues", [1, 3])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_sent_arrives_although_all_engines_are_closed(queues, protocol):
    with net(3, queues=queues) as lab:
        lab.peer_channel.listen(PEER, 80, protocol)
        for channel in lab.channels:
            channel.send(channel.connect(OURS, PEER, 80, protocol), b"last words")
        lab.engines.close()
        assert [m.data for m in received(lab.peer_channel)] == [b"last words"] * 3


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_two_runs_of_one_seed_are_the_same(hidden, protocol):
    def run() -> list[object]:
        with net(4, rss_hidden=hidden, seed=5) as lab:
            lab.peer_channel.listen(PEER, 80, protocol)
            for channel in lab.channels:
                flow = channel.connect(OURS, PEER, 80, protocol)
                echo(channel, flow, lab.peer_channel, bytes(5000))
            return [
                [(s.local, s.snd_nxt, s.rcv_nxt) for s in stack.sockets()]
                + [stack.stats(), stack.now_ns]
                for stack in lab.engines
            ]

    assert run() == run()


def test_the_engines_have_one_secret_and_different_luck():
    with net(3, rss_hidden=True) as lab:
        lab.peer_channel.listen(PEER, 80, "tcp")
        ports = set()
        for channel in lab.channels:
            channel.connect(OURS, PEER, 80, "tcp")
        ports = {s.local[1] for stack in lab.engines for s in stack.sockets()}
        assert len(ports) == 3
        assert max(ports) - min(ports) > 8, "they don't take their ports side by side"
