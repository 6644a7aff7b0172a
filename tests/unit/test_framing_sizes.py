# SPDX-License-Identifier: MIT
"""Messages of every size between two stacks over a wire, in virtual time."""

from __future__ import annotations

import errno
import random
from typing import TYPE_CHECKING, Any

import pytest

from machnet import FlowTimeoutError, Stack
from machnet._native import lib
from machnet.sim import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machnet import Channel, Flow

A, B, PORT = "10.0.0.1", "10.0.0.2", 888
MIB = 1 << 20
MESSAGE_MAX = 8 * MIB
_PATTERN = bytes(range(251)) * 34_000


def pattern(size: int, seed: int = 0) -> bytes:
    start = (seed * 7) % 251
    return _PATTERN[start : start + size]


class Pair:
    """Two stacks on a wire and a framed flow between them."""

    def __init__(self, mtu: int = 1500, offload: bool = False, **settings: Any) -> None:
        wires = Wire.pair(mtu, segmentation=offload)
        self.stacks = [
            Stack(wire, f"{ip}/24", **settings) for wire, ip in zip(wires, (A, B), strict=True)
        ]
        self.client, self.server = (stack.attach() for stack in self.stacks)
        self.server.listen(B, PORT, "tcp")
        self.flow = self.client.connect(A, B, PORT, "tcp")
        self.client.send(self.flow, b"hello")
        self.back = self.server.recv(1).flow

    def to_server(self, data: bytes) -> bytes:
        self.client.send(self.flow, data, timeout=10)
        message = self.server.recv(timeout=10)
        assert message.flow == self.back
        return message.data

    def to_client(self, data: bytes) -> bytes:
        self.server.send(self.back, data, timeout=10)
        message = self.client.recv(timeout=10)
        assert message.flow == self.flow
        return message.data

    def close(self) -> None:
        for stack in self.stacks:
            stack.close(0)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


@pytest.mark.parametrize("offload", [False, True], ids=["plain", "segmentation"])
@pytest.mark.parametrize("mtu", [576, 1500, 9000])
def test_every_size_to_3000_both_ways(mtu: int, offload: bool) -> None:
    pair = Pair(mtu, offload)
    for size in range(3001):
        assert pair.to_server(pattern(size, size)) == pattern(size, size)
        assert pair.to_client(pattern(size, size + 1)) == pattern(size, size + 1)
    stats = [stack.stats() for stack in pair.stacks]
    assert [s["msgs_delivered"] for s in stats] == [3001, 3002]
    assert [s["tcp_retransmits"] + s["framing_errors"] for s in stats] == [0, 0]
    pair.close()


@pytest.mark.parametrize("size", [4096, 65536, MIB, MESSAGE_MAX])
def test_large_messages_both_ways(pair: Pair, size: int) -> None:
    for seed in range(2):
        assert pair.to_server(pattern(size, seed)) == pattern(size, seed)
        assert pair.to_client(pattern(size, seed)) == pattern(size, seed)


def test_one_byte_more_than_the_longest_is_refused(pair: Pair) -> None:
    with pytest.raises(OSError, match="can never fit") as error:
        pair.client.send(pair.flow, bytes(MESSAGE_MAX + 1))
    assert error.value.errno == errno.EMSGSIZE
    assert pair.to_server(b"goes on") == b"goes on"


def test_sizes_around_every_kind_of_edge(pair: Pair) -> None:
    """Of buffers, segments, windows, and of what counts as large."""
    edges = [1448, 2048, 4096, 14_480, 65_535, 65_536, 65_540, 131_072, 262_144, 524_288, MIB]
    for edge in edges:
        for size in range(edge - 5, edge + 6):
            assert pair.to_server(pattern(size, size)) == pattern(size, size)


def test_messages_in_a_row(pair: Pair) -> None:
    """Many under way at once, of sizes that share segments and buffers in all ways."""
    rng = random.Random(4)
    sizes = [rng.choice([0, 1, 4, 100, 1448, 2048, 5000, 70_000]) for _ in range(2000)]
    sent = received = 0
    while received < len(sizes):
        while sent < len(sizes):
            try:
                pair.client.send(pair.flow, pattern(sizes[sent], sent))
            except BlockingIOError:
                break
            sent += 1
        assert pair.server.recv(10).data == pattern(sizes[received], received)
        received += 1
    assert pair.server.try_recv() is None


class TestNobodyReads:
    def test_the_sender_is_told(self, pair: Pair) -> None:
        """Nothing is lost, nothing is sent by half, and it goes on as soon as somebody reads."""
        sent = fill(pair, 10_000)
        pair.stacks[0].advance(60 * 10**9)
        assert not try_send(pair.client, pair.flow, pattern(10_000, sent))
        probes = pair.stacks[0].stats()["tcp_probes"]
        assert probes >= 5
        for n in range(sent):
            assert pair.server.recv(10).data == pattern(10_000, n)
        assert pair.server.try_recv() is None
        assert pair.to_server(b"goes on") == b"goes on"
        assert pair.stacks[1].stats()["drop_tcp_nobuf"] == 0

    @pytest.mark.parametrize("size", [100, 2000, 60_000, 100_000, MIB])
    def test_a_window_that_stays_closed_for_hours(self, pair: Pair, size: int) -> None:
        """A peer that answers probes is waited for without end (RFC 9293, MUST-37)."""
        sent = fill(pair, size)
        for _ in range(12):
            pair.stacks[0].advance(3600 * 10**9)
        assert pair.flow.live
        assert pair.stacks[0].stats()["tcp_probes"] > 12 * 30
        for n in range(sent):
            assert pair.server.recv(100).data == pattern(size, n)
        assert pair.to_server(b"goes on") == b"goes on"


