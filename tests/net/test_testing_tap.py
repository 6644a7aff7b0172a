# SPDX-License-Identifier: MIT
"""The scripted peer against the Linux kernel behind a TAP, in real time."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from machnet.sim import KernelHost, Tap
from machnet.testing import ExpectationError, RawPeer, TapPort, icmp, tcp, udp

KERNEL, OURS = "10.9.0.1", "10.9.0.2"


@pytest.fixture
def peer(host: KernelHost) -> Iterator[RawPeer]:
    tap = Tap(fd=host.open_tap("mn0", kernel_ip=f"{KERNEL}/24"), offload=False)
    yield RawPeer(TapPort(tap, OURS, remote_ip=KERNEL))
    tap.close()


@pytest.fixture
def listener(host: KernelHost) -> Iterator[socket.socket]:
    with host.socket() as sock:
        sock.bind((KERNEL, 80))
        sock.listen(4)
        sock.settimeout(10)
        yield sock


def test_the_kernel_answers_a_ping_after_arp(peer: RawPeer) -> None:
    peer.send(icmp("echo-request", id=3, seq=4, payload=b"hello"))
    answer = peer.expect(icmp("echo-reply", id=3, seq=4, payload=b"hello", src=KERNEL))
    assert answer.t_ns is not None
    assert answer.t_ns <= peer.now_ns
    kinds = [(seen.way, seen.packet.kind) for seen in peer.log]
    assert kinds == [(">", "icmp"), ("<", "arp"), (">", "arp"), ("<", "icmp")]


def test_a_closed_udp_port(peer: RawPeer) -> None:
    sent = peer.send(udp(b"anybody?", dport=99))
    peer.expect(icmp("unreachable", 3, quoted=sent))


def test_a_connection_to_the_kernel(peer: RawPeer, listener: socket.socket) -> None:
    c = peer.tcp(80, isn=(1 << 32) - 3, wscale=7, sack_ok=True, ts=True)
    c.handshake(mss=1460, sack_ok=True, wscale=range(15))
    sock, address = listener.accept()
    assert address == (OURS, c.sport)
    with sock:
        sock.settimeout(10)
        c.send("A", b"!", seq=c.snd_nxt, csum=1)
        c.expect_nothing("20ms")
        c.send_data(5000)
        c.expect_ack(5001, skip=True)
        data = b""
        while len(data) < 5000:
            data += sock.recv(5000)
        sock.sendall(data)
        c.expect_data(5000, repeats=True)
        c.fin()
        # A kernel that had no answer for a while has sent its last segment twice.
        c.expect_ack(skip=True)
        assert sock.recv(1) == b""
    c.expect_fin(skip=True)
    c.ack()


def test_a_connection_from_the_kernel(host: KernelHost, peer: RawPeer) -> None:
    with host.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((OURS, 7)) == 115
        c = peer.tcp(sport=7).handshake("passive", mss=1460)
        sock.send(b"hello")
        c.expect_data(b"hello")
        c.rst()
        sock.setblocking(True)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_silence_takes_as_long_as_it_is_given(peer: RawPeer) -> None:
    before = peer.now_ns
    with pytest.raises(ExpectationError, match="nothing came within 30ms"):
        peer.expect(tcp(), within="30ms")
    assert peer.now_ns - before >= 30_000_000


def test_a_frame_that_is_too_long(peer: RawPeer) -> None:
    with pytest.raises(OSError, match="did not take a frame of 1542 bytes"):
        peer.send(udp(bytes(1500)))


def test_a_tap_with_offloads_is_refused(host: KernelHost) -> None:
    tap = Tap(fd=host.open_tap("mn1", kernel_ip=f"{KERNEL}/24"))
    with pytest.raises(ValueError, match="has offloads: open it with offload=False"):
        TapPort(tap, OURS)
    tap.close()
