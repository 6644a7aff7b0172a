# SPDX-License-Identifier: MIT
"""Retransmission timer, R1, R2, user timeout, keep-alive: in virtual time against closed forms."""

from __future__ import annotations

import socket

import pytest
import tcp_peer as tp
from tcp_peer import LATE_NS, MS, PURE_ACK, SEC, US, Offer, errno_of

MSS = 1460
RTO_MIN_US = 200_000


def schedule(first_ns, cap_ns, until_ns):
    """When retransmissions are due: at the sums of a doubling, capped interval."""
    times, at, interval = [], 0, first_ns
    while True:
        at += interval
        if at >= until_ns:
            return times
        times.append(at)
        interval = min(2 * interval, cap_ns)


class Estimator:
    """RFC 6298 in plain numbers, microseconds."""

    def __init__(self):
        self.srtt = self.var = None

    def sample(self, rtt):
        if self.srtt is None:
            self.srtt, self.var = rtt, rtt / 2
        else:
            self.var += (abs(self.srtt - rtt) - self.var) / 4
            self.srtt += (rtt - self.srtt) / 8

    @property
    def rto(self):
        return max(RTO_MIN_US, self.srtt + 4 * self.var)


def handshake_with_rtt(p, rtt_us):
    tp.syn_received(p)
    p.lab.advance(rtt_us * US)
    p.send("A")
    p.accept()
    return p


def test_the_defaults(tcp):
    """RFC 6298 but for the minimum, which is a documented deviation; R2 of RFC 9293, 3.8.3."""
    settings = tcp().stack.settings
    assert settings.rto_initial_us == 1_000_000
    assert settings.rto_min_us == RTO_MIN_US
    assert settings.rto_max_us >= 60_000_000
    assert settings.r1_retries >= 3
    assert settings.user_timeout_ms >= 100_000
    assert settings.syn_timeout_ms >= 180_000
    assert settings.delack_us == 40_000
    assert settings.msl_ms == 30_000
    assert settings.initial_window == 10


@pytest.mark.rows(61, 84, 85)
def test_syn_sent_no_answer(tcp):
    """Retransmissions at 1, 3, 7, ... s; given up after at least 3 minutes."""
    p = tp.syn_sent(tcp())
    start = p.syn.t_ns
    limit_ns = p.stack.settings.syn_timeout_ms * MS
    cap_ns = p.stack.settings.rto_max_us * US
    for due in schedule(SEC, cap_ns, limit_ns):
        got = p.expect_at(start + due, "S", seq=0, late_ns=20 * US)
        assert got.mss == p.syn.mss
    p.lab.advance_to(start + limit_ns - LATE_NS)
    assert p.state == "SYN-SENT"
    p.expect_nothing(cap_ns)
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.send(b"x")) == "ETIMEDOUT"
    assert p.lab.stat("tcp_timeouts") == 1
    assert p.stack.usage()["tcbs"] == 0


@pytest.mark.rows(61)
def test_syn_sent_user_timeout(tcp):
    p = tcp()
    p.sock = p.lab.socket()
    p.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000)
    p.sock.bind((tp.STACK_IP, p.stack_port))
    assert errno_of(lambda: p.sock.connect((p.ip, p.port))) == "EINPROGRESS"
    p.lab.advance(5 * SEC - MS)
    assert p.state == "SYN-SENT"
    p.lab.advance(4 * SEC)
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.connect((p.ip, p.port))) == "ETIMEDOUT"


@pytest.mark.rows(61)
def test_syn_received_no_answer(tcp):
    """The SYN-ACK is sent again too, and the half-open connection ends."""
    p = tp.syn_received(tcp())
    start = p.syn.t_ns
    for due in schedule(SEC, 60 * SEC, 16 * SEC):
        p.expect_at(start + due, "SA", seq=0, ack=1, late_ns=20 * US)
    p.lab.advance(400 * SEC)
    assert p.state == "CLOSED"
    assert p.stack.usage()["tcbs"] == 0
    assert all(seg.flags == "SA" for seg in p.drain())


@pytest.mark.rows(85)
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_syn_timed_out_rto_is_3_s(tcp, lost):
    """RFC 6298 (5.7): data transmission begins with an RTO of 3 s after a SYN that timed out."""
    p = tp.syn_sent(tcp())
    for _ in range(lost):
        p.next_segment(10 * SEC)
    p.send("SA")
    p.expect(**PURE_ACK)
    p.write(100)
    start = p.expect("A", len=100).t_ns
    due = 3 * SEC if lost else p.info().rto_us * US
    p.expect_at(start + due, "A", seq=1, len=100, late_ns=20 * US)


