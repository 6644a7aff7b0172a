# SPDX-License-Identifier: MIT
"""Numbers that must not be guessed: ISNs (RFC 6528), ephemeral ports (RFC 6056); fixed seeds."""

from __future__ import annotations

import errno
import itertools
import statistics

import pytest
import tcp_peer as tp
from tcp_peer import PEER_IP, SEC, US, errno_of

from machnet._native import ffi

MOD = 1 << 32


def isn_of(lab, port, stack_port=80):
    """The ISN of a SYN-ACK for a SYN from this port; the half-open connection is reset again."""
    p = lab.peer(port=port, stack_port=stack_port)
    p.send("S")
    isn = p.expect("SA").raw.raw_seq
    p.send("R")
    return isn


@pytest.fixture
def server(labs):
    lab = labs(isn=None)
    lab.listen(backlog=100)
    return lab


@pytest.mark.rows(17, 120)
def test_isn_of_one_tuple_follows_the_clock(server):
    """RFC 9293, 3.4.1: one step in about 4 us."""
    first = isn_of(server, 1000)
    for seconds in (1, 10, 100):
        before = server.now
        server.advance(seconds * SEC)
        isn = isn_of(server, 1000)
        rate_us = (server.now - before) / US / ((isn - first) % MOD)
        assert 3.5 <= rate_us <= 4.5
        first = isn


@pytest.mark.rows(17)
def test_isn_of_one_tuple_is_monotone(server):
    isns = []
    for _ in range(50):
        isns.append(isn_of(server, 1000))
        server.advance(20 * US)
    steps = [(b - a) % MOD for a, b in itertools.pairwise(isns)]
    assert all(0 < step < 1000 for step in steps)


@pytest.mark.rows(18, 19, 120)
def test_isns_of_different_tuples_are_independent(server):
    """C13, E1: at one moment: no two alike, every bit as often 1 as 0, no common difference."""
    isns = [isn_of(server, port) for port in range(1024, 1024 + 1000)]
    assert len(set(isns)) == len(isns)
    for bit in range(32):
        ones = sum(isn >> bit & 1 for isn in isns)
        assert 400 < ones < 600, f"bit {bit}: {ones} of 1000"
    steps = [(b - a) % MOD for a, b in itertools.pairwise(isns)]
    assert len(set(steps)) == len(steps)
    assert 0.4 * MOD < statistics.mean(isns) < 0.6 * MOD
    assert 0.4 * MOD < statistics.mean(steps) < 0.6 * MOD


@pytest.mark.rows(18, 19)
@pytest.mark.parametrize("change", ["remote port", "remote address", "local port"])
def test_isn_depends_on_the_whole_tuple(server, change):
    server.listen(port=81)
    server.stack.neighbor("10.0.0.3", "02:00:00:00:00:03")
    first = isn_of(server, 1000)
    other = {
        "remote port": lambda: isn_of(server, 1001),
        "local port": lambda: isn_of(server, 1000, stack_port=81),
        "remote address": lambda: isn_of_ip(server, "10.0.0.3"),
    }[change]()
    assert min((other - first) % MOD, (first - other) % MOD) > 10_000


def isn_of_ip(lab, ip):
    p = lab.peer(ip=ip, port=1000)
    p.send("S")
    return p.expect("SA").raw.raw_seq


@pytest.mark.rows(19, 120)
def test_isn_depends_on_the_secret(labs):
    isns = set()
    for seed in range(20):
        lab = labs(isn=None, seed=seed)
        lab.listen()
        isns.add(isn_of(lab, 1000))
    assert len(isns) == 20


def test_isn_is_repeatable(labs):
    isns = []
    for _ in range(2):
        lab = labs(isn=None, seed=3)
        lab.listen()
        isns.append(isn_of(lab, 1000))
    assert isns[0] == isns[1]


def ports_of(lab, count, target_port=80, ip=PEER_IP):
    """Ports of this many connection attempts to one target, each given up before the next."""
    ports = []
    for _ in range(count):
        sock = lab.socket()
        assert errno_of(lambda s=sock: s.connect((ip, target_port))) == "EINPROGRESS"
        syn = lab.tcp_frames()[-1]
        lab.frames.clear()
        ports.append(syn.sport)
        rst = lab.peer(port=target_port, stack_port=syn.sport, stack_isn=syn.raw_seq)
        rst.send("RA", seq=0, ack=1)
        sock.close()
    return ports


@pytest.mark.rows(121)
def test_connect_ports_are_scattered(labs):
    """E2: no counter, no immediate reuse, all in the ephemeral range."""
    lab = labs()
    ports = ports_of(lab, 200)
    assert all(1024 <= port <= 65535 for port in ports)
    assert all(a != b for a, b in itertools.pairwise(ports))
    assert len(set(ports)) >= 190


@pytest.mark.rows(121)
def test_connect_ports_depend_on_the_secret_and_the_target(labs):
    first = ports_of(labs(seed=1), 5)
    assert first == ports_of(labs(seed=1), 5)
    assert first != ports_of(labs(seed=2), 5)
    lab = labs(seed=1)
    starts = {ports_of(lab, 1, target_port=port)[0] for port in range(1000, 1032)}
    assert len(starts) >= 30
    assert max(starts) - min(starts) > 4096


@pytest.mark.rows(121)
def test_connect_avoids_ports_in_use(labs):
    """Two hundred connections to one target at once: all different."""
    lab = labs()
    socks = []
    for _ in range(200):
        sock = lab.socket()
        assert errno_of(lambda s=sock: s.connect((PEER_IP, 80))) == "EINPROGRESS"
        socks.append(sock)
    ports = [seg.sport for seg in lab.tcp_frames()]
    assert len(set(ports)) == 200


@pytest.mark.rows(24, 72)
def test_connect_bound_port(tcp):
    p = tp.syn_sent(tcp())
    assert p.syn.raw.sport == p.stack_port


@pytest.mark.rows(17, 82)
def test_isn_option(labs):
    """What these tests rest on: a forced ISN is used as it is."""
    for isn in (0, 1, MOD - 1, MOD // 2):
        lab = labs(isn=isn)
        lab.listen()
        assert isn_of(lab, 1000) == isn


def test_connect_no_port_is_left(labs):
    """D11: who takes every port to one place is told so; to other places there are as many as ever."""
    lab = labs()
    sizes = {"flows_max": 4096, "ctl_slots": 4096, "tx_bufs": 16, "rx_bufs": 16}
    greedy = [lab.stack.attach(**sizes) for _ in range(8)]
    event = ffi.new("struct mn_ctl_evt *")
    tokens = []
    for channel in greedy:
        tokens += [
            (channel, channel._connect_start(tp.STACK_IP, PEER_IP, 80, "stream", None))
            for _ in range(3600)
        ]
        lab.collect()
        lab.frames.clear()
        lab.log.clear()
    refused = 0
    for channel, token in tokens:
        if channel._result(token, event):
            assert event.status == -errno.EADDRNOTAVAIL
            refused += 1
    assert lab.stack.usage()["tcbs"] == len(tokens) - refused
    assert 27_000 < len(tokens) - refused <= 28_232
    sock = lab.socket()
    assert errno_of(lambda: sock.connect((PEER_IP, 81))) == "EINPROGRESS"
    assert [seg.dport for seg in lab.tcp_frames()] == [81]
