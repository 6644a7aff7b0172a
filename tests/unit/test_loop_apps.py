# SPDX-License-Identifier: MIT
"""Two applications of one stack talk to each other, through the loop above the NIC."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import pytest
from shm_local import attached

from machnet import FlowResetError, Stack
from machnet._native import ffi, lib
from machnet.config import ChannelSettings
from machnet.sim import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machnet import Channel, Flow

IP, PORT = "10.0.0.2", 888
LOUD = ChannelSettings(buf_bytes=512, tx_bufs=8192, rx_bufs=64, flows_max=16, ctl_slots=16)
MIB = 1 << 20
_PATTERN = bytes(range(251)) * 34_000


def pattern(size: int, seed: int = 0) -> bytes:
    start = (seed * 7) % 251
    return _PATTERN[start : start + size]


@pytest.fixture
def stack() -> Iterator[Stack]:
    stack = Stack(Wire(), f"{IP}/24", msl_ms=100)
    yield stack
    stack.close(0)


def apps(stack: Stack) -> tuple[Channel, Flow, Channel, Flow]:
    client, server = stack.attach(), stack.attach()
    server.listen(IP, PORT, "tcp")
    flow = client.connect(IP, IP, PORT, "tcp")
    client.send(flow, b"hello")
    message = server.recv(1)
    assert message.data == b"hello"
    return client, flow, server, message.flow


def test_messages_of_all_sizes(stack: Stack) -> None:
    client, flow, server, back = apps(stack)
    for size in [*range(0, 3001, 7), 4096, 65_536, MIB, 8 * MIB]:
        client.send(flow, pattern(size, size), timeout=10)
        assert server.recv(10).data == pattern(size, size)
        server.send(back, pattern(size, size + 1), timeout=10)
        assert client.recv(10).data == pattern(size, size + 1)
    stats = stack.stats()
    assert stats["loop_frames"] > 1000
    assert stats["tcp_retransmits"] == 0


def test_nothing_of_it_is_seen_on_the_wire(stack: Stack) -> None:
    client, flow, server, _ = apps(stack)
    client.send(flow, pattern(100_000, 1))
    assert server.recv(1).data == pattern(100_000, 1)
    client.close()
    server.close()
    stack.advance(10**9)
    assert stack.drain() == []
    assert stack.stats()["tx_frames"] == 0


def test_the_addresses_of_a_flow(stack: Stack) -> None:
    _, flow, _, back = apps(stack)
    assert flow.remote == back.local == (IP, PORT)
    assert flow.local == back.remote
    assert flow.local[0] == IP


def test_two_flows_of_one_channel_to_itself(stack: Stack) -> None:
    """The same application is both ends."""
    channel = stack.attach()
    channel.listen(IP, PORT, "tcp")
    flow = channel.connect(IP, IP, PORT, "tcp")
    for n in range(50):
        channel.send(flow, pattern(5000, n))
        message = channel.recv(1)
        assert message.data == pattern(5000, n)
        channel.send(message.flow, b"answer")
        answer = channel.recv(1)
        assert (answer.flow, answer.data) == (flow, b"answer")


def test_many_pairs(stack: Stack) -> None:
    servers = [stack.attach() for _ in range(5)]
    for n, server in enumerate(servers):
        server.listen(IP, PORT + n, "tcp")
    clients = [stack.attach() for _ in range(4)]
    flows = {
        (c, s): client.connect(IP, IP, PORT + s, "tcp")
        for c, client in enumerate(clients)
        for s in range(len(servers))
    }
    for turn in range(5):
        for (c, s), flow in flows.items():
            clients[c].send(flow, bytes([c, s, turn]) + pattern(20_000, c + s))
        for s, server in enumerate(servers):
            for _ in clients:
                message = server.recv(10)
                c = message.data[0]
                assert message.data == bytes([c, s, turn]) + pattern(20_000, c + s)
                server.send(message.flow, message.data[:3])
        for c, client in enumerate(clients):
            answers = [client.recv(10) for _ in servers]
            assert sorted(answer.data for answer in answers) == [
                bytes([c, s, turn]) for s in range(len(servers))
            ]


def test_back_pressure(stack: Stack) -> None:
    """One application does not read: the other one is told, and nothing is lost."""
    client, flow, server, _ = apps(stack)
    sent = 0
    while sent < 10_000:
        try:
            client.send(flow, pattern(10_000, sent))
        except BlockingIOError as error:
            assert error.errno == errno.EAGAIN  # noqa: PT017
            break
        sent += 1
    assert 0 < sent < 10_000
    stack.advance(10 * 10**9)
    for n in range(sent):
        assert server.recv(10).data == pattern(10_000, n)
    assert server.try_recv() is None
    client.send(flow, b"goes on")
    assert server.recv(1).data == b"goes on"


@pytest.mark.parametrize("slots", [2, 8, 64])
def test_a_loop_queue_that_overflows_loses_nothing(slots: int) -> None:
    """Frames that find it full are dropped and counted, and TCP sends them again."""
    stack = Stack(Wire(), f"{IP}/24", loop_slots=slots)
    client, flow, server, back = apps(stack)
    for n in range(5):
        client.send(flow, pattern(300_000, n), timeout=100)
        server.send(back, pattern(300_000, n + 50), timeout=100)
        assert server.recv(600).data == pattern(300_000, n)
        assert client.recv(600).data == pattern(300_000, n + 50)
    stack.close(0)


def test_a_port_without_a_listener_refuses(stack: Stack) -> None:
    with pytest.raises(ConnectionRefusedError):
        stack.attach().connect(IP, IP, 9, "tcp")


@pytest.mark.parametrize("how", ["close", "reset", "channel"])
def test_ends_are_seen_by_the_other_application(stack: Stack, how: str) -> None:
    client, flow, server, back = apps(stack)
    client.send(flow, b"last words")
    if how == "reset":
        stack.advance(1_000_000)
        flow.close(0)
    elif how == "close":
        flow.close()
    else:
        client.close()
    assert server.recv(1).data == b"last words"
    if how == "reset":
        with pytest.raises(FlowResetError) as error:
            server.recv(1)
        assert error.value.flow == back
    stack.advance(10 * 10**9)
    assert server.try_recv() is None
    assert not back.live
    assert stack.usage()["tcbs"] == 0


def test_an_application_that_is_gone_leaves_nothing(stack: Stack) -> None:
    base = stack.usage()
    for turn in range(50):
        client, flow, server, back = apps(stack)
        client.send(flow, pattern(100_000, turn))
        server.send(back, pattern(100_000, turn + 1))
        server.recv(1)
        client.close()
        server.close(0 if turn % 2 else None)
        stack.advance(20 * 10**9)
        assert stack.usage() == base


def test_streams(stack: Stack) -> None:
    """A stream socket connects to another one of its own stack."""
    with stack.socket() as listener, stack.socket() as client:
        listener.bind((IP, PORT))
        listener.listen()
        assert client.connect_ex((IP, PORT)) in {0, errno.EINPROGRESS}
        stack.advance(1_000_000)
        assert client.connect_ex((IP, PORT)) in {0, errno.EISCONN}
        server, address = listener.accept()
        assert address == client.getsockname()
        assert client.send(b"over the loop") == 13
        stack.advance(1_000_000)
        assert server.recv(100) == b"over the loop"
        server.close()
        stack.advance(1_000_000)
        assert client.recv(100) == b""


def test_an_outside_peer_at_the_same_time() -> None:
    """The loop and the wire do not get into each other's way."""
    wires = Wire.pair()
    inside = Stack(wires[0], f"{IP}/24")
    outside = Stack(wires[1], "10.0.0.3/24")
    client, flow, server, _ = apps(inside)
    other = outside.attach()
    far = other.connect("10.0.0.3", IP, PORT, "tcp")
    for n in range(30):
        client.send(flow, b"near" + pattern(50_000, n))
        other.send(far, b"far!" + pattern(50_000, n))
        got = {server.recv(10).data for _ in range(2)}
        assert got == {b"near" + pattern(50_000, n), b"far!" + pattern(50_000, n)}
    for stack in (inside, outside):
        stack.close(0)


