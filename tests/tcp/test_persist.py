# SPDX-License-Identifier: MIT
"""Zero windows, shrinking windows, and their probes (RFC 9293, 3.8.6)."""

from __future__ import annotations

import pytest
import tcp_peer as tp
from tcp_peer import LATE_NS, MS, PURE_ACK, SEC, between, errno_of

MSS = 1460
RTO_MIN_NS = 200 * MS
#: A round-trip time of 0 was measured, so that the RTO is its minimum.
RTO_MAX_NS = 60 * SEC


def zero_window(p, size=1000):
    """Data waits for a window."""
    tp.established(p)
    p.send("A", wnd=0)
    p.start = p.lab.now
    p.write(size)
    p.expect_nothing()
    return p


@pytest.mark.rows(50, 51)
def test_zero_window_probe_schedule(tcp):
    """The first probe after one RTO, then exponentially, up to the cap."""
    p = zero_window(tcp(rto_max_us=60_000_000))
    at, interval = p.start, RTO_MIN_NS
    for _ in range(14):
        at += interval
        got = p.expect_at(at, seq=1, late_ns=LATE_NS * 4)
        assert got.len >= 1
        at = got.t_ns
        p.send("A", ack=1, wnd=0)
        interval = min(2 * interval, RTO_MAX_NS)
    assert p.lab.stat("tcp_probes") == 14
    assert interval == RTO_MAX_NS


@pytest.mark.rows(52)
def test_zero_window_answered_probes_go_on_for_ever(tcp):
    """As long as the peer answers, the connection lives: 70 probes, more than an hour."""
    p = zero_window(tcp())
    for _ in range(70):
        p.next_segment(130 * SEC)
        p.send("A", ack=1, wnd=0)
    assert p.state == "ESTABLISHED"
    assert p.lab.now > 3600 * SEC
    p.send("A", ack=1, wnd=65535)
    assert p.expect("A", seq=1).len >= 999


@pytest.mark.rows(52)
def test_zero_window_probes_that_are_taken(tcp):
    """The peer takes the probe's octet each time but opens no window."""
    p = zero_window(tcp())
    got_all = 1
    for _ in range(70):
        got = p.next_segment(130 * SEC)
        assert got.seq == got_all
        got_all = got.end
        p.send("A", ack=got.end, wnd=0)
        p.drain()
    assert p.state == "ESTABLISHED"


@pytest.mark.rows(52, 123)
def test_zero_window_unanswered_probes_end(tcp):
    """A peer that is gone: given up after the user timeout."""
    p = zero_window(tcp())
    limit_ns = p.stack.settings.user_timeout_ms * MS
    p.lab.advance_to(p.start + limit_ns - SEC)
    assert p.state == "ESTABLISHED"
    p.lab.advance_to(p.start + limit_ns + 2 * RTO_MAX_NS)
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.send(b"x")) == "ETIMEDOUT"
    assert p.lab.stat("tcp_timeouts") == 1


@pytest.mark.rows(50)
def test_zero_window_lost_update(tcp):
    """The update is lost: the probe asks for it."""
    p = zero_window(tcp())
    got = p.next_segment(SEC)
    p.send("A", ack=got.end, wnd=65535)
    assert p.expect("A", seq=got.end, len=1000 - got.len).push


@pytest.mark.rows(50)
def test_zero_window_probe_data_is_not_lost(tcp):
    """The peer did not take the probe: it is sent again when the window opens."""
    p = zero_window(tcp())
    p.next_segment(SEC)
    p.send("A", ack=1, wnd=65535)
    total = 1
    for _ in range(4):
        for got in p.drain():
            assert got.seq <= total
            total = max(total, got.end)
        p.lab.advance(SEC)
    assert total == 1001


@pytest.mark.rows(50)
def test_zero_window_update(tcp):
    p = zero_window(tcp())
    p.send("A", wnd=65535)
    p.expect("A", seq=1, len=1000)


@pytest.mark.rows(50)
def test_zero_window_in_the_middle(tcp):
    """The window closes exactly at the end of what was sent."""
    p = tp.established(tcp())
    p.write(20 * MSS)
    end = p.drain()[-1].end
    p.send("A", ack=end, wnd=0)
    got = p.next_segment(2 * SEC)
    assert got.seq == end
    assert got.len >= 1
    p.send("A", ack=end, wnd=65535)
    assert p.drain()[-1].end > end + MSS


@pytest.mark.rows(50)
def test_zero_window_fin_is_probed(tcp):
    """Nothing but the FIN is left: it goes, window or not."""
    p = tp.established(tcp())
    p.send("A", wnd=0)
    p.shutdown()
    got = p.next_segment(2 * SEC)
    assert got.flags == "FA"
    p.send("A", wnd=0)
    assert p.state == "FIN-WAIT-2"


