# SPDX-License-Identifier: MIT
"""Lost segments: timeouts, fast retransmit, SACK, NewReno, limited transmit."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING

import pytest

from conformance.arms import MS
from conformance.peer import between, one_of

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Got, Peer

clause = pytest.mark.clause
short_rto = pytest.mark.arm(rto_min_ms=200)


def clock(got: Got) -> int:
    """The arm's own clock (ms) when it sent that: exact, however late we looked."""
    assert got.ts is not None
    return got.ts[0]


@short_rto
@clause("RFC 6298 5.4")
def test_timeout(arm: Arm, peer: Peer) -> None:
    """What is not acknowledged is sent again after the timeout, from its start."""
    sock = peer.established()
    peer.write(sock, 1000)
    first = peer.expect_sent(1000)
    again = peer.expect("A", seq=1, len=1000)
    assert again.t_ns - first.t_ns > 100 * MS
    peer.send("A")
    peer.expect_nothing()


@short_rto
@clause("RFC 6298 5.5, RFC 9293 MUST-19")
def test_timeouts_double(arm: Arm, peer: Peer) -> None:
    """Each timeout is twice the one before."""
    sock = peer.established(ts=True)
    peer.write(sock, 500)
    times = [clock(peer.expect("A", seq=1, len=500)) for _ in range(4)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert 150 <= gaps[0] <= 1000, gaps
    assert 1.6 * gaps[0] < gaps[1] < 2.6 * gaps[0], gaps
    assert 1.6 * gaps[1] < gaps[2] < 2.6 * gaps[1], gaps


@short_rto
@clause("RFC 5681 3.1")
def test_one_segment_after_a_timeout(arm: Arm, peer: Peer) -> None:
    """After a timeout one segment is sent, then, with its ACK, two."""
    sock = peer.established()
    peer.write(sock, 14600)
    peer.expect_data([1460] * 10)
    peer.expect("A", seq=1, len=1460)
    peer.expect_nothing()
    peer.send("A", ack=1461)
    peer.expect_now("A", seq=1461, len=1460)
    peer.expect_now("A", seq=2921, len=1460)
    peer.expect_nothing()


@short_rto
@clause("RFC 6298 5.2")
def test_ack_stops_the_timer(arm: Arm, peer: Peer) -> None:
    """When all is acknowledged nothing is sent again."""
    sock = peer.established()
    peer.write(sock, 3000)
    peer.expect_data([1460, 1460, 80])
    peer.send("A")
    peer.expect_nothing(for_ns=400 * MS)


@short_rto
@clause("RFC 6298 5.3")
def test_ack_restarts_the_timer(arm: Arm, peer: Peer) -> None:
    """An ACK of a part gives the rest its full time again."""
    sock = peer.established(ts=True)
    peer.write(sock, 2000)
    first, second = peer.expect_data([1448, 552])
    arm.sleep(120 * MS)
    peer.send("A", ack=1449)
    again = peer.expect("A", seq=1449, len=552)
    assert clock(again) - clock(second) > 250
    assert clock(first) <= clock(second)


@short_rto
@clause("RFC 6298 3, RFC 9293 MUST-18")
def test_karn(arm: Arm, peer: Peer) -> None:
    """The ACK of a retransmission gives no measurement: the doubled timeout stays."""
    sock = peer.established()
    peer.write(sock, 500)
    peer.expect_sent(500)
    for _ in range(2):
        last = peer.expect("A", seq=1, len=500)
    peer.send("A")
    start = peer.wire.now_ns
    peer.write(sock, 400)
    peer.expect("A", seq=501, len=400)
    again = peer.expect("A", seq=501, len=400)
    # Two timeouts doubled it twice: at least 4 x 200 ms, where a new measurement would give 200.
    assert again.t_ns - start > 600 * MS
    assert last.seq == 1


@clause("RFC 5681 3.2")
def test_fast_retransmit(arm: Arm, peer: Peer) -> None:
    """The third duplicate ACK sends the missing segment again, the second does not."""
    sock = peer.established()
    peer.write(sock, 1460 * 6)
    peer.expect_data([1460] * 6)
    for _ in range(2):
        peer.send("A", ack=1)
        peer.expect_nothing()
    peer.send("A", ack=1)
    peer.expect_now("A", seq=1, len=1460)
    peer.send("A")
    peer.expect_nothing()


@clause("RFC 3042")
def test_limited_transmit(arm: Arm, peer: Peer) -> None:
    """The first two duplicate ACKs let one new segment out each."""
    sock = peer.established()
    peer.write(sock, 20000)
    peer.expect_data([1460] * 10)
    peer.send("A", ack=1)
    peer.expect_now("A", seq=14601, len=1460)
    peer.send("A", ack=1)
    peer.expect_now("A", seq=16061, len=1460)
    peer.send("A", ack=1)
    peer.expect_now("A", seq=1, len=1460)


@clause("RFC 6582 3.2")
def test_partial_ack(arm: Arm, peer: Peer) -> None:
    """Without SACK, an ACK of a part of what was lost sends the next missing segment at once."""
    sock = peer.established()
    peer.write(sock, 14600)
    peer.expect_data([1460] * 10)
    # The first and the fourth are lost, so that eight segments give a duplicate ACK each.
    for _ in range(8):
        peer.send("A", ack=1)
    assert peer.drain()[0].seq == 1
    peer.send("A", ack=4381)
    assert 4381 in {got.seq for got in peer.drain()}
    peer.send("A", ack=14601)
    arm.settle()
    assert peer.state == "ESTABLISHED"


@clause("RFC 5681 2")
def test_acks_with_data_are_no_duplicates(arm: Arm, peer: Peer) -> None:
    """Segments with data that repeat the ACK are not counted as duplicate ACKs."""
    sock = peer.established()
    peer.write(sock, 1460 * 4)
    peer.expect_data([1460] * 4)
    for _ in range(4):
        peer.send("A", 10, ack=1)
    for got in peer.drain():
        assert got.len == 0, "a retransmission"


@clause("RFC 5681 2")
def test_window_updates_are_no_duplicates(arm: Arm, peer: Peer) -> None:
    """ACKs that change the window are not counted as duplicate ACKs."""
    peer.wnd = 30000
    sock = peer.established()
    peer.write(sock, 1460 * 4)
    peer.expect_data([1460] * 4)
    for i in range(1, 5):
        peer.send("A", ack=1, wnd=30000 + 100 * i)
    peer.expect_nothing()


@clause("RFC 6675 5, RFC 2018 5")
def test_sack_holes_alone(arm: Arm, peer: Peer) -> None:
    """With SACK only what is missing is sent again."""
    sock = peer.established(sack=True)
    peer.write(sock, 14600)
    peer.expect_data([1460] * 10)
    told: set[int] = set()
    again: set[int] = set()
    for ack, blocks in (
        (1, [(1461, 2921)]),
        (1, [(1461, 4381)]),
        (1, [(5841, 7301), (1461, 4381)]),
        (1, [(5841, 14601), (1461, 4381)]),
        (4381, [(5841, 14601)]),
    ):
        peer.send("A", ack=ack, sack=blocks)
        told |= {seq for left, right in blocks for seq in range(left, right, 1460)}
        new = {got.seq for got in peer.drain()}
        assert not new & told, f"sent again what is there: {new & told}\n{peer.history()}"
        again |= new
    assert again >= {1, 4381}
    peer.send("A", ack=14601)
    peer.expect_nothing()


@clause("RFC 6675 4")
def test_sack_finds_the_loss(arm: Arm, peer: Peer) -> None:
    """Three segments told by SACK above a hole mean that it is lost, in one ACK too."""
    sock = peer.established(sack=True)
    peer.write(sock, 14600)
    peer.expect_data([1460] * 10)
    peer.send("A", ack=1, sack=[(1461, 7301)])
    assert peer.expect_now("A", len=1460).seq == 1


@clause("RFC 2018 8")
def test_reneging(arm: Arm, peer: Peer) -> None:
    """What was told by SACK stays until it is acknowledged, and is sent when it comes to that."""
    sock = peer.established(sack=True)
    peer.write(sock, 1460 * 5)
    peer.expect_data([1460] * 5)
    for end in (2921, 4381, 5841, 7301):
        peer.send("A", ack=1, sack=[(1461, end)])
    assert peer.drain()[0].seq == 1
    # The peer has thrown all of it away.
    peer.send("A", ack=1461)
    total = 1461
    while total < 7301:
        got = peer.expect("A", seq=between(1, 7300))
        total = max(total, got.end if got.seq <= total else total)
        peer.send("A", ack=total)


@short_rto
@clause("RFC 6298 5.4, RFC 9293 3.10.8")
def test_lost_fin(arm: Arm, peer: Peer) -> None:
    """A FIN that is not acknowledged is sent again."""
    sock = peer.established()
    sock.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1)
    peer.expect("FA", seq=1)
    peer.send("A")
    peer.expect_nothing()
    assert peer.state == "FIN-WAIT-2"


