# SPDX-License-Identifier: MIT
"""Loss recovery without SACK: fast retransmit, NewReno, limited transmit (RFC 5681, 6582, 3042)."""

from __future__ import annotations

import pytest
import tcp_peer as tp
from tcp_peer import MS, SEC, Offer

MSS = 1460


def seq_of(segment):
    """Sequence number of a segment, counted from 0."""
    return 1 + segment * MSS


def in_flight(p, segments=10, total=60):
    """The initial window is out."""
    tp.established(p)
    p.write(total * MSS)
    p.expect_data([MSS] * segments)
    p.expect_nothing()
    return p


def dup(p, count=1, ack=1):
    for _ in range(count):
        p.send("A", ack=ack)


@pytest.mark.rows(92)
def test_established_limited_transmit(tcp):
    """One new segment on each of the first two duplicate ACKs."""
    p = in_flight(tcp())
    dup(p)
    p.expect("A", seq=seq_of(10), len=MSS)
    p.expect_nothing()
    dup(p)
    p.expect("A", seq=seq_of(11), len=MSS)
    p.expect_nothing()
    assert p.lab.stat("tcp_limited_transmits") == 2
    assert p.info().cwnd == 10 * MSS


@pytest.mark.rows(92)
def test_established_limited_transmit_keeps_to_the_window(tcp):
    p = tp.established(tcp())
    p.write(60 * MSS)
    p.expect_data([MSS] * 10)
    p.wnd = 10 * MSS
    p.send("A", ack=1)  # a window update, no duplicate
    dup(p, 2)
    p.expect_nothing()


@pytest.mark.rows(87, 93)
def test_established_third_duplicate_ack(tcp):
    """Fast retransmit; ssthresh is half the flight without limited transmit (RFC 5681, 3.2)."""
    p = in_flight(tcp())
    dup(p, 2)
    p.drain()
    dup(p)
    p.expect("A", seq=1, len=MSS)
    p.expect_nothing()
    assert p.info().ssthresh == 5 * MSS
    assert p.lab.stat("tcp_fast_recoveries") == 1
    assert p.lab.stat("tcp_retransmits") == 1


@pytest.mark.rows(93)
def test_fast_recovery_more_duplicate_ack(tcp):
    """Each one inflates the window by a segment: new data once it exceeds the 12 that are out."""
    p = in_flight(tcp())
    dup(p, 3)
    p.drain()
    sent = []
    for k in range(4, 12):
        dup(p)
        sent.append((k, [seg.seq for seg in p.drain()]))
    want = [(k, [] if k < 8 else [seq_of(12 + k - 8)]) for k in range(4, 12)]
    assert sent == want


@pytest.mark.rows(93)
def test_fast_recovery_full_ack(tcp):
    """Out of recovery with a deflated window."""
    p = in_flight(tcp())
    dup(p, 3)
    p.drain()
    p.send("A", ack=seq_of(12))
    info = p.info()
    assert MSS <= info.cwnd <= 6 * MSS
    assert info.ssthresh == 5 * MSS
    assert sum(seg.len for seg in p.drain()) <= 6 * MSS


@pytest.mark.rows(93)
def test_fast_recovery_partial_ack(tcp):
    """Segments 0 and 3 are lost: the partial ACK has the next hole retransmitted at once."""
    p = in_flight(tcp())
    dup(p, 3)
    p.drain()
    p.send("A", ack=seq_of(3))
    got = p.expect("A", seq=seq_of(3), len=MSS)
    assert all(seg.seq >= seq_of(12) for seg in p.drain())
    assert got.t_ns == p.lab.now
    p.send("A", ack=seq_of(12))
    assert p.lab.stat("tcp_fast_recoveries") == 1
    assert p.lab.stat("tcp_rto") == 0


@pytest.mark.rows(93)
def test_fast_recovery_many_holes(tcp):
    """One hole per round trip, without timeout."""
    p = in_flight(tcp())
    dup(p, 3)
    p.drain()
    for hole in (2, 4, 6, 8):
        p.lab.advance(20 * MS)
        p.send("A", ack=seq_of(hole))
        assert p.drain()[0].seq == seq_of(hole)
    assert p.lab.stat("tcp_rto") == 0


@pytest.mark.rows(93)
def test_fast_recovery_no_second_entry(tcp):
    """Duplicate ACKs for what was sent before the loss was seen do not halve the window again."""
    p = in_flight(tcp())
    dup(p, 3)
    p.drain()
    p.send("A", ack=seq_of(5))
    p.drain()
    dup(p, 3, ack=seq_of(5))
    p.drain()
    assert p.info().ssthresh == 5 * MSS
    assert p.lab.stat("tcp_fast_recoveries") == 1


@pytest.mark.rows(87, 93)
def test_established_duplicate_ack_after_timeout(tcp):
    """RFC 6582, 3.2: duplicates that the retransmission itself causes start no fast recovery."""
    p = in_flight(tcp())
    p.next_segment(2 * SEC)
    for _ in range(5):
        p.send("A", ack=1)
    assert all(seg.seq != 1 for seg in p.drain())
    assert p.lab.stat("tcp_fast_recoveries") == 0


