# SPDX-License-Identifier: MIT
"""Messages over UDP between two engines: sizes, order, ends, settings, both modes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

import machnet
from machnet.errors import FlowClosedError, FlowResetError, FlowTimeoutError
from machnet.sim import Network

SIZES = [1, 2, 1417, 1418, 1419, 2048, 2049, 2836, 20_000, 65_536, 65_537, 300_000]


#: Networks whose test is still to close them.
OPEN: list[Network] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


class Pair:
    """Two hosts, a channel on each, and a connection between them."""

    def __init__(self, mtu: int = 1500, extended: bool = True, **settings: Any) -> None:
        self.net = Network(seed=11)
        OPEN.append(self.net)
        self.a = self.net.host("10.0.0.1", mtu=mtu, mnp_extended=extended, **settings)
        self.b = self.net.host("10.0.0.2", mtu=mtu, **settings)
        self.link = self.net.link(self.a, self.b, latency="50us", bandwidth="10Gbps")
        self.client, self.server = self.a.attach(), self.b.attach()
        self.server.listen("10.0.0.2", 888)
        self.flow = self.client.connect("10.0.0.1", "10.0.0.2", 888)

    def ask(self, data: bytes) -> machnet.Message:
        self.client.send(self.flow, data, timeout=5.0)
        return self.server.recv(timeout=5.0)

    def close(self) -> None:
        self.net.close()


@pytest.fixture(params=["extended", "plain"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(extended=request.param == "extended")
    yield made
    made.close()


@pytest.fixture
def extended() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def test_udp_is_the_default(pair: Pair) -> None:
    assert pair.flow.protocol == "udp"
    (info,) = pair.a.sockets()
    assert (info.protocol, info.state, info.mss) == ("udp", "ESTABLISHED", 1418)


def test_messages_of_any_size_both_ways(pair: Pair) -> None:
    rng = random.Random(5)
    for size in SIZES:
        data = rng.randbytes(size)
        message = pair.ask(data)
        assert message.data == data, size
        pair.server.send(message.flow, data[::-1])
        assert pair.client.recv(timeout=5.0).data == data[::-1], size


@pytest.mark.parametrize("extended_mode", [True, False])
def test_the_largest_message(extended_mode: bool) -> None:
    pair = Pair(extended=extended_mode)
    data = random.Random(6).randbytes(8 << 20)
    assert pair.ask(data).data == data
    with pytest.raises(OSError, match="8 MiB"):
        pair.client.send(pair.flow, data + b"x")
    pair.close()


def test_many_messages_keep_their_order(pair: Pair) -> None:
    rng = random.Random(7)
    sent = [rng.randbytes(rng.choice([1, 64, 1418, 3000])) for _ in range(400)]
    for data in sent:
        pair.client.send(pair.flow, data, timeout=1.0)
    assert [pair.server.recv(timeout=1.0).data for _ in sent] == sent


def test_there_are_no_empty_messages(pair: Pair) -> None:
    for empty in (b"", bytearray()):
        with pytest.raises(ValueError, match="1 byte to 8 MiB"):
            pair.client.send(pair.flow, empty)
    assert pair.ask(b"x").data == b"x"


def test_an_mtu_of_9000_means_larger_packets() -> None:
    pair = Pair(mtu=9000)
    assert pair.a.sockets()[0].mss == 8900
    data = random.Random(8).randbytes(100_000)
    assert pair.ask(data).data == data
    pair.close()


def test_a_small_mtu_is_too_small() -> None:
    net = Network(seed=1)
    host = net.host("10.0.0.1", mtu=593)
    channel = host.attach()
    for call in (
        lambda: channel.listen("10.0.0.1", 888),
        lambda: channel.connect("10.0.0.1", "10.0.0.2", 888),
    ):
        with pytest.raises(OSError, match="Message too long"):
            call()
    channel.listen("10.0.0.1", 888, protocol="tcp")
    net.close()


def test_closing_is_clean_and_leaves_nothing(pair: Pair) -> None:
    message = pair.ask(b"question")
    pair.server.send(message.flow, b"answer")
    assert pair.client.recv(timeout=1.0).data == b"answer"
    pair.flow.close()
    with pytest.raises(TimeoutError):
        pair.client.recv(timeout=0.5)
    if pair.a.sockets() and pair.a.sockets()[0].state == "TIME-WAIT":
        with pytest.raises(TimeoutError):
            pair.server.recv(timeout=3.0)
        with pytest.raises(FlowClosedError):
            pair.server.send(message.flow, b"too late")
    else:
        with pytest.raises(FlowResetError):
            pair.server.recv(timeout=3.0)
    for host in (pair.a, pair.b):
        assert [s.state for s in host.sockets()] in ([], ["LISTEN"])
        assert host.stack.usage()["mnp_flows"] == 0


def test_what_was_sent_before_a_close_arrives(pair: Pair) -> None:
    data = random.Random(9).randbytes(200_000)
    for _ in range(3):
        pair.client.send(pair.flow, data, timeout=1.0)
    pair.flow.close()
    assert [pair.server.recv(timeout=1.0).data for _ in range(3)] == [data] * 3


def test_answers_after_the_peer_has_closed(extended: Pair) -> None:
    extended.client.send(extended.flow, b"one")
    extended.client.send(extended.flow, b"two")
    first = extended.server.recv(timeout=1.0)
    assert extended.server.recv(timeout=1.0).data == b"two"
    extended.server.send(first.flow, b"answer")
    assert extended.client.recv(timeout=1.0).data == b"answer"


def test_linger_0_resets(pair: Pair) -> None:
    assert pair.ask(b"x").data == b"x"
    pair.flow.close(linger=0)
    with pytest.raises(FlowResetError):
        pair.server.recv(timeout=1.0)


def test_a_channel_that_closes_takes_its_flows_along(pair: Pair) -> None:
    flow = pair.ask(b"x").flow
    pair.client.send(pair.flow, b"last words")
    pair.client.close()
    assert pair.server.recv(timeout=1.0).data == b"last words"
    with pytest.raises((TimeoutError, FlowResetError)):
        pair.server.recv(timeout=8.0)
    with pytest.raises((FlowClosedError, FlowResetError)):
        pair.server.send(flow, b"anybody?")


def test_nobody_listens(extended: Pair) -> None:
    start = extended.net.now_ns
    with pytest.raises(ConnectionRefusedError):
        extended.client.connect("10.0.0.1", "10.0.0.2", 889, timeout=5.0)
    assert extended.net.now_ns - start < 1_000_000


def test_a_plain_host_is_not_told_that_nobody_listens() -> None:
    pair = Pair(extended=False)
    pair.ask(b"x")
    assert pair.b.stack.stats()["mnp_plain"] == 1
    with pytest.raises(TimeoutError):
        pair.client.connect("10.0.0.1", "10.0.0.2", 889, timeout=0.5)
    assert pair.b.stack.stats()["icmp_unreach_sent"] == 0
    pair.close()


def test_a_dead_peer_is_reported() -> None:
    pair = Pair(mnp_user_timeout_ms=500)
    pair.ask(b"x")
    pair.b.crash()
    pair.client.send(pair.flow, b"y")
    start = pair.net.now_ns
    with pytest.raises(FlowTimeoutError):
        pair.client.recv(timeout=10.0)
    assert 0.4e9 < pair.net.now_ns - start < 2.5e9
    pair.close()


def test_two_applications_of_one_engine() -> None:
    net = Network(seed=2)
    host = net.host("10.0.0.1")
    one, other = host.attach(), host.attach()
    one.listen("10.0.0.1", 888)
    flow = other.connect("10.0.0.1", "10.0.0.1", 888)
    data = random.Random(1).randbytes(1 << 20)
    other.send(flow, data)
    message = one.recv(timeout=1.0)
    assert message.data == data
    one.send(message.flow, b"thanks")
    assert other.recv(timeout=1.0).data == b"thanks"
    net.close()


def test_tcp_and_udp_share_a_port(pair: Pair) -> None:
    pair.server.listen("10.0.0.2", 888, protocol="tcp")
    tcp = pair.client.connect("10.0.0.1", "10.0.0.2", 888, protocol="tcp")
    pair.client.send(tcp, b"tcp")
    pair.client.send(pair.flow, b"udp")
    got = {m.data: m.flow.protocol for m in (pair.server.recv(1.0), pair.server.recv(1.0))}
    assert got == {b"tcp": "tcp", b"udp": "udp"}


def test_an_application_that_does_not_read_holds_the_sender_up() -> None:
    net = Network(seed=3)
    a, b = net.host("10.0.0.1", mnp_user_timeout_ms=1000), net.host("10.0.0.2")
    net.link(a, b, latency="50us", bandwidth="10Gbps")
    client, server = a.attach(), b.attach(rx_bufs=64)
    server.listen("10.0.0.2", 888)
    flow = client.connect("10.0.0.1", "10.0.0.2", 888)
    sent = [bytes([i % 256]) * 1400 for i in range(500)]
    for data in sent:
        client.send(flow, data, timeout=1.0)
    with pytest.raises(TimeoutError):
        client.recv(timeout=20.0)  # far longer than the timeout: the peer answers, so it lives
    assert a.sockets()[0].snd_wnd == 0
    assert [server.recv(timeout=5.0).data for _ in sent] == sent
    net.close()


@pytest.mark.parametrize("extended_mode", [True, False])
def test_large_messages_of_several_flows_take_turns(extended_mode: bool) -> None:
    net = Network(seed=4)
    a, b = net.host("10.0.0.1", mnp_extended=extended_mode), net.host("10.0.0.2")
    net.link(a, b, latency="50us", bandwidth="10Gbps")
    client, server = a.attach(), b.attach(rx_bufs=256)
    server.listen("10.0.0.2", 888)
    flows = [client.connect("10.0.0.1", "10.0.0.2", 888) for _ in range(4)]
    data = random.Random(2).randbytes(250_000)
    for flow in flows:
        client.send(flow, data)
        client.send(flow, b"small")
    got = [server.recv(timeout=5.0) for _ in range(8)]
    assert sorted(len(m.data) for m in got) == [5] * 4 + [250_000] * 4
    assert all(m.data in (data, b"small") for m in got)
    net.close()


@pytest.mark.parametrize("size", [65_537, 86_015, 86_016])
def test_a_plain_message_that_fills_the_whole_channel(size: int) -> None:
    """84 buffers of 96 may be one message's: its rest is promised without its part-filled buffer."""
    net = Network(seed=5)
    a, b = net.host("10.0.0.1", mnp_extended=False), net.host("10.0.0.2")
    net.link(a, b, latency="50us", bandwidth="10Gbps")
    client, server = a.attach(), b.attach(rx_bufs=96, buf_bytes=1024)
    server.listen("10.0.0.2", 888)
    flow = client.connect("10.0.0.1", "10.0.0.2", 888)
    data = random.Random(size).randbytes(size)
    client.send(flow, data)
    client.send(flow, b"behind it")
    assert server.recv(timeout=5.0).data == data
    assert server.recv(timeout=5.0).data == b"behind it"
    net.close()
