# SPDX-License-Identifier: MIT
"""What is below the streams: ARP, ICMP and the MTU, seen by the host at the other end."""

from __future__ import annotations

import os
import socket
import struct
import time

import pytest


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def ping(sock, ip, number, data, timeout):
    """One ping from the kernel's side; the data that come back."""
    ident = os.getpid() & 0xFFFF
    packet = struct.pack("!BBHHH", 8, 0, 0, ident, number) + data
    sock.sendto(packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:], (ip, 0))
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        answer, source = sock.recvfrom(65536)
        header = (answer[0] & 0xF) * 4
        kind, _, _, got_ident, got = struct.unpack_from("!BBHHH", answer, header)
        if source[0] == ip and (kind, got_ident, got) == (0, ident, number):
            return answer[header + 8 :]
    raise TimeoutError("no answer to a ping")


@pytest.fixture
def icmp(posix_peer, timeout):
    try:
        sock = posix_peer.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    except PermissionError:
        pytest.skip("the agent of the other host has no right to raw sockets")
    with sock:
        sock.settimeout(timeout)
        yield sock


def test_pings_of_all_sizes(icmp, machnet_channel, timeout):
    ch = machnet_channel()
    for number, size in enumerate([0, 2, 56, 1000, ch.stack.mtu - 28]):
        data = os.urandom(size & ~1)
        assert ping(icmp, ch.ip, number, data, timeout) == data


@pytest.mark.machnet(mtu=1000)
def test_segments_fit_the_mtu(linux, machnet_channel, timeout):
    ch = machnet_channel()
    assert ch.stack.mtu == 1000
    ch.listen(ch.ip, 7005, protocol="tcp")
    program = linux.connect(ch.ip, 7005)
    # The least of both MTUs, without the headers of IP and TCP and the timestamps.
    assert program.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 960
    data = os.urandom(100_000)
    program.send(data)
    message = ch.recv(timeout=timeout)
    assert message.data == data
    ch.send(message.flow, data, timeout=timeout)
    assert program.recv() == data


def test_the_clock_is_real(machnet_clock, posix_peer, machnet_channel):
    before = time.monotonic_ns()
    start = machnet_clock.now_ns
    machnet_clock.sleep("5ms")
    passed = machnet_clock.now_ns - start
    assert 5_000_000 <= passed <= time.monotonic_ns() - before