@pytest.mark.rows(87)
def test_established_timeout(tcp):
    """One segment is the window, half the flight the threshold; then slow start."""
    p = in_flight(tcp())
    p.next_segment(2 * SEC)
    info = p.info()
    assert info.cwnd == MSS
    assert info.ssthresh == 5 * MSS
    p.expect_nothing()
    p.send("A", ack=seq_of(1))
    assert [seg.seq for seg in p.drain()] == [seq_of(1), seq_of(2)]
    assert p.info().cwnd == 2 * MSS


@pytest.mark.rows(87)
def test_established_second_timeout_keeps_ssthresh(tcp):
    """RFC 5681, 3.1: it is set on the first timeout of a segment, and held on further ones."""
    p = in_flight(tcp())
    p.next_segment(2 * SEC)
    p.next_segment(4 * SEC)
    p.next_segment(8 * SEC)
    assert p.info().ssthresh == 5 * MSS
    assert p.info().cwnd == MSS


@pytest.mark.rows(87)
def test_established_timeout_of_a_small_flight(tcp):
    p = tp.established(tcp())
    p.write(MSS)
    p.expect("A")
    p.next_segment(2 * SEC)
    assert p.info().ssthresh == 2 * MSS


@pytest.mark.rows(91)
def test_established_window_updates_are_no_duplicates(tcp):
    p = in_flight(tcp())
    for i in range(6):
        p.send("A", ack=1, wnd=60000 + i)
    p.expect_nothing()
    assert p.lab.stat("tcp_retransmits") == 0


@pytest.mark.rows(91)
def test_established_data_segments_are_no_duplicates(tcp):
    p = in_flight(tcp())
    for _ in range(6):
        p.send("A", data=10, ack=1)
    p.lab.advance(50 * MS)
    assert all(seg.len == 0 for seg in p.drain())
    assert p.lab.stat("tcp_retransmits") == 0


@pytest.mark.rows(91)
def test_established_old_acks_are_no_duplicates(tcp):
    p = in_flight(tcp())
    p.send("A", ack=seq_of(4))
    p.drain()
    for _ in range(6):
        p.send("A", ack=seq_of(2))
    p.expect_nothing()
    assert p.lab.stat("tcp_retransmits") == 0


@pytest.mark.rows(91)
def test_established_nothing_in_flight(tcp):
    p = tp.established(tcp())
    dup(p, 10)
    p.expect_nothing()
    p.write(MSS)
    p.expect("A", seq=1)
    dup(p, 2)
    p.expect_nothing()
    assert p.lab.stat("tcp_retransmits") == 0


@pytest.mark.rows(91)
def test_established_fin_is_no_duplicate(tcp):
    p = in_flight(tcp())
    dup(p, 2)
    p.drain()
    p.send("FA", ack=1)
    assert p.lab.stat("tcp_retransmits") == 0


@pytest.mark.rows(93)
def test_established_two_duplicate_acks_and_progress(tcp):
    """Mere reordering."""
    p = in_flight(tcp())
    dup(p, 2)
    p.drain()
    p.send("A", ack=seq_of(3))
    p.drain()
    dup(p, 2, ack=seq_of(3))
    p.drain()
    assert p.lab.stat("tcp_retransmits") == 0


@pytest.mark.rows(93)
def test_fast_recovery_duplicate_ack_spoofing(tcp):
    """G2: what a thousand forged duplicates inflate is bounded by what was in flight."""
    p = tcp(Offer(wscale=7))
    tp.established(p)
    p.send("A")
    p.write(400 * MSS)
    p.expect_data([MSS] * 10)
    dup(p, 1000)
    new = [seg for seg in p.drain() if seg.seq >= seq_of(10)]
    assert len(new) <= 2 * 12


@pytest.mark.rows(35, 93)
def test_fast_recovery_lost_retransmission(tcp):
    """The retransmission is lost too: the timer does it."""
    p = in_flight(tcp())
    dup(p, 3)
    p.drain()
    dup(p, 4)
    p.drain()
    got = p.next_segment(2 * SEC)
    assert got.seq == 1
    assert p.info().cwnd == MSS


@pytest.mark.rows(34, 93)
@pytest.mark.parametrize("lost", [(0,), (0, 1), (3,), (9,), (0, 9), tuple(range(10)), (2, 5, 8)])
def test_established_any_loss_is_repaired(tcp, lost):
    """Whatever of the first flight is lost, all of it arrives."""
    p = tp.established(tcp())
    total = 30
    p.write(total * MSS)
    have, missing = set(), set(lost)
    nxt = 0
    for _ in range(400):
        got = p.recv()
        if got is None:
            if nxt == total:
                break
            p.lab.advance(10 * MS)
            continue
        segment = (got.seq - 1) // MSS
        if segment in missing:
            missing.remove(segment)
            continue
        have.add(segment)
        while nxt in have:
            nxt += 1
        p.send("A", ack=seq_of(nxt))
    assert nxt == total
    assert p.lab.stat("tcp_retransmits") <= len(lost) + 10
    assert p.info().cwnd >= MSS
