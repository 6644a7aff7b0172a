# SPDX-License-Identifier: MIT
"""ICMP errors that concern a connection (RFC 9293, 3.9.2.2; RFC 5927)."""

from __future__ import annotations

import struct

import pytest
import tcp_peer as tp
from tcp_peer import MS, PEER_MAC, SEC, STACK_IP, STACK_MAC, errno_of
from tcp_segment import build_eth, build_ip, checksum

ROUTER = "10.0.0.99"
MSS = 1460


def icmp(p, kind, code, *, quote=None, size=28, rest=0, source=ROUTER, csum=None):
    """An ICMP error about the last segment that the stack sent."""
    if quote is None:
        quote = next(frame for _, way, frame in reversed(p.lab.log) if way == "<")[14:]
    body = struct.pack(">BBHI", kind, code, 0, rest) + quote[:size]
    value = checksum(body) if csum is None else csum
    body = body[:2] + struct.pack(">H", value) + body[4:]
    packet = build_ip(body, source, STACK_IP, proto=1)
    p.lab.inject(build_eth(STACK_MAC, PEER_MAC, packet))


def in_flight(p):
    tp.established(p)
    p.write(1000)
    p.expect("A", len=1000)
    return p


SOFT = [(3, 0), (3, 1), (3, 5), (11, 0), (11, 1), (12, 0)]
HARD = [(3, 2), (3, 3)]


@pytest.mark.rows(66, 67, 70)
@pytest.mark.parametrize(("kind", "code"), SOFT)
def test_established_soft_error(tcp, kind, code):
    """The application can ask for it; the connection goes on."""
    p = in_flight(tcp())
    assert p.soft_error() is None
    with p.lab.counts(icmp_errors=1):
        icmp(p, kind, code)
    assert p.state == "ESTABLISHED"
    assert p.soft_error() is not None
    p.send("A", data=10)
    assert p.read() == 10


@pytest.mark.rows(67)
def test_established_soft_error_by_code(tcp):
    p = in_flight(tcp())
    icmp(p, 3, 1)
    assert p.soft_error() == "EHOSTUNREACH"
    icmp(p, 3, 0)
    assert p.soft_error() in ("ENETUNREACH", "EHOSTUNREACH")


@pytest.mark.rows(68)
@pytest.mark.parametrize(("kind", "code"), HARD)
@pytest.mark.parametrize("make", [tp.established, tp.fin_wait_1, tp.close_wait])
def test_synchronised_hard_error(tcp, make, kind, code):
    """RFC 5927, 5.2: in a synchronised state it is soft too: F3."""
    p = make(tcp())
    if make is not tp.fin_wait_1:
        p.write(100)
        p.expect("A", len=100)
    state = p.state
    icmp(p, kind, code)
    assert p.state == state
    p.lab.advance(10 * SEC)
    assert p.state == state


@pytest.mark.rows(67)
@pytest.mark.parametrize(("kind", "code"), SOFT)
def test_syn_sent_soft_error(tcp, kind, code):
    """The attempt goes on: the route may come back."""
    p = tp.syn_sent(tcp())
    icmp(p, kind, code)
    assert p.state == "SYN-SENT"
    p.send("SA")
    p.expect(**tp.PURE_ACK)
    assert p.state == "ESTABLISHED"


@pytest.mark.rows(68, 70)
@pytest.mark.parametrize(("kind", "code"), HARD)
def test_syn_sent_hard_error(tcp, kind, code):
    """It may end the attempt; then connect says why."""
    p = tp.syn_sent(tcp())
    icmp(p, kind, code)
    if p.state == "CLOSED":
        name = errno_of(lambda: p.sock.send(b"x"))
        assert name in ("ECONNREFUSED", "EHOSTUNREACH", "ENOPROTOOPT", "EPROTONOSUPPORT")
    else:
        assert p.state == "SYN-SENT"


