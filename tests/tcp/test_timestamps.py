# SPDX-License-Identifier: MIT
"""Window scale, timestamps and PAWS (RFC 7323)."""

from __future__ import annotations

import itertools

import pytest
import tcp_peer as tp
from tcp_peer import FULL, MS, PURE_ACK, SEC, TS, Offer
from tcp_segment import opt_mss, opt_ts, opt_wscale

WS = Offer(wscale=3)


# --- window scale --------------------------------------------------------------------------------


@pytest.mark.rows(111)
def test_syn_window_scale(tcp):
    assert tp.syn_sent(tcp()).syn.wscale is not None
    assert tp.syn_sent(tcp(wscale=False)).syn.wscale is None
    assert tp.syn_received(tcp(WS)).syn.wscale is not None
    assert tp.syn_received(tcp()).syn.wscale is None
    assert tp.syn_received(tcp(WS, wscale=False)).syn.wscale is None


@pytest.mark.rows(111)
def test_syn_window_scale_covers_the_buffer(tcp):
    p = tp.syn_sent(tcp(rcv_buf_bytes=1 << 24))
    assert 65535 << p.syn.wscale >= 1 << 24
    assert p.syn.wscale <= 14


@pytest.mark.rows(111)
def test_established_peer_window_is_scaled(tcp):
    p = tp.established(tcp(WS))
    p.send("A", wnd=1000)
    assert p.info().snd_wnd == 8000
    p.send("A", wnd=0xFFFF)
    assert p.info().snd_wnd == 0xFFFF << 3


@pytest.mark.rows(111)
def test_syn_window_of_the_peer_is_not_scaled(tcp):
    p = tp.syn_sent(tcp(WS))
    p.send("SA", wnd=1000)
    tp.agree(p, p.syn.wscale, False)
    p.expect(**PURE_ACK)
    assert p.info().snd_wnd == 1000


@pytest.mark.rows(111)
def test_established_without_window_scale(tcp):
    """Both must offer it: B5."""
    p = tp.established_active(tcp())
    p.send("A", wnd=1000)
    assert p.info().snd_wnd == 1000
    p = tp.established(tcp(WS, wscale=False))
    p.send("A", wnd=1000)
    assert p.info().snd_wnd == 1000


@pytest.mark.rows(111)
@pytest.mark.parametrize("shift", [15, 16, 100, 255])
@pytest.mark.parametrize("make", [tp.established, tp.established_active])
def test_syn_window_scale_above_14(tcp, make, shift):
    """Taken for 14."""
    p = make(tcp(Offer(wscale=shift)))
    p.send("A", wnd=3)
    assert p.info().snd_wnd == 3 << 14


@pytest.mark.rows(111)
def test_syn_window_scale_0(tcp):
    p = tp.established(tcp(Offer(wscale=0)))
    p.send("A", wnd=1000)
    assert p.info().snd_wnd == 1000
    p.send("A", data=1)
    p.lab.advance(50 * MS)
    assert p.expect(**PURE_ACK).wnd > 65535


@pytest.mark.rows(111)
def test_established_window_scale_on_data_is_ignored(tcp):
    p = tp.established(tcp(WS))
    p.send("A", data=10, wnd=1000, opts=opt_wscale(9))
    assert p.info().snd_wnd == 8000


@pytest.mark.rows(16, 111)
def test_established_mss_on_data_is_ignored(tcp):
    p = tp.established(tcp())
    p.send("A", data=10, opts=opt_mss(100))
    p.write(3000)
    p.drain()
    assert p.info().mss == 1460


@pytest.mark.rows(47, 111)
def test_established_scaled_window_is_not_retracted(tcp):
    """Rounding to the scale's unit never moves the right edge to the left."""
    p = tp.established(tcp(Offer(wscale=7), rcv_buf_bytes=1 << 20))
    edge = 0
    for i in range(300):
        p.send("A", data=1 + i % 3)
        if i % 7 == 0:
            p.read()
        p.lab.advance(50 * MS)
        for got in p.drain():
            # RFC 7323, 2.4: a window may shrink by less than one unit, never more.
            unit = 1 << p.shift_in
            assert got.ack + got.wnd > edge - unit
            edge = max(edge, got.ack + got.wnd)


# --- timestamps ----------------------------------------------------------------------------------


