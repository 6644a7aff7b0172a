# SPDX-License-Identifier: MIT
"""What is sent again: its bounds, its FIN, across wraps of the clocks, and when a NIC is full."""

from __future__ import annotations

import socket
import struct

import pytest
import tcp_peer as tp
from tcp_peer import MS, PURE_ACK, SEC, US, Offer, errno_of, would_block

MSS = 1460
FOUR_HOURS_NS = 4 * 3600 * SEC


def last(p):
    return p.drain()[-1]


@pytest.mark.rows(85)
@pytest.mark.parametrize("acked", [1, 50, 99])
def test_established_ack_inside_a_segment(tcp, acked):
    """The rest of the segment is sent again, from the octet that is missing."""
    p = tp.established(tcp())
    p.write(100)
    p.expect("A", len=100)
    p.send("A", ack=1 + acked)
    got = p.next_segment(2 * SEC)
    assert (got.seq, got.len) == (1 + acked, 100 - acked)


@pytest.mark.rows(85)
def test_established_small_segments_may_be_joined(tcp):
    """Several small segments that were lost come back as few."""
    p = tp.established(tcp())
    p.nodelay()
    for _ in range(5):
        p.write(100)
        p.expect("A", len=100)
    got = p.next_segment(2 * SEC)
    assert got.seq == 1
    assert got.len in (100, 500)


def test_fin_wait_1_data_and_fin_lost(tcp):
    p = tp.established(tcp())
    p.write(100)
    p.expect("A", len=100)
    p.shutdown()
    p.expect("FA", seq=101, len=0)
    p.next_segment(2 * SEC)
    p.send("A", ack=101)
    seen = p.drain() or [p.next_segment(10 * SEC)]
    assert seen[-1].flags == "FA"
    assert seen[-1].end == 102
    p.send("A", ack=102)
    assert p.state == "FIN-WAIT-2"


def test_fin_wait_1_fin_only_lost(tcp):
    p = tp.established(tcp())
    p.write(100)
    p.shutdown()
    p.drain()
    p.send("A", ack=101)
    assert p.state == "FIN-WAIT-1"
    got = p.next_segment(10 * SEC)
    assert (got.flags, got.seq, got.len) == ("FA", 101, 0)


def test_fin_wait_1_fast_retransmit_with_fin(tcp):
    """The first of three segments and FIN is lost."""
    p = tp.established(tcp(tp.SACK))
    p.write(4 * MSS)
    p.shutdown()
    sent = p.drain()
    assert sent[-1].flags == "FA"
    fin = sent[-1].end
    p.send("A", ack=1, sack=[(1 + MSS, fin)])
    got = p.expect("A", seq=1, len=MSS)
    assert got.end == 1 + MSS
    p.send("A", ack=fin)
    assert p.state == "FIN-WAIT-2"


def test_close_wait_data_lost(tcp):
    p = tp.close_wait(tcp())
    p.write(100)
    p.expect("A", len=100)
    got = p.next_segment(2 * SEC)
    assert (got.seq, got.len) == (1, 100)


def test_established_retransmission_has_the_present_ack(tcp):
    """An old acknowledgement is not sent again with the old data."""
    p = tp.established(tcp())
    p.write(100)
    p.expect("A", len=100, ack=1)
    p.send("A", data=50, ack=1)
    p.lab.advance(50 * MS)
    p.expect(**PURE_ACK, ack=51)
    assert p.next_segment(2 * SEC).ack == 51


def test_established_retransmission_is_pushed(tcp):
    p = tp.established(tcp())
    p.write(100)
    p.expect("A", len=100)
    assert p.next_segment(2 * SEC).push


@pytest.mark.parametrize(
    "boundary_ns",
    [
        (1 << 31) * US,
        (1 << 32) * US,
        (1 << 31) * MS,
        (1 << 32) * MS,
        (1 << 32) * 1024,
        1 << 42,
        1 << 48,
    ],
    ids=["2^31 us", "2^32 us", "2^31 ms", "2^32 ms", "2^32 ticks", "2^42 ns", "2^48 ns"],
)
def test_established_clock_wraps(tcp, boundary_ns):
    """H3: timers, round-trip times and timestamps across every clock's wrap."""
    p = tp.listen(tcp(tp.TS))
    p.lab.advance_to(boundary_ns - 100 * MS)
    tp.established(p)
    p.write(100)
    first = p.expect("A", len=100)
    got = p.expect_at(first.t_ns + 200 * MS, "A", seq=1, len=100, late_ns=50 * US)
    assert got.ts
    p.send("A", ack=101)
    p.write(100)
    got = p.expect("A", seq=101)
    p.lab.advance(30 * MS)
    p.tsval += 30
    p.send("A", data=10, ack=201, ts=(p.tsval, got.ts[0]))
    assert p.info().srtt_us <= 40_000
    p.lab.advance(50 * MS)
    p.expect(**PURE_ACK, ack=11)
    assert p.read() == 10