@pytest.mark.rows(53)
def test_zero_window_peer_data(tcp):
    """Our sending is blocked; receiving goes on, and acknowledgements are heard."""
    p = zero_window(tcp())
    p.send("A", data=100, wnd=0)
    assert p.read() == 100
    p.lab.advance(50 * MS)
    p.expect("A", ack=101)


@pytest.mark.rows(53)
def test_receive_zero_window_ack_and_rst(tcp):
    """With our window closed, an acceptable segment's ACK and RST still count."""
    p = tp.established(tcp(rcv_buf_bytes=4096))
    p.write(100)
    p.expect("A", len=100)
    while (room := p.info().rcv_wnd) > 0:
        p.send("A", data=min(MSS, room), ack=1)
        p.lab.advance(20 * MS)
        p.drain()
    p.send("A", ack=101)
    assert p.info().send_queue == 0
    p.send("R")
    assert p.state == "CLOSED"


@pytest.mark.rows(48, 49)
def test_established_peer_shrinks_its_window(tcp):
    """C16: no new data beyond the edge; what is inside is retransmitted; nothing times out."""
    p = tp.established(tcp())
    p.write(20 * MSS)
    end = p.drain()[-1].end
    assert end == 10 * MSS + 1
    edge = 1 + 3 * MSS
    p.send("A", ack=1, wnd=3 * MSS)
    p.expect_nothing()
    seen = set()
    for _ in range(3):
        got = p.next_segment(30 * SEC)
        assert got.seq < edge
        seen.add(got.seq)
    assert 1 in seen
    p.send("A", ack=edge, wnd=20 * MSS)
    total = edge
    for _ in range(60):
        for got in p.drain():
            assert got.end <= edge + 20 * MSS
            total = max(total, got.end)
        p.send("A", ack=total, wnd=65535)
        if total == 20 * MSS + 1:
            break
        p.lab.advance(SEC)
    assert total == 20 * MSS + 1


@pytest.mark.rows(48, 49)
def test_established_window_shrunk_to_zero_below_what_is_in_flight(tcp):
    """C16: answered probes keep the connection; then all of it arrives."""
    p = tp.established(tcp())
    p.write(5 * MSS)
    p.expect_data([MSS] * 5)
    p.send("A", ack=1 + MSS, wnd=0)
    for _ in range(30):
        got = p.next_segment(130 * SEC)
        assert got.seq <= 1 + 5 * MSS
        p.send("A", ack=1 + MSS, wnd=0)
    assert p.state == "ESTABLISHED"
    total = 1 + MSS
    for _ in range(40):
        p.send("A", ack=total, wnd=65535)
        got = p.drain()
        total = max([total, *(seg.end for seg in got if seg.seq <= total)])
        if total == 5 * MSS + 1 and not got:
            break
        p.lab.advance(SEC)
    assert total == 5 * MSS + 1


@pytest.mark.rows(48)
@pytest.mark.rows(48)
def test_established_ack_to_a_peer_that_has_shrunk_its_window(tcp):
    """Its data are acknowledged with a number that it accepts: Linux drops an ACK beyond its window."""
    p = tp.established(tcp())
    p.write(4 * MSS)
    p.expect_data([MSS] * 4)
    p.send("A", ack=1, wnd=MSS)
    p.drain()
    p.send("A", data=MSS, ack=1, wnd=MSS)
    p.send("A", data=MSS, ack=1, wnd=MSS)
    acks = [got for got in p.drain() if got.len == 0]
    assert acks
    assert acks[-1].ack == 1 + 2 * MSS
    assert 1 <= acks[-1].seq <= 1 + MSS


def test_established_window_update_that_shrinks_by_one(tcp):
    p = tp.established(tcp())
    p.write(2 * MSS)
    p.expect_data([MSS] * 2)
    p.send("A", wnd=65534)
    p.send("A", wnd=65533)
    p.write(100)
    p.expect("A", seq=2 * MSS + 1, len=100)


def test_zero_window_probe_from_the_peer(tcp):
    """Keep-alive style: an old octet is answered with the present state."""
    p = tp.established(tcp())
    p.send("A", data=b"x", seq=0)
    p.expect(**PURE_ACK, seq=1, ack=1, wnd=between(1, 65535))


@pytest.mark.rows(123)
def test_zero_window_orphan_ends(tcp):
    """D6: a peer that answers every probe and never opens its window holds nothing without an owner."""
    p = zero_window(tcp())
    p.close()
    limit_ns = p.stack.settings.user_timeout_ms * MS
    end = p.lab.now + limit_ns + 2 * RTO_MAX_NS
    while p.state != "CLOSED":
        assert p.lab.now < end
        p.lab.advance(SEC)
        for _ in p.drain():
            if p.state != "CLOSED":
                p.send("A", ack=1, wnd=0)
    assert p.stack.usage()["tcbs"] == 0