@pytest.mark.rows(34, 51, 58, 84, 85)
def test_established_no_answer(tcp):
    """Doubling from the RTO to the cap, then given up after the user timeout: R2."""
    p = handshake_with_rtt(tcp(), 100_000)
    rto_ns = p.info().rto_us * US
    p.write(100)
    start = p.expect("A", len=100).t_ns
    cap_ns = p.stack.settings.rto_max_us * US
    limit_ns = p.stack.settings.user_timeout_ms * MS
    times = schedule(rto_ns, cap_ns, limit_ns)
    assert len(times) >= 8
    for due in times:
        p.expect_at(start + due, "A", seq=1, len=100, late_ns=50 * US)
    p.lab.advance_to(start + limit_ns - LATE_NS)
    assert p.state == "ESTABLISHED"
    p.lab.advance(cap_ns)
    assert p.state == "CLOSED"
    assert p.lab.stat("tcp_timeouts") == 1
    assert p.lab.stat("tcp_rto") >= len(times)


@pytest.mark.rows(29, 70)
def test_established_timeout_differs_from_reset(tcp):
    p = tp.established(tcp(user_timeout_ms=2000))
    p.write(100)
    p.lab.advance(70 * SEC)
    assert errno_of(lambda: p.sock.recv(1)) == "ETIMEDOUT"
    p = tp.established(tcp())
    p.send("R")
    assert errno_of(lambda: p.sock.recv(1)) == "ECONNRESET"


@pytest.mark.rows(59)
def test_established_user_timeout_option(tcp):
    p = tp.established(tcp())
    p.option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000)
    p.write(100)
    p.lab.advance(3 * SEC - MS)
    assert p.state == "ESTABLISHED"
    p.lab.advance(3 * SEC)
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.recv(1)) == "ETIMEDOUT"


@pytest.mark.rows(58, 60)
def test_established_r1(tcp):
    """After R1 retransmissions the application is told, and the connection goes on."""
    p = tp.established(tcp())
    p.write(100)
    p.expect("A", len=100)
    r1 = p.stack.settings.r1_retries
    for _ in range(r1 - 1):
        p.next_segment(60 * SEC)
    assert p.soft_error() is None
    for _ in range(2):
        p.next_segment(60 * SEC)
    assert p.soft_error() in ("ETIMEDOUT", "EHOSTUNREACH")
    assert p.state == "ESTABLISHED"
    p.send("A")
    assert p.info().send_queue == 0


@pytest.mark.rows(58)
def test_established_r1_doubts_the_neighbour(lab):
    """MUST-20: after R1 the IP layer is told: the peer's address is asked for again."""
    lab = lab(resolve=True)
    p = lab.peer()
    tp.listen(p)
    p.send("S")
    lab.answer_arp()
    p.expect("SA")
    p.send("A")
    p.accept()
    lab.frames.clear()
    p.write(100)
    p.expect("A", len=100)
    for _ in range(p.stack.settings.r1_retries - 1):
        p.next_segment(60 * SEC)
    assert lab.arp_requests() == 0
    lab.advance(20 * SEC)
    assert lab.arp_requests() >= 1
    lab.answer_arp()
    lab.advance(100 * SEC)
    assert p.drain()
    p.send("A")
    assert p.state == "ESTABLISHED"
    assert p.info().send_queue == 0


@pytest.mark.rows(83)
@pytest.mark.parametrize(
    "rtts_ms",
    [
        [100],
        [50, 50, 50, 50],
        [300, 400, 500, 600, 700],
        [1000, 10, 10, 10, 10, 10, 10, 10],
        [10, 2000, 10, 900, 15, 15, 15],
        [1, 1, 1, 1],
    ],
)
def test_established_estimator(tcp, rtts_ms):
    """SRTT, RTTVAR and RTO follow the reference; the SYN-ACK gives the first sample."""
    p = handshake_with_rtt(tcp(rto_max_us=60_000_000), rtts_ms[0] * 1000)
    ref = Estimator()
    ref.sample(rtts_ms[0] * 1000)
    for rtt_ms in rtts_ms[1:]:
        p.write(100)
        got = p.expect("A", len=100)
        if rtt_ms * 1000 >= p.info().rto_us:
            p.send("A")  # it would be retransmitted first: no sample that way
            ref.sample(0)
            continue
        p.lab.advance(rtt_ms * MS)
        p.send("A", ack=got.end)
        ref.sample(rtt_ms * 1000)
        info = p.info()
        assert info.srtt_us == pytest.approx(ref.srtt, rel=0.001, abs=16)
        assert info.rttvar_us == pytest.approx(ref.var, rel=0.002, abs=16)
        assert info.rto_us == pytest.approx(ref.rto, rel=0.002, abs=64)


