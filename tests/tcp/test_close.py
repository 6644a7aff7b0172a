# SPDX-License-Identifier: MIT
"""Closing connections, in every order, and what remains of them."""

from __future__ import annotations

import pytest
import tcp_peer as tp
from tcp_peer import LATE_NS, MS, PURE_ACK, SEC, errno_of

MSL_2_NS = 60 * SEC


def test_established_shutdown(tcp):
    p = tp.fin_wait_1(tcp())
    assert p.state == "FIN-WAIT-1"
    p.send("A")
    assert p.state == "FIN-WAIT-2"
    p.send("FA")
    p.expect(**PURE_ACK, seq=2, ack=2)
    assert p.state == "TIME-WAIT"


def test_established_shutdown_sends_what_was_written(tcp):
    """The FIN follows the last octet, on its segment where there is room."""
    p = tp.established(tcp())
    p.nodelay()
    p.write(2000)
    p.expect_data([1460, 540])
    p.write(100)
    p.shutdown()
    seen = p.drain()
    assert seen[-1].flags == "FA"
    assert seen[-1].end == 2102
    assert errno_of(lambda: p.sock.send(b"x")) == "EPIPE"


def test_established_shutdown_with_a_closed_window(tcp):
    """The FIN waits behind data that has no room."""
    p = tp.established(tcp())
    p.send("A", wnd=0)
    p.write(10)
    p.shutdown()
    p.expect_nothing()
    p.send("A", wnd=100)
    p.expect("FA", seq=1, len=10)


@pytest.mark.rows(30)
def test_fin_wait_2_data(tcp):
    """Half-close: the other direction goes on."""
    p = tp.fin_wait_2(tcp())
    for _ in range(5):
        p.send("A", data=1000)
    assert p.read() == 5000
    p.lab.advance(50 * MS)
    p.drain()
    p.send("FA", data=10)
    assert p.read() == 10
    assert p.at_eof()
    assert p.state == "TIME-WAIT"


@pytest.mark.rows(30)
def test_close_wait_write(tcp):
    p = tp.close_wait(tcp())
    assert p.at_eof()
    p.write(100)
    p.expect("A", seq=1, ack=2, len=100)
    p.send("A")
    p.shutdown()
    p.expect("FA", seq=101, ack=2)
    assert p.state == "LAST-ACK"
    p.send("A")
    assert p.state == "CLOSED"


@pytest.mark.rows(33)
def test_fin_wait_1_fin(tcp):
    """Simultaneous close: the FINs cross."""
    p = tp.closing(tcp())
    assert p.state == "CLOSING"
    p.send("A")
    p.expect_nothing()
    assert p.state == "TIME-WAIT"


@pytest.mark.rows(33)
def test_fin_wait_1_fin_that_acknowledges_ours(tcp):
    p = tp.fin_wait_1(tcp())
    p.send("FA", ack=2)
    p.expect(**PURE_ACK, seq=2, ack=2)
    assert p.state == "TIME-WAIT"


@pytest.mark.rows(33)
def test_closing_fin_again(tcp):
    """The peer did not see our ACK."""
    p = tp.closing(tcp())
    p.send("FA", seq=1, ack=1)
    p.expect("A", seq=2, ack=2)
    assert p.state == "CLOSING"


@pytest.mark.rows(33, 85)
def test_closing_fin_is_retransmitted(tcp):
    p = tp.closing(tcp())
    p.lab.advance(3 * SEC)
    assert p.expect("FA", seq=1, ack=2).len == 0
    p.send("A")
    assert p.state == "TIME-WAIT"


@pytest.mark.rows(82)
def test_last_ack_ack(tcp):
    p = tp.last_ack(tcp())
    assert p.state == "LAST-ACK"
    p.send("A")
    p.expect_nothing()
    assert p.state == "CLOSED"


def test_last_ack_fin_is_retransmitted(tcp):
    p = tp.last_ack(tcp())
    p.lab.advance(3 * SEC)
    p.expect("FA", seq=1, ack=2)


def test_last_ack_lost_ack_ends(tcp):
    """D9: the peer has forgotten the connection: its RST ends ours."""
    p = tp.last_ack(tcp())
    p.lab.advance(3 * SEC)
    p.drain()
    p.send("R")
    assert p.state == "CLOSED"


@pytest.mark.rows(31)
def test_time_wait_lasts_2_msl(tcp):
    p = tp.time_wait(tcp())
    assert p.stack.settings.msl_ms == 30_000
    p.lab.advance(MSL_2_NS - MS)
    assert p.state == "TIME-WAIT"
    assert p.stack.usage()["time_wait"] == 1
    p.lab.advance(MS + LATE_NS)
    assert p.state == "CLOSED"
    assert p.stack.usage()["time_wait"] == 0
    p.expect_nothing()


