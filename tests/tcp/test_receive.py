# SPDX-License-Identifier: MIT
"""Receiving data: order, acknowledgements, the window."""

from __future__ import annotations

import itertools
import socket

import pytest
import tcp_peer as tp
from tcp_peer import LATE_NS, MS, PURE_ACK, SEC, Offer, pattern, would_block

MSS = 1460
DELACK_NS = 40 * MS


@pytest.mark.rows(39, 40)
def test_established_one_segment(tcp):
    """The ACK waits 40 ms for company."""
    p = tp.established(tcp())
    start = p.lab.now
    p.send("A", data=100)
    p.expect_at(start + DELACK_NS, **PURE_ACK, seq=1, ack=101)
    assert p.lab.stat("tcp_delayed_acks") == 1
    p.expect_nothing(SEC)
    assert p.read() == 100


@pytest.mark.rows(40)
def test_delayed_ack_is_below_half_a_second(tcp):
    assert 0 < tcp().stack.settings.delack_us < 500_000


@pytest.mark.rows(41)
def test_established_every_second_full_segment(tcp):
    p = tp.established(tcp())
    for i in range(1, 9):
        p.send("A", data=MSS)
        if i % 2:
            p.expect_nothing()
        else:
            p.expect(**PURE_ACK, ack=i * MSS + 1)
    assert p.read() == 8 * MSS