@pytest.mark.rows(112)
def test_syn_timestamps(tcp):
    assert tp.syn_sent(tcp()).syn.ts is not None
    assert tp.syn_sent(tcp()).syn.ts[1] == 0
    assert tp.syn_sent(tcp(timestamps=False)).syn.ts is None
    assert tp.syn_received(tcp(TS)).syn.ts[1] == 1000
    assert tp.syn_received(tcp()).syn.ts is None
    assert tp.syn_received(tcp(TS, timestamps=False)).syn.ts is None


@pytest.mark.rows(112)
@pytest.mark.parametrize("make", [tp.established, tp.established_active])
def test_established_every_segment_has_timestamps(tcp, make):
    p = make(tcp(TS))
    p.write(5000)
    p.send("A", data=100)
    p.send("A", data=100, seq=5000)
    p.lab.advance(50 * MS)
    p.shutdown()
    p.lab.advance(3 * SEC)
    got = p.drain()
    assert len(got) > 5
    assert all(seg.ts for seg in got)


@pytest.mark.rows(112)
def test_established_rst_may_go_without(tcp):
    p = tp.established(tcp(TS))
    p.abort()
    assert "R" in p.drain()[-1].flags


@pytest.mark.rows(112)
def test_established_active_peer_without_timestamps(tcp):
    p = tp.established_active(tcp())
    p.write(10)
    assert p.expect("A", len=10).ts is None


@pytest.mark.rows(112, 114)
def test_established_clock(tcp):
    """RFC 7323, 5.4: between 1 ms and 1 s a tick; here it moves with virtual time."""
    p = tp.established(tcp(TS))
    p.nodelay()
    p.write(1)
    first = p.expect("A").ts[0]
    p.lab.advance(10 * SEC)
    p.drain()
    p.write(1)
    ticks = (p.drain()[-1].ts[0] - first) % (1 << 32)
    assert 10 <= ticks <= 10_000