def test_established_transmit_queue_is_full():
    """D2: what the NIC did not take counts as lost: it comes later, nothing breaks."""
    p = tp.Lab(queue_frames=8).peer(Offer(wscale=7))
    try:
        tp.established(p)
        p.write(40 * MSS)
        total = 1
        for _ in range(400):
            for seg in p.drain():
                if seg.seq <= total:
                    total = max(total, seg.end)
            p.send("A", ack=total)
            if total == 1 + 40 * MSS:
                break
            p.lab.advance(100 * MS)
        assert total == 1 + 40 * MSS
    finally:
        p.lab.close()


def test_listen_no_connection_free(tcp):
    """The table is full: a SYN is dropped and counted; room again later."""
    p = tp.established(tcp(flows_max=4))
    others = [p.lab.peer(port=1000 + i) for i in range(6)]
    for other in others:
        other.listener = p.listener
        other.send("S")
    assert p.lab.stat("drop_syn_table") == 3
    assert sum(1 for other in others if other.recv()) == 3
    p.send("R")
    late = p.lab.peer(port=2000)
    late.listener = p.listener
    late.send("S")
    late.expect("SA")


def test_connect_no_connection_free(tcp):
    p = tp.established(tcp(flows_max=1))
    sock = p.lab.socket()
    errno_of(lambda: sock.connect((tp.PEER_IP, 99)))
    name = errno_of(lambda: sock.connect((tp.PEER_IP, 99)))
    assert name in ("ENOMEM", "ENOBUFS", "EAGAIN", "EADDRNOTAVAIL", "ENFILE", "ENOSPC")
    p.send("A", data=10)
    assert p.read() == 10


def test_established_linger_timeout(tcp):
    """close() with SO_LINGER of 2 s: what is not acknowledged by then is given up with RST."""
    p = tp.established(tcp())
    p.write(100)
    p.option(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 2))
    p.close()
    p.drain()
    p.lab.advance(1900 * MS)
    assert p.state == "FIN-WAIT-1"
    p.drain()
    p.lab.advance(200 * MS)
    assert p.state == "CLOSED"
    assert "R" in last(p).flags


def test_established_data_before_accept(tcp):
    """A client that speaks first is heard, however late the server accepts."""
    p = tp.syn_received(tcp())
    p.send("A")
    p.send("A", data=1000)
    p.send("A", data=500)
    p.lab.advance(10 * SEC)
    p.accept()
    assert p.read() == 1500


def test_close_wait_before_accept(tcp):
    p = tp.syn_received(tcp())
    p.send("A", data=100)
    p.send("FA")
    p.lab.advance(SEC)
    p.accept()
    assert p.read() == 100
    assert p.at_eof()
    p.write(10)
    assert last(p).len == 10


def test_established_rst_before_accept(tcp):
    """The listener survives; the connection is accepted as reset, or not at all."""
    p = tp.syn_received(tcp())
    p.send("A")
    p.send("R")
    assert p.state == "CLOSED"
    would_block(p.listener.accept)
    other = p.lab.peer(port=p.port + 1)
    other.listener = p.listener
    tp.established(other)


def test_zero_window_fin_from_the_peer(tcp):
    """A FIN right behind a full window: taken at once or when there is room, never lost."""
    p = tp.established(tcp(rcv_buf_bytes=4096))
    while (room := p.info().rcv_wnd) > 0:
        p.send("A", data=min(MSS, room))
        p.lab.advance(50 * MS)
    p.drain()
    total = p.snd_nxt - 1
    p.send("FA")
    p.drain()
    assert p.read() == total
    p.lab.advance(50 * MS)
    p.drain()
    p.send("FA", seq=total + 1)
    p.lab.advance(50 * MS)
    assert last(p).ack == total + 2
    assert p.state == "CLOSE-WAIT"
    assert p.at_eof()


def test_established_out_of_order_data_and_a_full_window(tcp):
    """Data beyond a gap, right up to the edge: the gap's own data still fits."""
    p = tp.established(tcp(rcv_buf_bytes=8192))
    edge = p.info().rcv_wnd
    at = 1 + MSS
    while at < 1 + edge:
        size = min(MSS, 1 + edge - at)
        p.send("A", data=size, seq=at)
        at += size
    p.drain()
    p.send("A", data=MSS, seq=1)
    p.lab.advance(50 * MS)
    assert last(p).ack == 1 + edge
    assert p.read() == edge


def test_idle_connection_lives_for_days(tcp):
    p = tp.established(tcp(tp.TS))
    for _ in range(6):
        p.lab.advance(FOUR_HOURS_NS)
    p.tsval += 24 * 3600 * 1000
    p.send("A", data=10)
    assert p.read() == 10
    assert p.lab.stat("tx_frames") <= 3
