# SPDX-License-Identifier: MIT
"""Connecting and listening between machnet and a Linux host, and what else answers to a Linux host."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from typing import TYPE_CHECKING

import pytest
from linux_peer import (
    KERNEL_IP,
    OUR_IP,
    PATIENCE_S,
    PORT,
    Peer,
    beside,
    eventually,
    greeted,
    linux_peer,
    needs_tap,
    pattern,
    recv_message,
    send,
)

if TYPE_CHECKING:
    from machnet import Channel

pytestmark = pytest.mark.skipif(needs_tap() is not None, reason=str(needs_tap()))


@pytest.fixture
def channel(peer: Peer) -> Channel:
    channel = peer.stack.attach()
    channel.listen(OUR_IP, PORT, "tcp")
    return channel


class TestConnect:
    @pytest.mark.parametrize("protocol", ["tcp", "stream"])
    def test_to_a_closed_port(self, peer: Peer, protocol: str) -> None:
        channel = peer.stack.attach()
        with pytest.raises(ConnectionRefusedError) as error:
            channel.connect(OUR_IP, KERNEL_IP, 9, protocol, timeout=PATIENCE_S)
        assert error.value.errno == errno.ECONNREFUSED
        assert f"{KERNEL_IP}:9" in str(error.value)
        assert peer.stack.usage()["tcbs"] == 0

    def test_from_linux_to_a_closed_port(self, peer: Peer) -> None:
        with pytest.raises(ConnectionRefusedError):
            peer.connect(9)
        assert peer.stack.stats()["drop_tcp_port"] == 1

    def test_to_an_address_that_does_not_answer_arp(self) -> None:
        with linux_peer(arp_retry_ms=30) as peer:
            channel = peer.stack.attach()
            with pytest.raises(OSError, match="No route to host") as error:
                channel.connect(OUR_IP, "10.9.0.77", PORT, "tcp", timeout=PATIENCE_S)
            assert error.value.errno == errno.EHOSTUNREACH
            usage = peer.stack.usage()
            assert usage["tcbs"] == 0
            assert peer.stack.stats()["arp_requests"] >= 3
            # Again, and when somebody has come to live there.
            with pytest.raises(OSError, match="No route to host"):
                channel.connect(OUR_IP, "10.9.0.77", PORT, "tcp", timeout=PATIENCE_S)
            peer.host.add_address("mn0", "10.9.0.77/24")
            with pytest.raises(ConnectionRefusedError):
                channel.connect(OUR_IP, "10.9.0.77", PORT, "tcp", timeout=PATIENCE_S)

    def test_through_a_gateway_that_drops(self) -> None:
        with linux_peer(gateway=KERNEL_IP) as peer:
            peer.host.sysctl("net.ipv4.ip_forward", 0)
            channel = peer.stack.attach()
            with pytest.raises(TimeoutError):
                channel.connect(OUR_IP, "192.0.2.1", PORT, "tcp", timeout=0.3)
            eventually(lambda: peer.stack.usage()["tcbs"] == 0)

    def test_the_engines_own_limit(self) -> None:
        with linux_peer(gateway=KERNEL_IP, syn_timeout_ms=300) as peer:
            peer.host.sysctl("net.ipv4.ip_forward", 0)
            channel = peer.stack.attach()
            with pytest.raises(TimeoutError) as error:
                channel.connect(OUR_IP, "192.0.2.1", PORT, "tcp", timeout=None)
            assert error.value.errno == errno.ETIMEDOUT
            assert peer.stack.usage()["tcbs"] == 0

    def test_through_a_gateway_that_forwards(self) -> None:
        with linux_peer(gateway=KERNEL_IP) as peer:
            peer.host.add_address("lo", "192.0.2.1/32")
            channel = peer.stack.attach()
            listener = peer.socket()
            listener.bind(("192.0.2.1", PORT))
            listener.listen()
            flow = channel.connect(OUR_IP, "192.0.2.1", PORT, "tcp", timeout=PATIENCE_S)
            sock = peer.accept(listener)
            send(channel, flow, pattern(100_000, 2))
            assert recv_message(sock) == pattern(100_000, 2)

    def test_without_a_route(self, peer: Peer) -> None:
        with pytest.raises(OSError, match="unreachable") as error:
            peer.stack.attach().connect(OUR_IP, "192.0.2.1", PORT, "tcp", timeout=1)
        assert error.value.errno == errno.ENETUNREACH

    def test_from_an_address_that_is_not_ours(self, peer: Peer) -> None:
        with pytest.raises(OSError, match="assign") as error:
            peer.stack.attach().connect("10.9.0.3", KERNEL_IP, PORT, "tcp", timeout=1)
        assert error.value.errno == errno.EADDRNOTAVAIL

    def test_from_a_port_that_is_taken(self, peer: Peer) -> None:
        channel = peer.stack.attach()
        listener = peer.listen()
        flow = channel.connect(
            OUR_IP, KERNEL_IP, PORT, "tcp", timeout=PATIENCE_S, local_port=5000
        )  # fmt: skip
        assert peer.accept(listener).getpeername() == (OUR_IP, 5000)
        with pytest.raises(OSError, match="in use") as error:
            channel.connect(OUR_IP, KERNEL_IP, PORT, "tcp", timeout=1, local_port=5000)
        assert error.value.errno == errno.EADDRINUSE
        assert flow.live

    def test_that_nobody_waits_for_is_reset(self, peer: Peer) -> None:
        """The kernel answers after the application has given up."""
        channel = peer.stack.attach()
        listener = peer.listen()
        peer.host.set_link("mn0", up=False)
        with pytest.raises(TimeoutError):
            channel.connect(OUR_IP, KERNEL_IP, PORT, "tcp", timeout=0.05)
        peer.host.set_link("mn0", up=True)
        eventually(lambda: peer.stack.usage()["tcbs"] == 0)
        listener.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            accepted = peer.accept(listener)
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)
        assert channel.flows() == []

    def test_a_full_backlog_of_the_kernel(self, peer: Peer) -> None:
        """Linux drops SYNs when its backlog is full; the connection comes about once there is room."""
        listener = peer.listen(backlog=1)
        channel = peer.stack.attach()
        flows = [
            channel.connect(OUR_IP, KERNEL_IP, PORT, "tcp", timeout=PATIENCE_S) for _ in range(2)
        ]

        def drain() -> list[socket.socket]:
            time.sleep(0.1)
            return [peer.accept(listener) for _ in range(3)]

        with beside(drain) as (accepted,):
            flows.append(channel.connect(OUR_IP, KERNEL_IP, PORT, "tcp", timeout=PATIENCE_S))
            assert len(accepted.result(PATIENCE_S)) == 3
        assert all(flow.live for flow in flows)


class TestListen:
    @pytest.mark.parametrize("first", [OUR_IP, "0.0.0.0"])
    @pytest.mark.parametrize("second", [OUR_IP, "0.0.0.0"])
    @pytest.mark.parametrize("same_channel", [True, False])
    def test_a_port_is_taken(self, peer: Peer, first: str, second: str, same_channel: bool) -> None:
        channel = peer.stack.attach()
        other = channel if same_channel else peer.stack.attach()
        channel.listen(first, PORT, "tcp")
        if first == second:
            with pytest.raises(OSError, match="in use") as error:
                other.listen(second, PORT, "stream")
            assert error.value.errno == errno.EADDRINUSE
        other.listen(second, PORT + 1, "tcp")
        greeted(peer, channel)
        greeted(peer, other, PORT + 1)

    def test_on_an_address_that_is_not_ours(self, peer: Peer) -> None:
        with pytest.raises(OSError, match="assign") as error:
            peer.stack.attach().listen("10.9.0.3", PORT, "tcp")
        assert error.value.errno == errno.EADDRNOTAVAIL

    def test_the_backlog_bounds_what_is_not_accepted(self, peer: Peer) -> None:
        """Connections beyond the backlog are not lost: the kernel tries again."""
        channel = peer.stack.attach()
        listener = channel.listen(OUR_IP, PORT, "stream", backlog=4)
        with contextlib.ExitStack() as exits:
            socks = []
            for _ in range(12):
                sock = peer.socket()
                sock.setblocking(False)
                sock.connect_ex((OUR_IP, PORT))
                socks.append(exits.enter_context(sock))
            eventually(lambda: peer.stack.stats()["drop_syn_backlog"] >= 1)
            # The rest is half open at most, as all SYNs may come before the first handshake ends.
            states = [sock.state for sock in peer.stack.sockets()]
            assert states.count("ESTABLISHED") <= 4
            flows = [listener.accept(timeout=PATIENCE_S) for _ in socks]
            ports = sorted(sock.getsockname()[1] for sock in socks)
            assert sorted(flow.remote[1] for flow in flows) == ports


def checksum(data: bytes) -> int:
    words = [int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big") for i in range(0, len(data), 2)]
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


@pytest.mark.parametrize("size", [0, 56, 1472, 65_507])
def test_ping(peer: Peer, size: int) -> None:
    """Echo, up to what is not cut into fragments, which the stack does not put together."""
    with peer.host.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(PATIENCE_S if size <= 1472 else 0.1)
        for number in range(3):
            body = bytes([0, 7, 0, number]) + pattern(size, number)
            sum_ = checksum(b"\x08\0\0\0" + body).to_bytes(2, "big")
            sock.sendto(b"\x08\0" + sum_ + body, (OUR_IP, 0))
            if size > 1472:
                with pytest.raises(TimeoutError):
                    sock.recv(70_000)
                assert peer.stack.stats()["drop_ip_fragment"] > 1
            else:
                answer, (source, _) = sock.recvfrom(70_000)
                assert source == OUR_IP
                assert answer[20:22] == b"\0\0"
                assert answer[24:] == body


def test_udp_to_a_port_that_nobody_serves(peer: Peer) -> None:
    with peer.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((OUR_IP, 7))
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
    assert peer.stack.stats()["icmp_unreach_sent"] == 1
