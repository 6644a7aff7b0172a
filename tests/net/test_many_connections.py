# SPDX-License-Identifier: MIT
"""Ten thousand connections in turn and a thousand at once, and nothing is left of them."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from linux_peer import (
    KERNEL_IP,
    OUR_IP,
    PATIENCE_S,
    PORT,
    Peer,
    beside,
    eventually,
    linux_peer,
    needs_tap,
    nothing_more,
    pattern,
    readable,
    recv,
    recv_message,
    reset,
    scaled,
    send,
    send_message,
    writable,
)

from machnet import Stack
from machnet.sim import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from machnet import Channel

IN_TURN = scaled(10_000, 1_500)
AT_ONCE = 1_000

needs_kernel = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))


@pytest.fixture
def peer() -> Iterator[Peer]:
    with linux_peer(msl_ms=20, eof_linger_ms=200) as peer:
        # Ports of the kernel's own TIME-WAIT may be used again at once: it has but 28,000.
        peer.host.sysctl("net.ipv4.tcp_tw_reuse", 1)
        yield peer


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Room for a thousand connections' descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * AT_ONCE + 200:
        pytest.skip(f"at most {hard} open files are permitted here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * AT_ONCE + 200), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def all_back(peer: Peer, channel: Channel, base: dict[str, int]) -> None:
    """Engine and channel hold what they held before anything happened."""
    eventually(lambda: peer.stack.usage()["tcbs"] == 0)
    usage = peer.stack.usage()
    usage["neighbors"] = base["neighbors"]
    usage["timers"] = min(usage["timers"], base["timers"])
    assert usage == base
    nothing_more(channel)
    assert channel.flows() == []


def base_of(peer: Peer, channel: Channel) -> dict[str, int]:
    nothing_more(channel)
    return peer.stack.usage()


@needs_kernel
class TestInTurn:
    def test_linux_connects(self, peer: Peer) -> None:
        channel = peer.stack.attach(flows_max=64, tx_bufs=64, rx_bufs=64)
        channel.listen(OUR_IP, PORT, "tcp")
        base = base_of(peer, channel)

        def ask() -> None:
            for n in range(IN_TURN):
                with peer.host_socket() as sock:
                    sock.connect((OUR_IP, PORT))
                    send_message(sock, n.to_bytes(4, "big"))
                    assert recv_message(sock) == n.to_bytes(4, "big")

        with beside(ask):
            for n in range(IN_TURN):
                message = recv(channel)
                assert message.data == n.to_bytes(4, "big")
                send(channel, message.flow, message.data)
        all_back(peer, channel, base)
        stats = peer.stack.stats()
        assert stats["tcp_passive_opens"] == stats["tcp_established"] == IN_TURN

    def test_machnet_connects(self, peer: Peer) -> None:
        channel = peer.stack.attach(flows_max=64, tx_bufs=64, rx_bufs=64)
        listener = peer.listen()
        base = base_of(peer, channel)

        def serve() -> None:
            for _ in range(IN_TURN):
                with listener.accept()[0] as sock:
                    send_message(sock, recv_message(sock))
                    assert sock.recv(1) == b""

        with beside(serve):
            for n in range(IN_TURN):
                flow = channel.connect(OUR_IP, KERNEL_IP, PORT, "tcp", timeout=PATIENCE_S)
                send(channel, flow, n.to_bytes(4, "big"))
                assert recv(channel).data == n.to_bytes(4, "big")
                flow.close()
        all_back(peer, channel, base)
        assert peer.stack.stats()["tcp_active_opens"] == IN_TURN

    def test_resets(self, peer: Peer) -> None:
        channel = peer.stack.attach(flows_max=16, tx_bufs=64, rx_bufs=64)
        channel.listen(OUR_IP, PORT, "tcp")
        base = base_of(peer, channel)
        for n in range(scaled(1_000, 200)):
            sock = peer.host_socket()
            sock.connect((OUR_IP, PORT))
            send_message(sock, pattern(3000, n))
            assert recv(channel).data == pattern(3000, n)
            reset(sock)
            with pytest.raises(ConnectionResetError):
                recv(channel)
        all_back(peer, channel, base)

    def test_refusals(self, peer: Peer) -> None:
        channel = peer.stack.attach(flows_max=16)
        base = base_of(peer, channel)
        for _ in range(scaled(1_000, 200)):
            with pytest.raises(ConnectionRefusedError):
                channel.connect(OUR_IP, KERNEL_IP, 9, "tcp", timeout=PATIENCE_S)
        all_back(peer, channel, base)


@pytest.fixture
def sockets() -> Iterator[contextlib.ExitStack]:
    """Closes what is entered into it, however the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


