# SPDX-License-Identifier: MIT
"""Timestamps and PAWS: RFC 7323."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING

import pytest

from conformance.arms import MS
from conformance.peer import errno_of, one_of

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Peer

clause = pytest.mark.clause


@clause("RFC 7323 3.2")
def test_every_segment_has_them(arm: Arm, peer: Peer) -> None:
    """Once agreed on, timestamps are on data, ACKs and FIN."""
    sock = peer.established(ts=True)
    peer.write(sock, 10)
    assert peer.expect_sent(10).ts is not None
    peer.send("A", 10)
    assert peer.expect("A", ack=11).ts is not None
    peer.read(sock, 10)
    sock.shutdown(socket.SHUT_WR)
    assert peer.expect("FA").ts is not None


@clause("RFC 7323 3.2")
def test_none_without_agreement(arm: Arm, peer: Peer) -> None:
    """Not agreed on, they are on no segment, even if one of ours has them."""
    sock = peer.established()
    peer.send("A", 10, ts=(5, 5))
    peer.read(sock, 10)
    assert peer.expect("A", ack=11).ts is None


@clause("RFC 7323 4.3")
def test_echo_of_the_newest(arm: Arm, peer: Peer) -> None:
    """The timestamp of the segment that moved the window is echoed."""
    peer.established(ts=True)
    peer.tsval = 2000
    peer.send("A", 10)
    got = peer.expect("A", ack=11)
    assert got.ts is not None
    assert got.ts[1] == 2000


@clause("RFC 7323 4.3 (A)")
def test_echo_of_the_earliest_unacknowledged(arm: Arm, peer: Peer) -> None:
    """When an ACK is for several segments, the timestamp of the first of them is echoed."""
    peer.established(ts=True)
    for value in (2000, 2001):
        peer.tsval = value
        peer.send("A", 1448)
    acks = peer.drain()
    assert acks[-1].ack == 2897
    assert acks[0].ts is not None
    assert acks[0].ts[1] == 2000


@clause("RFC 7323 4.3 (B)")
def test_echo_behind_a_gap(arm: Arm, peer: Peer) -> None:
    """Out-of-order data do not change what is echoed."""
    peer.established(ts=True)
    peer.send("A", 10)
    peer.expect("A", ack=11)
    peer.tsval = 3000
    peer.send("A", 10, seq=111)
    got = peer.expect_now("A", ack=11)
    assert got.ts is not None
    assert got.ts[1] == 1000


@clause("RFC 7323 4.3 (C)")
def test_echo_when_the_gap_is_filled(arm: Arm, peer: Peer) -> None:
    """The segment that fills a gap is echoed, not one that came before it."""
    peer.established(ts=True)
    peer.tsval = 3000
    peer.send("A", 100, seq=101)
    peer.expect_now("A", ack=1)
    peer.tsval = 3100
    peer.send("A", 100)
    got = peer.expect_now("A", ack=201)
    assert got.ts is not None
    assert got.ts[1] == 3100


@clause("RFC 7323 5.3 (R1)")
def test_paws(arm: Arm, peer: Peer) -> None:
    """A segment with an old timestamp gets an ACK and is not taken."""
    sock = peer.established(ts=True)
    peer.send("A", 10)
    peer.read(sock, 10)
    peer.drain()
    peer.send("A", b"x" * 10, ts=(900, peer.ts_recent), seq=11)
    peer.expect_now("A", ack=11, len=0)
    assert errno_of(lambda: sock.recv(10)) == "EAGAIN"


@clause("RFC 7323 5.3")
def test_equal_timestamp_is_not_old(arm: Arm, peer: Peer) -> None:
    """The same timestamp again is good."""
    sock = peer.established(ts=True)
    for _ in range(3):
        peer.send("A", 10)
    peer.read(sock, 30)


@clause("RFC 7323 5.2")
def test_reset_is_exempt_from_paws(arm: Arm, peer: Peer) -> None:
    """A RST counts whatever its timestamp."""
    peer.established(ts=True)
    peer.send("R", ts=(1, 0))
    arm.settle()
    assert peer.state == "CLOSED"


@clause("RFC 7323 3.2")
def test_reset_without_timestamp(arm: Arm, peer: Peer) -> None:
    """A RST counts without a timestamp."""
    peer.established(ts=True)
    peer.send("R", ts=False)
    arm.settle()
    assert peer.state == "CLOSED"


@clause("RFC 7323 3.2")
def test_missing_timestamp(arm: Arm, peer: Peer) -> None:
    """A segment without the timestamp that was agreed on is dropped."""
    sock = peer.established(ts=True)
    peer.send("A", 10, ts=False, seq=1)
    peer.line.collect()
    assert errno_of(lambda: sock.recv(10)) == "EAGAIN"


@pytest.mark.parametrize("start", [(1 << 32) - 5, (1 << 31) - 5], ids=["2^32", "2^31"])
@clause("RFC 7323 5.3")
def test_clock_of_the_peer_wraps(arm: Arm, peer: Peer, start: int) -> None:
    """Timestamps that pass 2^32, or change sign, are new, and old ones before them old."""
    peer.tsval = start
    sock = peer.established(ts=True)
    for _ in range(4):
        peer.tsval += 3
        peer.send("A", 10)
    peer.read(sock, 40)
    peer.drain()
    peer.send("A", b"x" * 10, ts=(start, peer.ts_recent), seq=41)
    peer.expect_now("A", ack=41, len=0)
    assert errno_of(lambda: sock.recv(10)) == "EAGAIN"


@clause("RFC 7323 5.4")
def test_clock_of_the_arm(arm: Arm, peer: Peer) -> None:
    """The arm's timestamps grow with time, by one in 1 ms to 1 s, and never back."""
    sock = peer.established(ts=True)
    values = []
    for _ in range(4):
        peer.write(sock, 10)
        got = peer.expect_sent(10)
        assert got.ts is not None
        values.append(got.ts[0])
        peer.send("A")
        arm.sleep(20 * MS)
    gaps = [(b - a) % (1 << 32) for a, b in itertools.pairwise(values)]
    assert all(0 <= gap < 10_000 for gap in gaps)


