# SPDX-License-Identifier: MIT
"""Segments that an attacker, or an old duplicate, puts into a connection (RFC 5961, 9293, 1337)."""

from __future__ import annotations

import pytest
import tcp_peer as tp
from tcp_peer import MS, PURE_ACK, SEC, errno_of

WINDOW = 65535


@pytest.mark.rows(116)
def test_established_rst_exact(tcp):
    p = tp.established(tcp())
    with p.lab.counts(tcp_resets_received=1, tcp_resets_sent=0):
        p.send("R")
    p.expect_nothing(SEC)
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.recv(1)) == "ECONNRESET"


@pytest.mark.rows(28)
def test_established_rst_with_data(tcp):
    p = tp.established(tcp())
    p.send("R", data=b"why I reset you")
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.recv(1)) == "ECONNRESET"


@pytest.mark.rows(116)
@pytest.mark.parametrize("make", [tp.established, tp.fin_wait_1, tp.fin_wait_2])
@pytest.mark.parametrize("flags", ["R", "RA"])
@pytest.mark.parametrize("distance", [1, 2, 1000])
def test_synchronised_rst_inside_the_window(tcp, make, flags, distance):
    p = make(tcp())
    state = p.state
    with p.lab.counts(tcp_challenge_acks=1, tcp_resets_received=0):
        p.send(flags, seq=p.snd_nxt + distance)
    p.expect(**PURE_ACK, seq=p.rcv_nxt, ack=p.snd_nxt)
    assert p.state == state


@pytest.mark.rows(116)
@pytest.mark.parametrize("distance", [-1, -1000, 1 << 27, 1 << 30, -(1 << 30)])
def test_established_rst_outside_the_window(tcp, distance):
    p = tp.established(tcp())
    with p.lab.counts(drop_tcp_seq=1, tcp_challenge_acks=0, tcp_resets_received=0):
        p.send("R", seq=p.snd_nxt + distance)
    p.expect_nothing(SEC)
    assert p.state == "ESTABLISHED"


@pytest.mark.rows(116, 119)
def test_established_blind_rst_sweep(tcp):
    """C1: one RST per window over the whole space does not hit, and draws few answers."""
    p = tp.established(tcp())
    step = p.info().rcv_wnd or WINDOW
    for at in range(p.snd_nxt + 1, p.snd_nxt + (1 << 32) - 1, max(step, 1 << 22)):
        p.lab.inject(p.make("R", seq=at))
    assert p.state == "ESTABLISHED"
    assert len(p.drain()) <= 1


@pytest.mark.rows(53)
def test_established_rst_at_zero_window(tcp):
    p = tp.established(tcp(rcv_buf_bytes=4096))
    fill_window(p)
    p.send("R")
    assert p.state == "CLOSED"


def fill_window(p):
    """Send until the stack announces a window of 0."""
    while (room := p.info().rcv_wnd) > 0:
        p.send("A", data=min(1460, room))
        p.lab.advance(50 * MS)
        p.drain()


@pytest.mark.rows(28)
def test_syn_sent_rst_without_acceptable_ack(tcp):
    """C2."""
    p = tp.syn_sent(tcp())
    p.send("R", seq=0)
    p.send("RA", seq=0, ack=0)
    p.send("RA", seq=0, ack=2)
    p.expect_nothing()
    assert p.state == "SYN-SENT"


@pytest.mark.rows(115)
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_time_wait_rst(tcp, flags):
    """C3: no assassination (RFC 1337)."""
    p = tp.time_wait(tcp())
    p.send(flags)
    assert p.state == "TIME-WAIT"
    p.lab.advance(59 * SEC)
    assert p.state == "TIME-WAIT"


@pytest.mark.rows(117)
@pytest.mark.parametrize(
    "make", [tp.established, tp.fin_wait_1, tp.fin_wait_2, tp.close_wait, tp.closing, tp.last_ack]
)
@pytest.mark.parametrize("distance", [-1, 0, 1, 1 << 20, 1 << 31])
@pytest.mark.parametrize("flags", ["S", "SA"])
def test_synchronised_syn(tcp, make, distance, flags):
    """C4: whatever its sequence number."""
    p = make(tcp())
    state = p.state
    with p.lab.counts(tcp_challenge_acks=1):
        p.send(flags, seq=p.snd_nxt + distance)
    p.expect(**PURE_ACK, seq=p.rcv_nxt, ack=p.snd_nxt)
    p.expect_nothing()
    assert p.state == state


@pytest.mark.rows(119)
def test_established_challenge_acks_are_throttled(tcp):
    p = tp.established(tcp())
    for _ in range(1000):
        p.send("S", seq=p.snd_nxt)
    sent = len(p.drain())
    assert 1 <= sent <= 20
    assert p.lab.stat("drop_challenge_limited") == 1000 - sent
    p.lab.advance(5 * SEC)
    p.send("S", seq=p.snd_nxt)
    p.expect(**PURE_ACK)


@pytest.mark.rows(119)
def test_established_challenge_ack_limit_is_per_connection(tcp):
    """C12: what one connection uses up tells nothing about another one (CVE-2016-5696)."""
    p = tp.established(tcp())
    other = p.lab.peer(port=p.port + 1)
    other.listener = p.listener
    tp.established(other)
    for _ in range(1000):
        p.send("S", seq=p.snd_nxt)
    other.send("S", seq=other.snd_nxt)
    other.expect(**PURE_ACK)


@pytest.mark.rows(73, 118)
@pytest.mark.parametrize("ack", [1 - WINDOW - 1, -(1 << 30), -(1 << 31) + 2])
def test_established_data_with_too_old_ack(tcp, ack):
    """C5: acceptable only from SND.UNA - MAX.SND.WND on."""
    p = tp.established(tcp())
    with p.lab.counts(drop_tcp_ack=1):
        p.send("A", data=b"evil", ack=ack, seq=p.snd_nxt)
    p.expect(**PURE_ACK, seq=1, ack=1)
    assert p.read() == 0