@pytest.mark.rows(69)
@pytest.mark.parametrize("make", [in_flight, tp.syn_sent])
def test_source_quench(tcp, make):
    """F4: deprecated, discarded."""
    p = make(tcp())
    state, window = p.state, p.info().cwnd
    with p.lab.counts(drop_icmp_ignored=1):
        icmp(p, 4, 0)
    assert (p.state, p.info().cwnd) == (state, window)


@pytest.mark.rows(67, 68)
@pytest.mark.parametrize(("kind", "code"), SOFT + HARD)
@pytest.mark.parametrize("offset", [-1000, 5000, 1 << 30, -(1 << 30)])
def test_established_quoted_sequence_number_not_in_flight(tcp, kind, code, offset):
    """F2: a blind attacker does not know what is in flight (RFC 5927, 4.1)."""
    p = in_flight(tcp())
    quote = bytearray(next(f for _, way, f in reversed(p.lab.log) if way == "<")[14:])
    seq = (int.from_bytes(quote[24:28], "big") + offset) % (1 << 32)
    quote[24:28] = seq.to_bytes(4, "big")
    with p.lab.counts(drop_icmp_quote=1, icmp_errors=0):
        icmp(p, kind, code, quote=bytes(quote))
    assert p.soft_error() is None


@pytest.mark.parametrize("field", [(20, 2), (22, 2), (12, 4), (16, 4), (9, 1)])
def test_established_quote_of_another_connection(tcp, field):
    p = in_flight(tcp())
    quote = bytearray(next(f for _, way, f in reversed(p.lab.log) if way == "<")[14:])
    quote[field[0]] ^= 0x40
    icmp(p, 3, 1, quote=bytes(quote))
    assert p.soft_error() is None
    assert p.lab.stat("icmp_errors") == 0


@pytest.mark.parametrize("size", [0, 1, 19, 20, 23, 27])
def test_established_truncated_quote(tcp, size):
    """F5."""
    p = in_flight(tcp())
    icmp(p, 3, 1, size=size)
    assert p.soft_error() is None
    drops = p.lab.stat("drop_icmp_quote") + p.lab.stat("drop_icmp_bad")
    assert drops == 1


def test_established_wrong_icmp_checksum(tcp):
    p = in_flight(tcp())
    with p.lab.counts(drop_icmp_bad=1):
        icmp(p, 3, 1, csum=0x1234)
    assert p.soft_error() is None


@pytest.mark.parametrize("mtu", [0, 1, 67, 68, 551, 576, 1280, 9000])
def test_established_fragmentation_needed(tcp, mtu):
    """F1: until path MTU discovery comes, it changes nothing; never a tiny segment."""
    p = in_flight(tcp())
    icmp(p, 3, 4, rest=mtu)
    assert p.state == "ESTABLISHED"
    p.send("A")
    p.nodelay()
    p.write(5000)
    assert p.drain()[0].len >= 500


@pytest.mark.rows(66)
def test_time_wait_icmp(tcp):
    p = tp.time_wait(tcp())
    icmp(p, 3, 3)
    assert p.state == "TIME-WAIT"


def test_closed_icmp_error_is_not_answered(tcp):
    """Never an ICMP error, nor an RST, about an ICMP error."""
    p = in_flight(tcp())
    p.abort()
    p.drain()
    icmp(p, 3, 3)
    p.lab.advance(10 * MS)
    assert p.lab.frames == []


def test_closed_udp_port_unreachables_of_a_second_are_no_fixed_number(tcp):
    """E7: as with RSTs (CVE-2020-25705's class)."""
    p = tcp(icmp_per_s=100)
    datagram = build_ip(struct.pack(">HHHH", 5000, 9, 8, 0), p.ip, STACK_IP, proto=17)
    counts = []
    for _ in range(10):
        before = p.lab.stat("icmp_unreach_sent")
        for _ in range(150):
            p.lab.inject(build_eth(STACK_MAC, PEER_MAC, datagram))
        counts.append(p.lab.stat("icmp_unreach_sent") - before)
        p.lab.advance(SEC)
    assert all(75 <= count <= 125 for count in counts)
    assert len(set(counts)) >= 4