@needs_kernel
class TestAtOnce:
    @pytest.mark.parametrize("protocol", ["tcp", "stream"])
    def test_linux_connects(self, peer: Peer, protocol: str, sockets: contextlib.ExitStack) -> None:
        # Room for the news of as many connections, while the application is busy connecting.
        channel = peer.stack.attach(ctl_slots=2 * 1024)
        listener = channel.listen(OUR_IP, PORT, protocol, backlog=AT_ONCE)
        base = base_of(peer, channel)
        socks = [sockets.enter_context(peer.host_socket()) for _ in range(AT_ONCE)]

        def connect() -> None:
            for sock in socks:
                sock.setblocking(False)
                sock.connect_ex((OUR_IP, PORT))
                sock.settimeout(PATIENCE_S)
            for sock in socks:
                assert writable(sock)
                if protocol == "tcp":
                    send_message(sock, b"hello")

        with beside(connect):
            if protocol == "tcp":
                flows = [recv(channel).flow for _ in socks]
            else:
                flows = [listener.accept(timeout=PATIENCE_S) for _ in socks]
        assert len(set(flows)) == AT_ONCE
        if protocol == "tcp":
            self.messages(channel, socks)
        else:
            self.streams(channel, flows, socks)
        assert peer.stack.usage()["tcbs"] == AT_ONCE
        for sock in socks:
            sock.close()
        if protocol == "stream":
            for flow in flows:
                assert flow.read(1, timeout=PATIENCE_S) == b""
                flow.close()
        all_back(peer, channel, base)

    def messages(self, channel: Channel, socks: list[socket.socket]) -> None:
        for turn in range(3):
            for n, sock in enumerate(socks):
                send_message(sock, n.to_bytes(4, "big") + pattern(2000, n + turn))
            seen = set()
            for _ in socks:
                message = recv(channel)
                n = int.from_bytes(message.data[:4], "big")
                assert message.data[4:] == pattern(2000, n + turn)
                seen.add(n)
                send(channel, message.flow, message.data[:4])
            assert len(seen) == len(socks)
            for n, sock in enumerate(socks):
                assert recv_message(sock) == n.to_bytes(4, "big")

    def streams(self, channel: Channel, flows: list[Any], socks: list[socket.socket]) -> None:
        by_port = {flow.remote[1]: flow for flow in flows}
        assert len(by_port) == len(socks)
        for n, sock in enumerate(socks):
            sock.sendall(pattern(100, n))
        for n, sock in enumerate(socks):
            flow = by_port[sock.getsockname()[1]]
            assert channel.read(flow, 100, timeout=PATIENCE_S) == pattern(100, n)
            channel.send(flow, pattern(50, n), timeout=PATIENCE_S)
        for n, sock in enumerate(socks):
            assert sock.recv(50, socket.MSG_WAITALL) == pattern(50, n)

    def test_machnet_connects(self, peer: Peer) -> None:
        peer.host.sysctl("net.core.somaxconn", 4096)
        listener = peer.listen(backlog=4096)
        base_channel = peer.stack.attach()
        base = base_of(peer, base_channel)
        socks = []
        flows = [
            base_channel.connect(OUR_IP, KERNEL_IP, PORT, "tcp", timeout=PATIENCE_S)
            for _ in range(AT_ONCE)
        ]
        ends = {}
        for _ in range(AT_ONCE):
            sock, address = listener.accept()
            sock.settimeout(PATIENCE_S)
            ends[address[1]] = sock
            socks.append(sock)
        for turn in range(3):
            for n, flow in enumerate(flows):
                send(base_channel, flow, pattern(2000, n + turn))
            for n, flow in enumerate(flows):
                sock = ends[flow.local[1]]
                assert recv_message(sock) == pattern(2000, n + turn)
                send_message(sock, flow.local[1].to_bytes(2, "big"))
            for _ in flows:
                message = recv(base_channel)
                assert message.data == message.flow.local[1].to_bytes(2, "big")
        assert peer.stack.usage()["tcbs"] == AT_ONCE
        for flow in flows[: AT_ONCE // 2]:
            flow.close()
        for sock in socks:
            sock.close()
        all_back(peer, base_channel, base)

    def test_they_come_and_go(self, peer: Peer) -> None:
        """Hundreds at a time connect, ask, and leave in every way, while others go on."""
        channel = peer.stack.attach()
        channel.listen(OUR_IP, PORT, "tcp", backlog=AT_ONCE)
        base = base_of(peer, channel)
        steady = peer.host_socket()
        steady.connect((OUR_IP, PORT))
        for turn in range(scaled(10, 3)):
            socks = []
            for n in range(200):
                sock = peer.host_socket()
                sock.connect((OUR_IP, PORT))
                sock.sendall(b"\0\0\0\4" + n.to_bytes(4, "big") + b"\0\0"[: n % 3])
                socks.append(sock)
            for n, sock in enumerate(socks):
                (sock.close if n % 2 else lambda sock=sock: reset(sock))()
            send_message(steady, turn.to_bytes(5, "big"))
            while True:
                message = recv_or_none(channel)
                if message is not None and len(message.data) == 5:
                    send(channel, message.flow, message.data)
                    break
            assert recv_message(steady) == turn.to_bytes(5, "big")
        steady.close()
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)
        eventually(lambda: drained(channel))
        all_back(peer, channel, base)