@pytest.mark.rows(73, 118)
@pytest.mark.parametrize("ack", [1 - WINDOW, 0, 1])
def test_established_data_with_old_ack(tcp, ack):
    p = tp.established(tcp())
    p.send("A", data=4, ack=ack)
    assert p.read() == 4


@pytest.mark.rows(78)
@pytest.mark.parametrize("beyond", [1, 2, 1 << 20, (1 << 31) - 1])
def test_established_ack_of_what_was_not_sent(tcp, beyond):
    """C6, G3: answered with an ACK, and nothing is believed."""
    p = tp.established(tcp())
    p.write(100)
    p.expect("A", len=100)
    with p.lab.counts(drop_tcp_ack=1):
        p.send("A", data=b"evil", ack=101 + beyond, seq=1)
    p.expect(**PURE_ACK, seq=101, ack=1)
    assert p.read() == 0
    assert p.info().snd_una == (p.stack_isn + 1) % (1 << 32)


@pytest.mark.rows(79)
def test_established_old_segment_does_not_move_the_window(tcp):
    """C7: SND.WND changes only when WL1 < SEQ, or WL1 = SEQ and WL2 <= ACK."""
    p = tp.established(tcp())
    p.send("A", data=10, wnd=5000)
    assert p.info().snd_wnd == 5000
    p.send("A", data=b"", seq=p.snd_nxt - 1, wnd=9000)  # before WL1, and not acceptable
    assert p.info().snd_wnd == 5000
    p.drain()


@pytest.mark.rows(79)
def test_established_old_ack_does_not_move_the_window(tcp):
    p = tp.established(tcp())
    p.write(100)
    p.expect("A", len=100)
    p.send("A", ack=101, wnd=5000)
    assert p.info().snd_wnd == 5000
    p.send("A", ack=51, wnd=9000)  # same SEQ, older ACK
    assert p.info().snd_wnd == 5000
    p.send("A", ack=101, wnd=4000)  # same SEQ, same ACK: an update
    assert p.info().snd_wnd == 4000
    p.send("A", ack=101, wnd=6000)
    assert p.info().snd_wnd == 6000


WARS = {
    "old sequence number": {"seq": -100},
    "sequence number beyond the window": {"seq": 1 << 28},
    "acknowledges what was not sent": {"ack": 5000},
    "acknowledges what is long past": {"ack": -(1 << 28)},
    "old timestamp": {"ts": (1, 0)},
}


@pytest.mark.rows(119)
@pytest.mark.parametrize("fields", WARS.values(), ids=WARS.keys())
def test_established_ack_war_converges(tcp, fields):
    """C11: a peer that answers every ACK of ours with the same unacceptable segment."""
    p = tp.established(tcp(tp.TS))
    fields = {"seq": p.snd_nxt, **fields}
    p.send("A", **fields)
    answers = 0
    for _ in range(2000):
        if not p.recv():
            break
        answers += 1
        p.send("A", **fields)
    assert answers <= 50
    assert p.state == "ESTABLISHED"
    p.lab.advance(2 * SEC)
    p.drain()
    p.send("A", data=10)
    assert p.read() == 10


@pytest.mark.rows(32, 115)
def test_time_wait_syn(tcp):
    """C15, RFC 6191 without timestamps: a larger sequence number opens anew."""
    p = tp.time_wait(tcp())
    with p.lab.counts(tcp_time_wait_reused=1):
        p.send("S", seq=p.snd_nxt + 1000)
    p.expect("SA", ack=p.snd_nxt + 1001)
    assert p.state == "SYN-RECEIVED"


@pytest.mark.rows(32, 115)
def test_time_wait_syn_with_old_sequence_number(tcp):
    p = tp.time_wait(tcp())
    p.send("S", seq=p.snd_nxt - 1)
    p.expect(**PURE_ACK, seq=2, ack=2)
    assert p.state == "TIME-WAIT"


@pytest.mark.rows(32, 115)
def test_time_wait_new_connection_has_a_larger_isn(tcp):
    """The new connection's numbers begin beyond all that the old one used."""
    p = tcp(isn=None)
    tp.established(p)
    p.write(1000)
    p.expect("A", len=1000)
    p.send("A")
    p.shutdown()
    p.expect("FA")
    p.send("A")
    p.send("FA")
    p.expect(**PURE_ACK)
    assert p.state == "TIME-WAIT"
    old_isn, last = p.stack_isn, p.rcv_nxt
    p.send("S", seq=p.snd_nxt + 5)
    got = p.expect("SA", ack=p.snd_nxt + 6)
    assert last < (got.raw.raw_seq - old_isn) % (1 << 32) < 1 << 31


@pytest.mark.rows(32, 115)
@pytest.mark.parametrize(("newer", "reused"), [(1, True), (0, False), (-1, False)])
def test_time_wait_syn_with_timestamp(tcp, newer, reused):
    """RFC 6191: with timestamps a larger one decides (an equal one only with a larger SEQ)."""
    p = tp.time_wait(tcp(tp.TS))
    p.tsval += newer
    seq = p.snd_nxt - 1 if newer == 0 else p.snd_nxt - 100 if newer > 0 else p.snd_nxt - 1
    p.send("S", seq=seq, ts=(p.tsval, 0))
    if reused:
        p.expect("SA", ack=seq + 1)
        assert p.state == "SYN-RECEIVED"
    else:
        p.expect("A", seq=2, ack=2)
        assert p.state == "TIME-WAIT"