def test_a_noisy_application_takes_its_turn(stack: Stack) -> None:
    """I10: thousands of messages of one are in its ring; another one's message does not wait for them."""
    with contextlib.ExitStack() as exits:
        # Lent channels: only `poll` lets the engine do anything.
        ends = [exits.enter_context(attached(stack, settings=LOUD)) for _ in range(4)]
        flows = []
        for i in range(2):
            assert lib.mn_chan_listen(ends[2 + i]._native, 0, 1000 + i, lib.MN_PROTO_TCP, 0) > 0
            stack.poll()
            token = ends[i]._connect_start(IP, IP, 1000 + i, "tcp", None)
            event = ffi.new("struct mn_ctl_evt *")
            while ends[i]._result(token, event) is None:
                stack.poll()
            flows.append(ends[i]._connect_finish(event, "connecting"))
        loud, quiet, _, hears = ends
        published = 0
        while loud._try_send(flows[0], b".") is not None:
            published += 1
        assert published > 5000
        assert quiet._try_send(flows[1], b"hello") is not None
        assert stack.stats()["msgs_submitted"] == 0
        passes = 0
        while (message := hears.try_recv()) is None:
            stack.poll()
            passes += 1
            assert passes < 5
        assert message.data == b"hello"
        assert stack.stats()["msgs_submitted"] <= passes * 256 + 1  # poll_descs