def drained(channel: Channel) -> bool:
    """Take in all that is there; whether nothing can come any more."""
    while took(channel):
        pass
    return not channel.flows()


def took(channel: Channel) -> bool:
    """Whether there was a message or the end of a flow."""
    try:
        return channel.try_recv() is not None
    except ConnectionError:
        return True


def recv_or_none(channel: Channel) -> Any:
    """A message, or None for the end of a flow."""
    with contextlib.suppress(ConnectionError):
        return recv(channel)
    return None


class TestVirtual:
    """The exact part, in virtual time: to the last buffer, slot and timer."""

    def test_ten_thousand_in_turn(self) -> None:
        """TIME-WAIT lasts its minute; then all pools are as they were, and no flow slot is lost."""
        a, b = (Stack(w, f"10.0.0.{n}/24") for n, w in enumerate(Wire.pair(), 1))
        client = a.attach(flows_max=8, tx_bufs=16, rx_bufs=16)
        server = b.attach(flows_max=8, tx_bufs=16, rx_bufs=16)
        server.listen("10.0.0.2", PORT, "tcp")
        base = [a.usage(), b.usage()]
        for n in range(IN_TURN):
            flow = client.connect("10.0.0.1", "10.0.0.2", PORT, "tcp")
            client.send(flow, pattern(n % 3000, n))
            message = server.recv(1)
            assert message.data == pattern(n % 3000, n)
            server.send(message.flow, b"ok")
            assert client.recv(1).data == b"ok"
            if n % 2:
                flow.close()
            else:
                message.flow.close()
            a.advance(100_000_000)
        peak = a.usage()["time_wait"]
        assert 0 < peak <= 700
        a.advance(61 * 10**9)
        a.advance(300 * 10**9)
        for stack, was in zip((a, b), base, strict=True):
            usage = stack.usage()
            assert usage["tcbs"] == usage["time_wait"] == 0
            usage["neighbors"] = was["neighbors"]
            assert {**usage, "timers": 0} == {**was, "timers": 0}
        for channel in (client, server):
            assert channel.try_recv() is None
            assert channel.flows() == []
        for stack in (a, b):
            stack.close(0)

    def test_a_thousand_at_once(self) -> None:
        a, b = (Stack(w, f"10.0.0.{n}/24") for n, w in enumerate(Wire.pair(), 1))
        client, server = a.attach(), b.attach()
        server.listen("10.0.0.2", PORT, "tcp")
        base = [a.usage(), b.usage()]
        flows = [client.connect("10.0.0.1", "10.0.0.2", PORT, "tcp") for _ in range(AT_ONCE)]
        assert a.usage()["tcbs"] == b.usage()["tcbs"] == AT_ONCE
        for n, flow in enumerate(flows):
            client.send(flow, pattern(1000, n))
        numbers = {flow.local[1]: n for n, flow in enumerate(flows)}
        for _ in flows:
            message = server.recv(1)
            assert message.data == pattern(1000, numbers.pop(message.flow.remote[1]))
        for flow in flows:
            flow.close()
        a.advance(400 * 10**9)
        for stack, was in zip((a, b), base, strict=True):
            usage = stack.usage()
            usage["neighbors"] = was["neighbors"]
            assert {**usage, "timers": 0} == {**was, "timers": 0}
        assert server.try_recv() is None
        for stack in (a, b):
            stack.close(0)


@needs_kernel
def test_descriptors_do_not_leak(peer: Peer) -> None:
    """Sockets of the stack give their descriptors back."""

    def one() -> None:
        with peer.stack.socket() as ours, peer.listen() as listener:
            ours.connect_ex((KERNEL_IP, PORT))
            accepted = peer.accept(listener)
            readable(ours)
            eventually(lambda: ours.connect_ex((KERNEL_IP, PORT)) in {0, 106})
            accepted.close()

    one()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(30):
        one()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