@pytest.mark.rows(31)
def test_time_wait_fin_again(tcp):
    """It is acknowledged, and 2 MSL begin anew."""
    p = tp.time_wait(tcp())
    p.lab.advance(50 * SEC)
    p.send("FA", seq=p.snd_nxt - 1)
    p.expect(**PURE_ACK, seq=2, ack=2)
    p.lab.advance(MSL_2_NS - MS)
    assert p.state == "TIME-WAIT"
    p.lab.advance(MS + LATE_NS)
    assert p.state == "CLOSED"


@pytest.mark.rows(31)
def test_time_wait_outlives_the_socket(tcp):
    p = tp.time_wait(tcp())
    p.close()
    assert p.state == "TIME-WAIT"
    p.lab.advance(MSL_2_NS + LATE_NS)
    assert p.state == "CLOSED"
    assert p.stack.usage()["tcbs"] == 0


@pytest.mark.rows(31)
def test_time_wait_configured(tcp):
    p = tp.time_wait(tcp(msl_ms=500))
    p.lab.advance(999 * MS)
    assert p.state == "TIME-WAIT"
    p.lab.advance(MS + LATE_NS)
    assert p.state == "CLOSED"


def test_time_wait_old_data(tcp):
    p = tp.time_wait(tcp())
    p.send("A", data=b"old", seq=p.snd_nxt - 3)
    p.expect(**PURE_ACK, seq=2, ack=2)
    assert p.state == "TIME-WAIT"


@pytest.mark.rows(30)
def test_established_close_with_unread_data(tcp):
    """RFC 9293, 3.6.1: data that nobody will read is told of with RST (RFC 2525, 2.17)."""
    p = tp.established(tcp())
    p.send("A", data=100)
    p.close()
    got = p.drain()
    assert got[-1].flags in ("R", "RA")
    assert got[-1].seq == 1
    assert p.state == "CLOSED"


@pytest.mark.rows(30)
def test_fin_wait_2_orphan_data(tcp):
    """Data for an application that has closed: RST, so that the peer does not take it for read."""
    p = tp.established(tcp())
    p.close()
    p.expect("FA", seq=1)
    p.send("A")
    assert p.state == "FIN-WAIT-2"
    p.send("A", data=100)
    got = p.drain()
    assert got[-1].flags in ("R", "RA")
    assert p.state == "CLOSED"


@pytest.mark.rows(30)
def test_fin_wait_1_orphan_data(tcp):
    p = tp.established(tcp())
    p.close()
    p.expect("FA", seq=1)
    p.send("A", data=100, ack=1)
    got = p.drain()
    assert got[-1].flags in ("R", "RA")
    assert p.state == "CLOSED"


def test_fin_wait_2_orphan_ends(tcp):
    """D9: a peer that never closes does not keep a connection without application for ever."""
    p = tp.established(tcp())
    p.close()
    p.expect("FA", seq=1)
    p.send("A")
    limit_ns = p.stack.settings.fin_wait2_ms * MS
    assert limit_ns > 0
    p.lab.advance(limit_ns - MS)
    assert p.state == "FIN-WAIT-2"
    p.lab.advance(MS + LATE_NS)
    assert p.state in ("CLOSED", "TIME-WAIT")
    p.lab.advance(MSL_2_NS + LATE_NS)
    assert p.state == "CLOSED"
    assert p.stack.usage()["tcbs"] == 0


def test_fin_wait_2_of_an_application_stays(tcp):
    """As long as the application holds it, a half-closed connection may wait for hours."""
    p = tp.fin_wait_2(tcp())
    p.lab.advance(3 * 3600 * SEC)
    assert p.state == "FIN-WAIT-2"
    p.send("A", data=10)
    assert p.read() == 10


def test_established_linger_0(tcp):
    p = tp.established(tcp())
    p.write(100)
    p.expect("A", len=100)
    with p.lab.counts(tcp_resets_sent=1):
        p.abort()
    got = p.expect(flags=tp.one_of("R", "RA"), seq=101, len=0)
    assert got.flags == "R" or got.ack == 1
    assert p.state == "CLOSED"
    p.expect_nothing(10 * SEC)


@pytest.mark.parametrize("make", [tp.fin_wait_2, tp.close_wait, tp.fin_wait_1])
def test_half_closed_linger_0(tcp, make):
    p = make(tcp())
    p.abort()
    p.expect(flags=tp.one_of("R", "RA"), seq=p.rcv_nxt)
    assert p.state == "CLOSED"