def fill(pair: Pair, size: int) -> int:
    """Send messages until there is no room, also not after a while; how many were taken."""
    sent = 0
    for _ in range(5):
        while try_send(pair.client, pair.flow, pattern(size, sent)):
            sent += 1
        pair.stacks[0].advance(10**9)
    return sent


def try_send(channel: Channel, flow: Flow, data: bytes) -> bool:
    try:
        channel.send(flow, data)
    except BlockingIOError:
        return False
    return True


class TestTurns:
    """A message over 64 KiB waits for its turn as the channel's one large message."""

    @pytest.mark.parametrize("size", [70_000, MIB, MESSAGE_MAX])
    def test_flows_take_turns(self, size: int) -> None:
        pair = Pair()
        sender = pair.stacks[0].attach(tx_bufs=65_536)
        flows = [sender.connect(A, B, PORT, "tcp") for _ in range(8)]
        for n, flow in enumerate(flows):
            sender.send(flow, bytes([n]) + pattern(size - 1, n), timeout=0)
        seen = [pair.server.recv(timeout=100).data for _ in flows]
        assert sorted(data[0] for data in seen) == list(range(8))
        for data in seen:
            assert data[1:] == pattern(size - 1, data[0])
        pair.close()

    def test_one_that_stalls_makes_way_after_its_time(self) -> None:
        """To the nanosecond of virtual time in which it should: no sooner than the limit."""
        pair = Pair(large_progress_ms=3000)
        channel, clock = pair.client, pair.stacks[0]
        stalled, waiting = (channel.connect(A, B, PORT, "stream") for _ in range(2))
        channel.send(stalled, MESSAGE_MAX.to_bytes(4, "big") + bytes(100_000))
        clock.advance(1_000_000)
        channel.send(waiting, MIB.to_bytes(4, "big") + bytes(1000))
        clock.advance(2_990_000_000)
        assert pair.server.try_recv() is None
        clock.advance(1_100_000_000)
        with pytest.raises(FlowTimeoutError) as error:
            pair.server.try_recv()
        assert error.value.flow.remote == stalled.local
        rest = memoryview(pattern(MIB, 1))[: MIB - 1000]
        while rest:
            rest = rest[channel.send(waiting, rest, timeout=10) :]
        assert pair.server.recv(10).data == bytes(1000) + pattern(MIB, 1)[: MIB - 1000]
        with pytest.raises(ConnectionResetError):
            channel.read(stalled, timeout=1)
        pair.close()

    def test_alone_it_may_take_its_time(self) -> None:
        """As long as nobody waits for its place, a slow message is no error."""
        pair = Pair(large_progress_ms=1000)
        slow = pair.client.connect(A, B, PORT, "stream")
        data = MIB.to_bytes(4, "big") + pattern(MIB, 2)
        for at in range(0, len(data), 100_000):
            pair.client.send(slow, data[at : at + 100_000])
            pair.stacks[0].advance(60 * 10**9)
        assert pair.server.recv(1).data == pattern(MIB, 2)
        pair.close()


def test_small_pools_hold_any_message_that_fits_them() -> None:
    """Seven eighths of the sender's pool is the longest message; the receiver needs no more."""
    pair = Pair()
    sender = pair.stacks[0].attach(buf_bytes=512, tx_bufs=32, rx_bufs=32)
    flow = sender.connect(A, B, PORT, "tcp")
    longest = 28 * 512
    for size in range(longest - 600, longest + 1, 7):
        sender.send(flow, pattern(size, size), timeout=10)
        assert pair.server.recv(10).data == pattern(size, size)
    with pytest.raises(OSError, match="can never fit"):
        sender.send(flow, bytes(longest + 1))
    pair.close()


def test_a_message_that_the_receiver_can_never_hold() -> None:
    """Its flow is closed with an error at both ends; it does not stall the channel for ever."""
    pair = Pair(large_progress_ms=1000)
    small = pair.stacks[1].attach(buf_bytes=512, tx_bufs=32, rx_bufs=32)
    small.listen(B, PORT + 1, "tcp")
    flow = pair.client.connect(A, B, PORT + 1, "tcp")
    pair.client.send(flow, b"fits")
    assert small.recv(1).data == b"fits"
    pair.client.send(flow, bytes(40_000))
    with pytest.raises(ConnectionError) as error:
        small.recv(timeout=600)
    assert error.value.errno in {errno.EMSGSIZE, errno.ETIMEDOUT}
    with pytest.raises(ConnectionResetError):
        pair.client.recv(timeout=600)
    pair.close()


def test_the_same_run_twice_is_the_same() -> None:
    """Virtual time and a seed: counters and clock agree to the last bit."""

    def run() -> tuple[Any, ...]:
        pair = Pair(seed=5)
        rng = random.Random(6)
        for _ in range(200):
            pair.to_server(pattern(rng.randrange(100_000), 1))
        found = (pair.stacks[0].now_ns, [stack.stats() for stack in pair.stacks])
        pair.close()
        return found

    assert run() == run()


def test_engine_memory_of_an_idle_connection(pair: Pair) -> None:
    """Once all is acknowledged and read, a connection holds no buffer of any pool."""
    pair.to_server(pattern(MIB, 1))
    pair.to_client(pattern(MIB, 2))
    pair.stacks[0].advance(10**9)
    for stack in pair.stacks:
        usage = stack.usage()
        assert usage["ooo_blocks"] == usage["ooo_ranges"] == usage["sack_ranges"] == 0
    assert lib.MN_PROTO_TCP == 1