@short_rto
@clause("RFC 9293 3.8.1")
def test_lost_data_with_fin(arm: Arm, peer: Peer) -> None:
    """Data and the FIN behind them are sent again until both are acknowledged."""
    sock = peer.established()
    peer.write(sock, 100)
    sock.shutdown(socket.SHUT_WR)
    seen = 0
    for _ in range(4):
        got = peer.expect(flags=one_of("A", "FA"))
        seen = max(seen, got.end)
        if seen == 102 and got.seq == 1:
            break
    assert seen == 102
    peer.send("A", ack=102)
    arm.settle()
    assert peer.state == "FIN-WAIT-2"


@short_rto
@clause("RFC 9293 3.4")
def test_retransmission_over_the_wrap(arm: Arm, peer: Peer) -> None:
    """A retransmission that spans 2^32 is the same segment."""
    sock = arm.socket()
    arm.set_isn(sock, (1 << 32) - 700)
    peer.connect(sock)
    peer.send("SA")
    peer.expect("A")
    peer.write(sock, 1460)
    peer.expect_sent(1460)
    peer.expect("A", seq=1, len=1460)
    peer.send("A")
    peer.expect_nothing()


@short_rto
@clause("RFC 6298 5.4")
def test_retransmission_is_not_longer_than_the_window(arm: Arm, peer: Peer) -> None:
    """Sending again goes on when the ACK says how far the peer is, in the midst of a segment."""
    sock = peer.established()
    peer.write(sock, 2920)
    peer.expect_data([1460, 1460])
    peer.send("A", ack=1000)
    got = peer.expect("A", seq=between(1, 1000))
    assert got.end > 1000
    peer.send("A", ack=2921)
    peer.expect_nothing()