def test_time_wait_linger_0(tcp):
    """RFC 9293, 3.10.5: in TIME-WAIT nobody needs an RST any more."""
    p = tp.time_wait(tcp())
    p.abort()
    p.expect_nothing()


def test_syn_sent_close(tcp):
    """RFC 9293, 3.10.4: closed without a word."""
    p = tp.syn_sent(tcp())
    p.close()
    assert p.state == "CLOSED"
    p.expect_nothing(10 * SEC)
    assert p.stack.usage()["tcbs"] == 0


def test_listen_close_resets_what_was_not_accepted(tcp):
    """Nobody will ever read from a connection that waits to be accepted."""
    p = tp.syn_received(tcp())
    p.send("A")
    assert p.state == "ESTABLISHED"
    p.listener.close()
    p.lab.collect()
    p.lab.advance(200 * SEC)
    assert p.drain()
    assert p.state == "CLOSED"
    assert p.stack.usage()["tcbs"] == 0


def test_established_close_then_everything_is_given_back(tcp):
    p = tp.established(tcp())
    baseline = p.stack.usage()
    p.send("A", data=100)
    assert p.read() == 100
    p.write(100)
    p.drain()
    p.send("A")
    p.close()
    p.expect("FA")
    p.send("FA")
    p.lab.advance(MSL_2_NS + SEC)
    usage = p.stack.usage()
    assert usage["tcbs"] == baseline["tcbs"] - 1
    assert usage["timers"] == 0
    assert usage["time_wait"] == usage["ooo_blocks"] == usage["sack_ranges"] == 0


@pytest.mark.parametrize("make", [tp.fin_wait_1, tp.fin_wait_2, tp.close_wait, tp.closing])
def test_closing_states_rst(tcp, make):
    p = make(tcp())
    p.send("R")
    p.expect_nothing()
    assert p.state == "CLOSED"


def test_close_wait_fin_again(tcp):
    p = tp.close_wait(tcp())
    p.send("FA", seq=1)
    p.expect(**PURE_ACK, seq=1, ack=2)
    assert p.state == "CLOSE-WAIT"


def test_close_wait_read_after_fin(tcp):
    """What came before the FIN is still delivered, then the end, as often as it is asked for."""
    p = tp.established(tcp())
    p.send("FA", data=100)
    assert p.read(50) == 50
    assert p.read() == 50
    assert p.at_eof()
    assert p.at_eof()


def test_last_ack_all_octets_delivered_after_close(tcp):
    """close() with unsent data does not lose it: it goes out, then the FIN."""
    p = tp.established(tcp())
    p.send("A", wnd=1000)
    p.write(3000)
    p.close()
    total = 1
    for _ in range(20):
        got = p.recv()
        if got is None:
            p.lab.advance(SEC)
            continue
        total = max(total, got.end)
        p.send("A", wnd=1000)
        if got.flags == "FA":
            break
    assert total == 3002
    assert p.state == "FIN-WAIT-2"


@pytest.mark.parametrize(
    "make",
    [
        tp.syn_sent,
        tp.syn_received,
        tp.syn_received_active,
        tp.established,
        tp.fin_wait_1,
        tp.fin_wait_2,
        tp.close_wait,
        tp.closing,
        tp.last_ack,
        tp.time_wait,
    ],
)
@pytest.mark.parametrize("write", [0, 5000])
def test_any_state_silence_ends_it(tcp, make, write):
    """D9: application gone, peer gone: nothing remains, whatever was going on."""
    p = make(tcp())
    if write and p.state in ("ESTABLISHED", "CLOSE-WAIT"):
        p.write(write)
    for sock in (p.sock, p.listener):
        if sock is not None:
            sock.close()
    p.lab.advance(1000 * SEC)
    usage = p.stack.usage()
    assert usage["tcbs"] == usage["half_open"] == usage["time_wait"] == usage["timers"] == 0
    assert p.state == "CLOSED"


def test_time_wait_gives_way_to_new_connections(tcp):
    """D10: ten times as many as there is room for: the oldest are forgotten, nobody is refused."""
    p = tcp(flows_max=4)
    listener = p.lab.listen()
    for port in range(1000, 1040):
        each = p.lab.peer(port=port)
        each.listener = listener
        tp.time_wait(each)
        each.sock.close()
        each.lab.collect()
        assert p.stack.usage()["tcbs"] <= 4
    assert p.lab.stat("drop_syn_table") == 0
    assert p.stack.usage()["time_wait"] == 4
    p.lab.advance(MSL_2_NS + SEC)
    assert p.stack.usage()["tcbs"] == p.stack.usage()["time_wait"] == 0