@pytest.mark.rows(86)
def test_established_one_sample_per_round_trip_at_least(tcp):
    p = handshake_with_rtt(tcp(), 100_000)
    for _ in range(20):
        p.write(MSS)
        got = p.expect("A")
        p.lab.advance(150 * MS)
        p.send("A", ack=got.end)
    assert p.info().srtt_us == pytest.approx(150_000, rel=0.05)


@pytest.mark.rows(35)
def test_established_ack_of_a_retransmission(tcp):
    """Karn: no sample; the backed-off RTO stays until there is one."""
    p = handshake_with_rtt(tcp(), 100_000)
    before = p.info()
    p.write(100)
    p.expect("A")
    p.next_segment(2 * SEC)
    p.lab.advance(7 * MS)
    p.send("A", ack=101)
    after = p.info()
    assert (after.srtt_us, after.rttvar_us) == (before.srtt_us, before.rttvar_us)
    p.write(100)
    start = p.expect("A", seq=101).t_ns
    p.expect_at(start + 2 * before.rto_us * US, "A", seq=101, late_ns=50 * US)
    p.send("A", ack=201)
    p.write(100)
    p.expect("A", seq=201)
    p.lab.advance(100 * MS)
    p.send("A", ack=301)
    assert p.info().rto_us <= before.rto_us


@pytest.mark.rows(35)
def test_established_timestamps_measure_a_retransmission(tcp):
    """With timestamps the echo says which transmission it was."""
    p = handshake_with_rtt(tcp(tp.TS), 100_000)
    p.write(100)
    p.expect("A")
    got = p.next_segment(2 * SEC)
    p.lab.advance(20 * MS)
    p.send("A", ack=101, ts=(p.tsval, got.ts[0]))
    assert p.info().srtt_us == pytest.approx(100_000 * 7 / 8 + 20_000 / 8, abs=2000)


@pytest.mark.rows(85)
def test_established_timer_restarts_with_each_ack(tcp):
    """RFC 6298 (5.3), and (5.2): it stops when all is acknowledged."""
    p = handshake_with_rtt(tcp(), 100_000)
    p.write(4 * MSS)
    p.expect_data([MSS] * 4)
    p.lab.advance(50 * MS)
    p.send("A", ack=1 + MSS)
    rto_ns = p.info().rto_us * US
    p.expect_at(p.lab.now + rto_ns, "A", seq=1 + MSS, late_ns=50 * US)
    p.send("A", ack=1 + 4 * MSS)
    assert p.info().timer_ns is None
    p.expect_nothing(200 * SEC)


