# SPDX-License-Identifier: MIT
"""Framed messages between machnet and Linux sockets over a TAP: sizes, flows, back-pressure."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from linux_peer import (
    KERNEL_IP,
    MESSAGE_MAX,
    MIB,
    OUR_IP,
    PATIENCE_S,
    PORT,
    Peer,
    beside,
    ends,
    frame,
    linux_peer,
    needs_tap,
    nothing_more,
    pattern,
    recv,
    recv_message,
    scaled,
    send,
    send_message,
    try_send,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machnet import Channel, Flow

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))

SMALL_SIZES = range(3001)
LARGE_SIZES = [4096, 65536, MIB, MESSAGE_MAX]


@pytest.fixture
def peer() -> Iterator[Peer]:
    with linux_peer(large_progress_ms=PATIENCE_S * 1000) as peer:
        yield peer


@pytest.fixture
def channel(peer: Peer) -> Channel:
    return peer.stack.attach()


@pytest.mark.parametrize("kernel_is", ["client", "server"])
class TestSizes:
    def test_every_size_to_3000_there_and_back(
        self, peer: Peer, channel: Channel, kernel_is: str
    ) -> None:
        flow, sock = ends(peer, channel, kernel_is)

        def ask() -> None:
            for size in SMALL_SIZES:
                send_message(sock, pattern(size, size))

        def take() -> list[int]:
            return [
                size for size in SMALL_SIZES if recv_message(sock) != pattern(size, size + 1)
            ]  # fmt: skip

        with sock, beside(ask, take) as (_, wrong):
            for size in SMALL_SIZES:
                message = recv(channel)
                assert message.data == pattern(size, size)
                assert message.flow == flow
                send(channel, flow, pattern(size, size + 1))
            assert wrong.result(PATIENCE_S) == []
        nothing_more(channel)
        assert peer.stack.stats()["framing_errors"] == 0

    @pytest.mark.parametrize("size", LARGE_SIZES)
    def test_large_messages_there_and_back(
        self, peer: Peer, channel: Channel, kernel_is: str, size: int
    ) -> None:
        flow, sock = ends(peer, channel, kernel_is)
        with sock:
            for seed in range(3):
                with beside(lambda seed=seed: send_message(sock, pattern(size, seed))):
                    assert recv(channel).data == pattern(size, seed)
                with beside(lambda: recv_message(sock)) as (got,):
                    send(channel, flow, pattern(size, seed + 100))
                    assert got.result(PATIENCE_S) == pattern(size, seed + 100)
        nothing_more(channel)

    def test_large_messages_both_ways_at_once(
        self, peer: Peer, channel: Channel, kernel_is: str
    ) -> None:
        flow, sock = ends(peer, channel, kernel_is)
        count, size = 8, 2 * MIB + 77

        def give() -> None:
            for seed in range(count):
                send_message(sock, pattern(size, seed))

        def take() -> int:
            return sum(recv_message(sock) == pattern(size, seed + 50) for seed in range(count))

        with sock, beside(give, take) as (_, right):
            sent = received = 0
            while received < count:
                while sent < count and try_send(channel, flow, pattern(size, sent + 50)):
                    sent += 1
                assert recv(channel).data == pattern(size, received)
                received += 1
            for seed in range(sent, count):
                send(channel, flow, pattern(size, seed + 50))
            assert right.result(PATIENCE_S) == count

    def test_many_small_messages_in_a_row(
        self, peer: Peer, channel: Channel, kernel_is: str
    ) -> None:
        flow, sock = ends(peer, channel, kernel_is)
        count = scaled(50_000, 10_000)
        stream = b"".join(frame(n.to_bytes(8, "big")) for n in range(count))

        def take() -> bool:
            return all(recv_message(sock) == n.to_bytes(8, "big") for n in range(count))

        with sock:
            with beside(lambda: sock.sendall(stream)):
                for n in range(count):
                    assert recv(channel).data == n.to_bytes(8, "big")
            with beside(take) as (right,):
                for n in range(count):
                    send(channel, flow, n.to_bytes(8, "big"))
                assert right.result(PATIENCE_S)


class TestPieces:
    def test_a_message_that_comes_byte_by_byte(self, peer: Peer, channel: Channel) -> None:
        flow, sock = ends(peer, channel, "client")
        with sock:
            for byte in frame(b"") + frame(b"x") + frame(pattern(300, 1)):
                sock.send(bytes([byte]))
            assert [recv(channel).data for _ in range(3)] == [b"", b"x", pattern(300, 1)]
            assert flow.live

    def test_cuts_at_any_place(self, peer: Peer, channel: Channel) -> None:
        _, sock = ends(peer, channel, "client")
        rng = random.Random(5)
        sizes = [rng.choice([0, 1, 3, 4, 5, 2047, 2048, 2049, 70_000]) for _ in range(300)]
        stream = b"".join(frame(pattern(size, n)) for n, size in enumerate(sizes))

        def give() -> None:
            at = 0
            while at < len(stream):
                step = rng.choice([1, 2, 3, 4, 5, 100, 1447, 1448, 1449, 5000, 60_000])
                sock.sendall(stream[at : at + step])
                at += step

        with sock, beside(give):
            for n, size in enumerate(sizes):
                assert recv(channel).data == pattern(size, n)

    def test_data_with_the_end_behind_it(self, peer: Peer, channel: Channel) -> None:
        channel.listen(OUR_IP, PORT, "tcp")
        for n in range(20):
            with peer.connect() as sock:
                sock.sendall(b"".join(frame(pattern(size, n)) for size in (10, 0, 5000)))
            got = [recv(channel) for _ in range(3)]
            assert [message.data for message in got] == [pattern(s, n) for s in (10, 0, 5000)]
            assert len({message.flow for message in got}) == 1
        nothing_more(channel)


class TestFlows:
    def test_several_listeners_and_flows_on_one_channel(self, peer: Peer, channel: Channel) -> None:
        ports = [PORT, PORT + 1, PORT + 2]
        for port in ports:
            channel.listen(OUR_IP, port, "tcp")
        socks = [peer.connect(port) for port in ports for _ in range(8)]
        rng = random.Random(3)
        turns = [n for n in range(len(socks)) for _ in range(40)]
        rng.shuffle(turns)
        sizes = [rng.choice([0, 9, 1500, 9000, 66_000]) for _ in turns]
        expected: list[list[bytes]] = [[] for _ in socks]
        for turn, (n, size) in enumerate(zip(turns, sizes, strict=True)):
            expected[n].append(n.to_bytes(2, "big") + pattern(size, turn))

        def give() -> None:
            at = [0] * len(socks)
            for n in turns:
                send_message(socks[n], expected[n][at[n]])
                at[n] += 1

        def take() -> None:
            for n, sock in enumerate(socks):
                for data in expected[n]:
                    assert recv_message(sock) == data

        got: dict[Flow, list[bytes]] = {}
        with beside(give, take):
            for _ in turns:
                message = recv(channel)
                got.setdefault(message.flow, []).append(message.data)
                send(channel, message.flow, message.data)
        assert len(got) == len(socks)
        for flow, messages in got.items():
            n = int.from_bytes(messages[0][:2], "big")
            assert messages == expected[n]
            assert flow.local == (OUR_IP, ports[n // 8])
            assert flow.remote == (KERNEL_IP, socks[n].getsockname()[1])
        for sock in socks:
            sock.close()

    def test_connections_both_ways_at_once(self, peer: Peer, channel: Channel) -> None:
        channel.listen(OUR_IP, PORT, "tcp")
        with peer.listen(PORT + 1) as listener:
            out, kernel_server = peer.to_kernel(channel, listener)
        kernel_client = peer.connect()
        with kernel_server, kernel_client:
            send_message(kernel_server, b"to the client")
            assert recv(channel).data == b"to the client"
            send_message(kernel_client, b"to the server")
            message = recv(channel)
            assert message.data == b"to the server"
            assert message.flow != out
            send(channel, message.flow, b"1")
            send(channel, out, b"2")
            assert (recv_message(kernel_client), recv_message(kernel_server)) == (b"1", b"2")

    def test_two_channels_share_the_stack(self, peer: Peer) -> None:
        channels = [peer.stack.attach() for _ in range(4)]
        for n, channel in enumerate(channels):
            channel.listen(OUR_IP, PORT + n, "tcp")
        socks = [peer.connect(PORT + n) for n in range(4)]
        for n, sock in enumerate(socks):
            send_message(sock, b"for %d" % n)
        for n, channel in enumerate(channels):
            message = recv(channel)
            assert message.data == b"for %d" % n
            send(channel, message.flow, b"from %d" % n)
            nothing_more(channel)
        for n, sock in enumerate(socks):
            assert recv_message(sock) == b"from %d" % n
            sock.close()