@pytest.mark.rows(114)
def test_timestamp_offsets_differ(tcp):
    """E4: no common clock shines through."""
    p = tcp(TS)
    listener = p.lab.listen(backlog=200)
    values = []
    for port in range(1000, 1064):
        other = p.lab.peer(TS, port=port)
        other.listener = listener
        values.append(tp.syn_received(other).syn.ts[0])
    spread = sorted((b - a) % (1 << 32) for a, b in itertools.pairwise(values))
    assert len(set(values)) == 64
    assert spread[len(spread) // 2] > 1 << 20


@pytest.mark.rows(112)
def test_established_echo_of_the_first_of_two(tcp):
    """RFC 7323, 4.3: with delayed ACKs the echo is that of the earlier segment."""
    p = tp.established(tcp(TS))
    p.send("A", data=100, ts=(2000, p.ts_recent))
    p.send("A", data=100, ts=(2005, p.ts_recent))
    p.lab.advance(50 * MS)
    p.expect(**PURE_ACK, ack=201, ts=lambda ts: ts[1] == 2000)


@pytest.mark.rows(112, 113)
def test_established_echo_over_a_gap(tcp):
    """RFC 7323, 4.3: out-of-order segments do not change it; the one that fills the gap does."""
    p = tp.established(tcp(TS))
    p.send("A", data=100, ts=(2000, 1))
    p.lab.advance(50 * MS)
    p.expect(**PURE_ACK, ts=lambda ts: ts[1] == 2000)
    p.send("A", data=100, seq=201, ts=(2010, 1))
    p.expect(**PURE_ACK, ts=lambda ts: ts[1] == 2000)
    p.send("A", data=100, seq=101, ts=(2007, 1))
    p.expect(**PURE_ACK, ack=301, ts=lambda ts: ts[1] == 2007)


@pytest.mark.rows(112)
def test_established_segment_without_timestamps(tcp):
    """B9: dropped, unless it is an RST."""
    p = tp.established(tcp(TS))
    with p.lab.counts(drop_tcp_no_ts=1):
        p.send("A", data=b"x" * 10, seq=p.snd_nxt, ts=False)
    assert p.read() == 0
    p.send("R", ts=False)
    assert p.state == "CLOSED"


@pytest.mark.rows(112)
def test_established_timestamps_not_negotiated(tcp):
    """B9: ignored, however old they look."""
    p = tp.established(tcp())
    p.send("A", data=10, ts=(5, 5))
    p.send("A", data=10, ts=(3, 5))
    assert p.read() == 20


@pytest.mark.rows(113)
@pytest.mark.parametrize("older", [1, 1000, (1 << 31) - 1])
def test_established_old_timestamp(tcp, older):
    """PAWS: acknowledged and dropped."""
    p = tp.established(tcp(TS))
    with p.lab.counts(drop_tcp_paws=1):
        p.send("A", data=b"x" * 10, seq=p.snd_nxt, ts=(p.tsval - older, p.ts_recent))
    p.expect(**PURE_ACK, ack=1)
    assert p.read() == 0


@pytest.mark.rows(113)
def test_established_equal_timestamp(tcp):
    p = tp.established(tcp(TS))
    p.send("A", data=10)
    p.send("A", data=10)
    assert p.read() == 20


@pytest.mark.rows(113)
def test_established_old_timestamp_on_rst(tcp):
    """RST is exempt."""
    p = tp.established(tcp(TS))
    p.send("R", ts=(p.tsval - 100, 0))
    assert p.state == "CLOSED"


@pytest.mark.rows(113)
def test_established_timestamp_wraps(tcp):
    p = tcp(TS)
    p.tsval = (1 << 32) - 2
    tp.established(p)
    for _ in range(5):
        p.tsval = (p.tsval + 1) % (1 << 32)
        p.send("A", data=10)
    assert p.read() == 50
    assert p.lab.stat("drop_tcp_paws") == 0


@pytest.mark.rows(113)
def test_established_old_timestamp_after_24_days(tcp):
    """TS.Recent is stale then: an idle connection is not dead (RFC 7323, 5.5)."""
    p = tp.established(tcp(TS))
    p.tsval = 1_000_000
    p.send("A", data=10)
    p.lab.advance(50 * MS)
    p.drain()
    p.lab.advance(25 * 24 * 3600 * SEC)
    p.tsval -= 5000
    p.send("A", data=10)
    assert p.read() == 20


@pytest.mark.rows(113)
def test_established_ts_recent_is_not_taken_from_the_future(tcp):
    """Only a segment that covers Last.ACK.sent moves TS.Recent: C5's twin."""
    p = tp.established(tcp(TS))
    p.send("A", data=10, seq=1000, ts=(p.tsval + 500_000, p.ts_recent))
    p.drain()
    p.send("A", data=10)
    assert p.read() == 10
    assert p.lab.stat("drop_tcp_paws") == 0


@pytest.mark.rows(113)
def test_established_unacceptable_segment_does_not_move_ts_recent(tcp):
    p = tp.established(tcp(TS))
    p.send("A", data=10, seq=1 << 28, ts=(p.tsval + 500_000, p.ts_recent))
    p.drain()
    p.send("A", data=10)
    assert p.read() == 10


@pytest.mark.rows(113)
@pytest.mark.parametrize("jump", [1 << 16, 1 << 30, (1 << 31) - 1])
def test_established_timestamp_jumps_ahead(tcp, jump):
    """B8: as far as the comparison allows it is newer, and taken."""
    p = tp.established(tcp(TS))
    p.tsval = (p.tsval + jump) % (1 << 32)
    p.send("A", data=10)
    assert p.read() == 10


@pytest.mark.rows(83, 112)
@pytest.mark.parametrize("echo", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_established_echo_that_was_never_sent(tcp, echo):
    """B8, G6: no round-trip time is measured from it."""
    p = tp.established(tcp(TS))
    p.write(100)
    got = p.expect("A")
    p.lab.advance(10 * MS)
    assert (got.ts[0] - echo) % (1 << 32) > 1000
    p.send("A", ts=(p.tsval, echo))
    assert p.info().srtt_us < SEC // 1000
    assert p.info().rto_us <= 1_000_000


@pytest.mark.rows(112)
def test_listen_two_timestamps(tcp):
    """B3: either of them counts, once and for all."""
    p = tp.listen(tcp(TS))
    p.send("S", opts=opt_ts(5, 0) + b"\1\1" + opt_ts(9, 0))
    assert p.expect("SA", ack=1).ts[1] in (5, 9)


@pytest.mark.rows(94, 111, 112)
def test_syn_received_all_options(tcp):
    p = tp.established(tcp(FULL))
    p.send("A", data=100, seq=201)
    got = p.expect(**PURE_ACK, ack=1, sack=[(201, 301)])
    assert got.ts
    assert got.wnd > 65535
