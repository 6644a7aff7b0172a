# SPDX-License-Identifier: MIT
"""How the congestion window grows and what limits it (RFC 5681, 3465, 6928)."""

from __future__ import annotations

import itertools

import pytest
import tcp_peer as tp
from tcp_peer import MS, SEC, Offer

MSS = 1460
WIDE = Offer(wscale=7)


def sender(p, total=1000):
    """Much to send, and a window that is no limit."""
    tp.established(p)
    p.send("A")
    p.write(total * MSS)
    return p


@pytest.mark.rows(34, 89)
def test_slow_start_one_segment_per_ack(tcp):
    """The window grows by what is acknowledged: each ACK lets two segments out."""
    p = sender(tcp(WIDE))
    got = p.drain()
    assert len(got) == 10
    for i, seg in enumerate(got):
        p.send("A", ack=seg.end)
        assert len(p.drain()) == 2
        assert p.info().cwnd == (11 + i) * MSS


@pytest.mark.rows(34, 89)
def test_slow_start_doubles_per_round_trip(tcp):
    p = sender(tcp(WIDE))
    flights = []
    for _ in range(5):
        got = p.drain()
        flights.append(len(got))
        p.lab.advance(50 * MS)
        for seg in got:
            p.send("A", ack=seg.end)
    assert flights == [10, 20, 40, 80, 160]


@pytest.mark.rows(89)
def test_slow_start_delayed_acks(tcp):
    """An ACK of two segments adds one (RFC 5681) or two (RFC 3465, L=2)."""
    p = sender(tcp(WIDE))
    got = p.drain()
    p.send("A", ack=got[1].end)
    assert p.info().cwnd in (11 * MSS, 12 * MSS)


@pytest.mark.rows(89)
def test_slow_start_stretch_ack(tcp):
    """However much one ACK covers, it adds at most two segments (RFC 3465, 2.3)."""
    p = sender(tcp(WIDE))
    got = p.drain()
    p.send("A", ack=got[-1].end)
    assert p.info().cwnd <= 12 * MSS


@pytest.mark.rows(89)
def test_slow_start_ack_division(tcp):
    """G1: many ACKs for one segment add no more than one does."""
    p = sender(tcp(WIDE))
    p.drain()
    for i in range(1, MSS + 1, 20):
        p.send("A", ack=1 + i)
    p.send("A", ack=1 + MSS)
    assert p.info().cwnd <= 11 * MSS


@pytest.mark.rows(89)
def test_slow_start_optimistic_ack(tcp):
    """G3: at most what was sent is acknowledged."""
    p = sender(tcp(WIDE))
    got = p.drain()
    before = p.info().cwnd
    for _ in range(20):
        p.send("A", ack=got[-1].end + 100 * MSS)
    assert p.info().cwnd == before


def after_loss(p):
    """In congestion avoidance with a threshold of 5 segments."""
    sender(p)
    p.drain()
    for _ in range(3):
        p.send("A", ack=1)
    high = p.drain()
    end = max(seg.end for seg in high)
    p.send("A", ack=end)
    got = p.drain()
    for _ in range(4):  # until the window is back at the threshold
        if p.info().cwnd >= 5 * MSS:
            break
        p.send("A", ack=got.pop(0).end)
        got += p.drain()
    return got


@pytest.mark.rows(34, 89)
def test_congestion_avoidance_one_segment_per_round_trip(tcp):
    p = tcp(WIDE)
    got = after_loss(p)
    assert p.info().ssthresh == 5 * MSS
    windows = []
    for _ in range(12):
        p.lab.advance(50 * MS)
        for seg in got:
            p.send("A", ack=seg.end)
        got = p.drain()
        windows.append(p.info().cwnd)
    growth = [b - a for a, b in itertools.pairwise(windows)]
    assert max(growth) <= MSS + MSS // 8
    assert MSS * 8 <= sum(growth) <= MSS * 12


@pytest.mark.rows(89)
def test_congestion_avoidance_ack_division(tcp):
    p = tcp(WIDE)
    got = after_loss(p)
    before = p.info().cwnd
    una = got[0].seq
    for i in range(1, MSS, 10):
        p.send("A", ack=una + i)
    assert p.info().cwnd <= before + MSS


def grown(tcp):
    """A connection whose window has grown with all that was sent and acknowledged."""
    p = tp.established(tcp(WIDE))
    p.send("A")
    p.write(150 * MSS)
    for _ in range(20):
        got = p.drain()
        if not got:
            break
        p.lab.advance(10 * MS)
        for seg in got:
            p.send("A", ack=seg.end)
    return p


@pytest.mark.rows(90)
def test_established_restart_after_idle(tcp):
    """After an RTO without sending, a burst is at most the initial window."""
    p = grown(tcp)
    assert p.info().send_queue == 0
    assert p.info().cwnd > 40 * MSS
    p.lab.advance(10 * SEC)
    p.write(100 * MSS)
    assert 1 <= len(p.drain()) <= 10


@pytest.mark.rows(90)
def test_established_no_restart_without_idle(tcp):
    p = grown(tcp)
    p.lab.advance(20 * MS)
    p.write(100 * MSS)
    assert len(p.drain()) > 30


@pytest.mark.rows(75, 87)
def test_established_flight_never_exceeds_the_window(tcp):
    """min(cwnd, peer's window), at every moment of slow start into a limited window."""
    p = tp.established(tcp())
    p.wnd = 20 * MSS
    p.send("A")
    p.write(200 * MSS)
    una = nxt = 1
    for _ in range(100):
        for seg in p.drain():
            nxt = max(nxt, seg.end)
            assert nxt - una <= 20 * MSS
        if una == nxt:
            break
        una = min(nxt, una + MSS)
        p.send("A", ack=una)


@pytest.mark.rows(87, 88)
def test_syn_timed_out_initial_window(tcp):
    """RFC 5681, 3.1: a SYN that was lost makes the initial window one segment."""
    p = tp.syn_sent(tcp())
    p.next_segment(2 * SEC)
    p.send("SA")
    p.drain()
    p.write(20 * MSS)
    assert len(p.drain()) == 1


def test_established_receiver_limited_window_is_used(tcp):
    """A tiny window does not freeze the sender once it opens."""
    p = tp.established(tcp())
    p.send("A", wnd=MSS)
    p.write(10 * MSS)
    p.expect("A", seq=1, len=MSS)
    p.send("A", wnd=65535)
    assert len(p.drain()) >= 9


def test_slow_start_echoes_of_congestion_mean_nothing(tcp):
    """G4: ECN was not agreed on: no segment says that it can be marked, ECE and CWR are not heard."""
    p = sender(tcp(WIDE))
    got = p.drain()
    for i, seg in enumerate(got):
        assert seg.raw.tos & 3 == 0
        assert not set(seg.flags) & {"E", "C"}
        p.send(("AE", "AC", "AEC")[i % 3], ack=seg.end)
        assert len(p.drain()) == 2
        assert p.info().cwnd == (11 + i) * MSS