@clause("RFC 7323 5.3 (R3)")
def test_old_segment_does_not_set_the_echo(arm: Arm, peer: Peer) -> None:
    """A duplicate of old data with a newer timestamp does not change what is echoed beyond reason."""
    sock = peer.established(ts=True)
    peer.send("A", 10)
    peer.read(sock, 10)
    peer.drain()
    peer.send("A", 5, seq=1, ts=(5000, peer.ts_recent))
    got = peer.expect_now("A", ack=11)
    assert got.ts is not None
    assert got.ts[1] in {1000, 5000}
    # Whatever was echoed, what follows with the peer's true clock must be taken, or be told.
    peer.tsval = 5001
    peer.send("A", 10)
    peer.read(sock, 10, at=10)


@clause("RFC 7323 3.2")
def test_strange_echo_is_harmless(arm: Arm, peer: Peer) -> None:
    """An echo of what was never sent gives no measurement that breaks the connection."""
    sock = peer.established(ts=True)
    peer.write(sock, 100)
    peer.expect_sent(100)
    peer.send("A", ts=(peer.tsval, 12345))
    peer.write(sock, 100)
    peer.expect_sent(100)
    peer.send("A", ts=(peer.tsval, 0))
    peer.expect_nothing()


@clause("RFC 7323 4.1")
def test_fin_and_paws(arm: Arm, peer: Peer) -> None:
    """An old FIN is caught like old data."""
    peer.established(ts=True)
    peer.send("FA", ts=(1, 0), seq=1)
    peer.expect_now(flags=one_of("A"), ack=1)
    assert peer.state == "ESTABLISHED"