@clause("RFC 5681 3.2")
def test_window_is_halved(arm: Arm, peer: Peer) -> None:
    """After a fast retransmit less is in flight than before."""
    sock = peer.established(sack=True, wscale=7)
    peer.wnd = 2000
    peer.send("A")
    peer.write(sock, 14600)
    peer.expect_data([1460] * 10)
    for end in (2921, 4381, 5841):
        peer.send("A", ack=1, sack=[(1461, end)])
    assert peer.drain()[0].seq == 1
    peer.send("A", ack=14601)
    peer.written = 14600
    peer.write(sock, 20000)
    sent = sum(got.len for got in peer.drain())
    assert 2 * 1460 <= sent <= 7 * 1460, sent


@clause("RFC 2883 5, RFC 9293 MUST-19")
def test_dsack_is_harmless(arm: Arm, peer: Peer) -> None:
    """A block below the ACK (a duplicate is told) sends nothing."""
    sock = peer.established(sack=True)
    peer.write(sock, 2920)
    peer.expect_data([1460, 1460])
    peer.send("A", ack=2921)
    peer.send("A", ack=2921, sack=[(1, 1461)])
    peer.expect_nothing()


@pytest.mark.parametrize(
    "block", [(5000, 4000), (100000, 200000), (1, 1 << 31), (-5000, -100)], ids=str
)
@clause("RFC 2018 3, RFC 5961 5")
def test_impossible_sack(arm: Arm, peer: Peer, block: tuple[int, int]) -> None:
    """Blocks that can't be are ignored."""
    sock = peer.established(sack=True)
    peer.write(sock, 2920)
    peer.expect_data([1460, 1460])
    peer.send("A", ack=1, sack=[block])
    for got in peer.drain():
        assert got.len == 0
    peer.send("A", ack=2921)
    peer.write(sock, 100)
    peer.expect_sent(100)