@pytest.mark.rows(41)
def test_established_small_segments_add_up(tcp):
    """Two full segments' worth of small ones is acknowledged no later than the timer."""
    p = tp.established(tcp())
    for _ in range(40):
        p.send("A", data=MSS // 10)
    p.lab.advance(DELACK_NS + LATE_NS)
    assert p.drain()[-1].ack == 40 * (MSS // 10) + 1


def test_established_delack_0(tcp):
    p = tp.established(tcp(delack_us=0))
    p.send("A", data=1)
    p.expect(**PURE_ACK, ack=2)


def test_established_quickack(tcp):
    p = tp.established(tcp())
    p.option(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    p.send("A", data=1)
    p.expect(**PURE_ACK, ack=2)


@pytest.mark.rows(36, 39)
def test_established_data_carries_the_ack(tcp):
    p = tp.established(tcp())
    p.send("A", data=100)
    p.write(50)
    p.expect("A", seq=1, ack=101, len=50)
    p.expect_nothing(100 * MS)


@pytest.mark.rows(36)
def test_established_burst_is_acknowledged_together(tcp):
    """All queued segments are processed before an ACK is sent: one for the burst, not for each."""
    p = tp.established(tcp())
    frames = [p.make("A", data=MSS, seq=1 + i * MSS) for i in range(16)]
    p.lab.inject_together(*frames)
    p.snd_nxt += 16 * MSS
    got = p.drain()
    assert got[-1].ack == 16 * MSS + 1
    assert len(got) <= 8
    assert p.read() == 16 * MSS


@pytest.mark.rows(37, 38)
def test_established_out_of_order(tcp):
    """Kept; a duplicate ACK at once; the gap filled, all of it is acknowledged at once."""
    p = tp.established(tcp())
    p.send("A", data=100, seq=201)
    p.expect(**PURE_ACK, ack=1)
    p.send("A", data=100, seq=101)
    p.expect(**PURE_ACK, ack=1)
    assert p.read() == 0
    p.send("A", data=100, seq=1)
    p.expect(**PURE_ACK, ack=301)
    assert p.read() == 300


@pytest.mark.rows(37)
def test_established_partly_filled_gap(tcp):
    """RFC 5681, 4.2: an ACK at once while a gap is being filled."""
    p = tp.established(tcp())
    p.send("A", data=100, seq=201)
    p.expect(**PURE_ACK, ack=1)
    p.send("A", data=100)
    p.expect(**PURE_ACK, ack=101)


@pytest.mark.rows(37)
def test_established_all_orders_of_four(tcp):
    for i, order in enumerate(itertools.permutations(range(4))):
        if i == 0:
            p = tp.established(tcp())
        base = p.snd_nxt
        for piece in order:
            p.send("A", data=50, seq=base + piece * 50)
        p.snd_nxt = base + 200
        assert p.read() == 200
        p.lab.advance(50 * MS)
        assert p.drain()[-1].ack == base + 200


@pytest.mark.rows(37)
@pytest.mark.parametrize(
    ("pieces", "total"),
    [
        ([(101, 100), (51, 100), (1, 60)], 200),  # overlaps on the left
        ([(51, 50), (101, 50), (1, 300)], 300),  # one that covers both
        ([(11, 5), (31, 5), (21, 5), (9, 30), (1, 8)], 38),
        ([(101, 10), (101, 100), (1, 100)], 200),  # longer with the same start
    ],
)
def test_established_overlapping_pieces(tcp, pieces, total):
    p = tp.established(tcp())
    for seq, size in pieces:
        p.send("A", data=size, seq=seq)
    assert p.read() == total
    p.lab.advance(50 * MS)
    assert p.drain()[-1].ack == total + 1


def test_established_retransmission_with_other_bytes(tcp):
    """C10: what came first counts, and is delivered once."""
    p = tp.established(tcp())
    p.send("A", data=100)
    p.send("A", data=b"X" * 100, seq=1)
    p.send("A", data=b"Y" * 50 + pattern(100, 50), seq=51)
    p.snd_nxt = 151
    assert p.read() == 150


def test_established_out_of_order_retransmission_with_other_bytes(tcp):
    p = tp.established(tcp())
    p.send("A", data=100, seq=101)
    p.send("A", data=b"X" * 100, seq=101)
    p.send("A", data=100, seq=1)
    assert p.read() == 200


def test_established_old_duplicate(tcp):
    """An answer at once, so that a peer that lost our ACK goes on."""
    p = tp.established(tcp())
    p.send("A", data=100)
    p.lab.advance(50 * MS)
    p.drain()
    with p.lab.counts(drop_tcp_seq=1):
        p.send("A", data=100, seq=1)
    p.expect(**PURE_ACK, ack=101)
    assert p.read() == 100


@pytest.mark.parametrize(("seq", "size"), [(51, 100), (1, 101), (100, 2)])
def test_established_left_edge(tcp, seq, size):
    """C8: what was received before is cut off."""
    p = tp.established(tcp())
    p.send("A", data=100)
    p.send("A", data=size, seq=seq)
    assert p.read() == seq + size - 1


def test_established_right_edge(tcp):
    """C8: what lies beyond the window is cut off, unacknowledged."""
    p = tp.established(tcp(rcv_buf_bytes=8192))
    room = p.info().rcv_wnd
    at = 1
    while at + MSS <= room:
        p.send("A", data=MSS, seq=at)
        at += MSS
    p.send("A", data=room + 1 - at + 100, seq=at)
    p.lab.advance(50 * MS)
    last = p.drain()[-1]
    assert last.ack <= room + 1
    assert p.read() == last.ack - 1


def test_established_wholly_beyond_the_window(tcp):
    p = tp.established(tcp(rcv_buf_bytes=8192))
    room = p.info().rcv_wnd
    with p.lab.counts(drop_tcp_seq=1):
        p.send("A", data=10, seq=1 + room)
    p.expect(**PURE_ACK, ack=1)


def test_established_peer_fills_the_window(tcp):
    """I8: back-pressure: the window closes, no octet that was acknowledged is lost."""
    p = tp.established(tcp(rcv_buf_bytes=16384))
    edge = 0
    for _ in range(100):
        info = p.info()
        if info.rcv_wnd == 0:
            break
        p.send("A", data=min(MSS, info.rcv_wnd))
        p.lab.advance(50 * MS)
        for got in p.drain():
            edge = max(edge, got.ack + got.wnd)
            assert got.ack + got.wnd >= edge, "the right edge moved left"
    assert p.info().rcv_wnd == 0
    sent = p.snd_nxt - 1
    assert sent <= 16384
    drops = ("drop_tcp_seq", "drop_tcp_nobuf")
    before = sum(p.lab.stat(name) for name in drops)
    p.send("A", data=1, seq=p.snd_nxt)  # a window probe: answered, not taken
    assert sum(p.lab.stat(name) for name in drops) == before + 1
    p.expect(**PURE_ACK, ack=p.snd_nxt, wnd=0)
    assert p.read() == sent


@pytest.mark.rows(42)
def test_zero_window_slow_reader(tcp):
    """Silly window: no update before it opens by a segment or half of the buffer."""
    p = tp.established(tcp(rcv_buf_bytes=16384))
    while (room := p.info().rcv_wnd) > 0:
        p.send("A", data=min(MSS, room))
        p.lab.advance(50 * MS)
        p.drain()
    total = p.snd_nxt - 1
    read = 0
    while read < total:
        read += p.read(100)
        for got in p.drain():
            assert got.ack == total + 1
            assert got.wnd == 0 or got.wnd >= min(MSS, 16384 // 2)
    assert p.info().rcv_wnd >= 8192


@pytest.mark.rows(42)
def test_zero_window_reader_frees_all(tcp):
    """The window update comes by itself."""
    p = tp.established(tcp(rcv_buf_bytes=16384))
    while (room := p.info().rcv_wnd) > 0:
        p.send("A", data=min(MSS, room))
        p.lab.advance(50 * MS)
        p.drain()
    p.read()
    got = p.drain()
    assert got
    assert got[-1].wnd >= 8192


@pytest.mark.rows(42, 47)
@pytest.mark.parametrize("chunk", [1, 7, 700, 3000])
def test_established_right_edge_never_moves_left(tcp, chunk):
    p = tp.established(tcp(rcv_buf_bytes=8192))
    edge = 1 + p.syn.wnd
    for _ in range(60):
        room = edge - p.snd_nxt
        if room > 0:
            p.send("A", data=min(MSS, room))
        p.read(chunk)
        p.lab.advance(50 * MS)
        for got in p.drain():
            assert got.ack + got.wnd >= edge
            edge = got.ack + got.wnd
    assert p.snd_nxt > 8192


@pytest.mark.rows(46)
def test_established_window_of_65535(tcp):
    """The window is unsigned: with 0xFFFF, more than 32767 octets are on their way."""
    p = tp.established(tcp())
    p.write(400_000)
    flights = []
    for _ in range(5):  # slow start: until the window is the limit
        got = p.drain()
        flights.append(sum(seg.len for seg in got))
        for seg in got:
            p.send("A", ack=seg.end, wnd=0xFFFF)
    assert max(flights) <= 0xFFFF
    assert max(flights) > 0xFFFF - MSS


@pytest.mark.rows(46)
def test_syn_window_is_not_scaled(tcp):
    p = tp.syn_received(tcp(Offer(wscale=7), rcv_buf_bytes=1 << 20))
    assert p.syn.wnd == 65535
    p.send("A")
    p.accept()
    p.send("A", data=1)
    p.lab.advance(50 * MS)
    assert p.expect(**PURE_ACK).wnd > 65535


def test_established_fin_over_a_gap(tcp):
    """C9: the FIN waits until everything before it is there."""
    p = tp.established(tcp())
    p.send("FA", data=50, seq=51)
    p.expect(**PURE_ACK, ack=1)
    assert p.state == "ESTABLISHED"
    p.send("A", data=50, seq=1)
    p.expect(**PURE_ACK, ack=102)
    assert p.state == "CLOSE-WAIT"
    assert p.read() == 100
    assert p.at_eof()


def test_established_bare_fin_over_a_gap(tcp):
    p = tp.established(tcp())
    p.send("FA", seq=51)
    p.drain()
    assert p.state == "ESTABLISHED"
    p.send("A", data=50, seq=1)
    got = p.drain()
    if not got or got[-1].ack == 51:  # a bare FIN need not be kept: the peer sends it again
        p.send("FA", seq=51)
        p.lab.advance(50 * MS)
        got = p.drain()
    assert got[-1].ack == 52
    assert p.state == "CLOSE-WAIT"


def test_established_data_beyond_the_fin(tcp):
    """C9: what a broken peer sends behind its FIN is no part of the stream."""
    p = tp.established(tcp())
    p.send("A", data=50, seq=61)
    p.send("FA", data=50, seq=1)
    p.drain()
    p.send("A", data=10, seq=51)
    p.send("A", data=100, seq=52)
    p.drain()
    assert p.state == "CLOSE-WAIT"
    assert p.read() == 50
    assert p.at_eof()


def test_established_ooo_ranges_are_bounded(tcp):
    """D7: every other octet, and never the gap."""
    p = tp.established(tcp(ooo_ranges_max=16, ooo_blocks_max=64))
    for i in range(400):
        p.lab.inject(p.make("A", data=1, seq=3 + 2 * i))
    usage = p.stack.usage()
    assert usage["ooo_ranges"] <= 16
    assert usage["ooo_blocks"] <= 64
    p.drain()
    # All of it sent again in order, the stream is whole.
    p.send("A", data=900, seq=1)
    assert p.read() == 900
    p.lab.advance(50 * MS)
    assert p.stack.usage()["ooo_blocks"] == 0
    assert p.stack.usage()["ooo_ranges"] == 0


def test_established_ooo_pool_is_bounded(tcp):
    """Memory for all connections together; what does not fit is not acknowledged."""
    p = tp.established(tcp(ooo_blocks_max=8, rcv_buf_bytes=1 << 18))
    for i in range(1, 40):
        p.lab.inject(p.make("A", data=MSS, seq=1 + i * MSS))
    assert p.stack.usage()["ooo_blocks"] <= 8
    p.drain()
    for i in range(40):
        p.send("A", data=MSS, seq=1 + i * MSS)
        p.lab.advance(50 * MS)
    assert p.drain()[-1].ack == 40 * MSS + 1
    assert p.read() == 40 * MSS


@pytest.mark.parametrize("first", ["data", "fin"])
def test_established_data_across_the_fin(tcp, first):
    """C9: octets held, or arriving later, that lie on both sides of the FIN: those behind it go."""
    p = tp.established(tcp())
    steps = {
        "data": [("A", 100, 41), ("FA", 50, 1)],
        "fin": [("FA", 20, 31), ("A", 100, 11), ("A", 10, 1)],
    }
    for flags, size, seq in steps[first]:
        p.send(flags, data=size, seq=seq)
    p.lab.advance(50 * MS)
    assert p.drain()[-1].ack == 52
    assert p.state == "CLOSE-WAIT"
    assert p.read() == 50
    assert p.at_eof()
    assert p.stack.usage()["ooo_blocks"] == 0


@pytest.mark.rows(37)
def test_established_ooo_pool_prefers_what_comes_sooner(tcp):
    """D7: the pool is full of far data; nearer data replaces it or is dropped: the stream is whole."""
    p = tp.established(tcp(ooo_blocks_max=4, ooo_ranges_max=16))
    for i in (12, 11, 10, 9, 8, 2):
        p.send("A", data=MSS, seq=1 + i * MSS)
    assert p.stack.usage()["ooo_blocks"] <= 4
    p.drain()
    for _ in range(3):
        for i in range(13):
            p.send("A", data=MSS, seq=1 + i * MSS)
    p.lab.advance(50 * MS)
    assert p.drain()[-1].ack == 1 + 13 * MSS
    assert p.read() == 13 * MSS
    assert p.stack.usage()["ooo_blocks"] == 0


def test_established_rcvbuf_option(tcp):
    p = tp.established(tcp())
    p.option(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = 0
    for _ in range(80):
        room = p.info().rcv_wnd
        if room == 0:
            break
        p.send("A", data=min(MSS, room))
        sent += min(MSS, room)
        p.lab.advance(50 * MS)
    # The window already announced is not taken back.
    assert sent <= 65535 + 4096
    assert p.info().rcv_wnd == 0
    assert p.read() == sent
    assert p.info().rcv_wnd <= 4096


def test_established_nothing_to_read(tcp):
    p = tp.established(tcp())
    assert would_block(lambda: p.sock.recv(1))


@pytest.mark.rows(54)
def test_established_data_without_push_is_delivered(tcp):
    """Nothing is held back for want of a PSH."""
    p = tp.established(tcp())
    p.send("A", data=10)
    assert p.read() == 10
    p.send("PA", data=10)
    assert p.read() == 10