@pytest.mark.rows(85)
def test_established_new_data_does_not_restart_the_timer(tcp):
    """RFC 6298 (5.1): it runs already."""
    p = handshake_with_rtt(tcp(), 100_000)
    p.nodelay()
    p.write(100)
    start = p.expect("A").t_ns
    rto_ns = p.info().rto_us * US
    p.lab.advance(rto_ns // 2)
    p.write(100)
    p.expect("A", seq=101)
    p.expect_at(start + rto_ns, "A", seq=1, late_ns=50 * US)


@pytest.mark.rows(84)
def test_established_rto_has_a_floor(tcp):
    p = handshake_with_rtt(tcp(), 100)
    assert p.info().rto_us == RTO_MIN_US
    p = handshake_with_rtt(tcp(rto_min_us=1_000_000), 100)
    assert p.info().rto_us == 1_000_000


@pytest.mark.rows(84)
def test_established_rto_has_a_cap(tcp):
    p = tp.established(tcp(rto_max_us=60_000_000, user_timeout_ms=10_000_000))
    p.write(100)
    last = p.expect("A").t_ns
    gaps = []
    for _ in range(14):
        got = p.next_segment(200 * SEC)
        gaps.append(got.t_ns - last)
        last = got.t_ns
    assert gaps[-1] == pytest.approx(60 * SEC, abs=LATE_NS)
    assert max(gaps) <= 60 * SEC + LATE_NS


def test_close_wait_data_times_out_too(tcp):
    """D9: no state without an end."""
    p = tp.last_ack(tcp())
    p.lab.advance(p.stack.settings.user_timeout_ms * MS + 200 * SEC)
    assert p.state == "CLOSED"


@pytest.mark.parametrize("make", [tp.fin_wait_1, tp.closing, tp.last_ack])
def test_fin_without_answer_ends(tcp, make):
    p = make(tcp())
    p.close()
    p.lab.advance(p.stack.settings.user_timeout_ms * MS + 200 * SEC)
    assert p.state == "CLOSED"
    assert p.stack.usage()["tcbs"] == 0


# --- keep-alive ----------------------------------------------------------------------------------


def keepalive(p, idle_s=100, interval_s=10, count=3):
    tp.established(p)
    for name, value in (
        (socket.TCP_KEEPIDLE, idle_s),
        (socket.TCP_KEEPINTVL, interval_s),
        (socket.TCP_KEEPCNT, count),
    ):
        p.option(socket.IPPROTO_TCP, name, value)
    p.option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return p


@pytest.mark.rows(62)
def test_keepalive_is_off(tcp):
    p = tp.established(tcp())
    assert p.stack.settings.keepalive_idle_s >= 7200
    p.expect_nothing(10 * 3600 * SEC)
    assert p.state == "ESTABLISHED"


@pytest.mark.rows(62, 63)
def test_keepalive_probes(tcp):
    """Below the window, without data (or the garbage octet); answered, it begins anew."""
    p = keepalive(tcp())
    start = p.lab.now
    for _ in range(3):
        got = p.expect_at(start + 100 * SEC, "A", seq=0, ack=1, late_ns=50 * US)
        assert got.len <= 1
        p.send("A")
        start = p.lab.now
    assert p.state == "ESTABLISHED"


@pytest.mark.rows(62)
def test_keepalive_default_is_two_hours(tcp):
    p = tp.established(tcp())
    p.option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    p.expect_at(7200 * SEC, "A", seq=0, late_ns=50 * US)


@pytest.mark.rows(62)
def test_keepalive_no_answer(tcp):
    """One lost answer is no reason to give up: only ``count`` of them are."""
    p = keepalive(tcp())
    start = p.lab.now
    for i in range(3):
        p.expect_at(start + (100 + 10 * i) * SEC, "A", seq=0, late_ns=100 * US)
        assert p.state == "ESTABLISHED"
    p.lab.advance(10 * SEC)
    assert p.state == "CLOSED"
    assert errno_of(lambda: p.sock.recv(1)) == "ETIMEDOUT"
    assert p.lab.stat("tcp_keepalive_drops") == 1


@pytest.mark.rows(62)
def test_keepalive_one_answer_lost(tcp):
    p = keepalive(tcp())
    p.next_segment(101 * SEC)
    p.next_segment(11 * SEC)
    p.send("A")
    p.expect_nothing(99 * SEC)
    p.expect_at(p.lab.now + SEC, "A", seq=0, late_ns=SEC)
    assert p.state == "ESTABLISHED"


@pytest.mark.rows(62)
def test_keepalive_only_when_idle(tcp):
    p = keepalive(tcp())
    for _ in range(5):
        p.lab.advance(60 * SEC)
        p.send("A", data=10)
        assert p.read() == 10
        p.lab.advance(50 * MS)
        p.drain()
    p.expect_nothing(99 * SEC)


@pytest.mark.rows(62)
def test_keepalive_rst(tcp):
    """The peer has restarted and knows nothing of the connection."""
    p = keepalive(tcp())
    p.next_segment(101 * SEC)
    p.send("R")
    assert p.state == "CLOSED"


@pytest.mark.rows(62)
def test_keepalive_off_again(tcp):
    p = keepalive(tcp())
    p.option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)
    p.expect_nothing(1000 * SEC)


def test_established_time_jump(tcp):
    """H1: the machine stood still for 10 s: one retransmission, not a burst of all that was due."""
    p = tp.established(tcp(Offer()))
    p.write(10 * MSS)
    p.expect_data([MSS] * 10)
    p.stack.poll(p.lab.now + 10 * SEC)
    assert len(p.drain()) <= 2
    assert p.state == "ESTABLISHED"
    p.send("A")
    assert p.info().send_queue == 0


@pytest.mark.rows(62)
def test_keepalive_not_while_data_is_in_flight(tcp):
    """RFC 9293, 3.8.4: only when idle: retransmission watches over the connection otherwise."""
    p = keepalive(tcp(), idle_s=5, interval_s=1, count=2)
    p.write(100)
    p.expect("A", len=100)
    p.lab.advance(60 * SEC)
    assert all(seg.seq == 1 for seg in p.drain())
    assert p.state == "ESTABLISHED"
    p.send("A")
    p.expect_at(p.lab.now + 5 * SEC, "A", seq=100, late_ns=SEC)
