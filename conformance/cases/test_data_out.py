# SPDX-License-Identifier: MIT
"""Data that the arm sends: segments, Nagle's algorithm, the first window, PSH, urgent data."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from conformance.arms import MS
from conformance.peer import errno_of, pattern

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Peer

clause = pytest.mark.clause

TCP = socket.IPPROTO_TCP


@clause("RFC 9293 3.7.1, SHLD-28")
def test_full_segments(arm: Arm, peer: Peer) -> None:
    """What is sent at once goes out in full segments and a rest."""
    sock = peer.established()
    peer.write(sock, 4000)
    peer.expect_data([1460, 1460, 1080])


@clause("RFC 9293 MUST-61")
def test_last_segment_is_pushed(arm: Arm, peer: Peer) -> None:
    """The segment that empties the send queue has PSH."""
    sock = peer.established()
    peer.write(sock, 3000)
    assert peer.expect_data([1460, 1460, 80])[-1].push
    peer.send("A")
    peer.write(sock, 10)
    peer.expect_sent(10, push=True)


@clause("RFC 6928 2")
def test_initial_window(arm: Arm, peer: Peer) -> None:
    """A new connection sends ten full segments and waits."""
    sock = peer.established()
    peer.write(sock, 30000)
    peer.expect_data([1460] * 10)
    peer.expect_nothing()


@clause("RFC 5681 3.1")
def test_slow_start(arm: Arm, peer: Peer) -> None:
    """In slow start an ACK for two segments lets three (RFC 5681) or four (RFC 3465) go out."""
    sock = peer.established(wscale=7)
    peer.wnd = 2000
    peer.send("A")
    peer.write(sock, 60000)
    first = peer.expect_data([1460] * 10)
    for got in first[1:4:2]:
        peer.send("A", ack=got.end)
        sent = sum(segment.len for segment in peer.drain())
        assert sent in {3 * 1460, 4 * 1460}, f"{sent}\n{peer.history()}"


@clause("RFC 9293 3.7.4, MUST-17")
def test_nagle(arm: Arm, peer: Peer) -> None:
    """While a small segment is under way, small writes are collected, up to its ACK."""
    sock = peer.established()
    sock.setsockopt(TCP, socket.TCP_NODELAY, 0)
    peer.write(sock, 10)
    peer.expect_sent(10)
    peer.write(sock, 20)
    peer.write(sock, 30)
    peer.expect_nothing()
    peer.send("A")
    peer.expect_sent(50)


@clause("RFC 9293 3.7.4")
def test_nagle_lets_full_segments_go(arm: Arm, peer: Peer) -> None:
    """Nagle's algorithm holds back the small rest alone."""
    sock = peer.established()
    sock.setsockopt(TCP, socket.TCP_NODELAY, 0)
    peer.write(sock, 10)
    peer.expect_sent(10)
    peer.write(sock, 1500)
    peer.expect_sent(1460)
    peer.expect_nothing()
    peer.send("A")
    peer.expect_sent(40)


@clause("RFC 9293 3.7.4, SHLD-7")
def test_nagle_is_on_by_default(arm: Arm, peer: Peer) -> None:
    """A new socket has Nagle's algorithm on."""
    assert not arm.socket().getsockopt(TCP, socket.TCP_NODELAY)


@clause("RFC 9293 MUST-17")
def test_nodelay(arm: Arm, peer: Peer) -> None:
    """With TCP_NODELAY each write goes out."""
    sock = peer.established()
    for _ in range(3):
        peer.write(sock, 10)
    peer.expect_data([10, 10, 10])


@clause("RFC 9293 MUST-17")
def test_nodelay_lets_out_what_waits(arm: Arm, peer: Peer) -> None:
    """Setting TCP_NODELAY sends what Nagle's algorithm has held back."""
    sock = peer.established()
    sock.setsockopt(TCP, socket.TCP_NODELAY, 0)
    peer.write(sock, 10)
    peer.expect_sent(10)
    peer.write(sock, 20)
    peer.expect_nothing()
    sock.setsockopt(TCP, socket.TCP_NODELAY, 1)
    peer.line.collect()
    peer.expect_sent(20)


@clause("Linux send(), MSG_MORE")
def test_more_to_come(arm: Arm, peer: Peer) -> None:
    """MSG_MORE holds a part-filled segment for what comes next."""
    sock = peer.established()
    sock.send(pattern(0, 10), socket.MSG_MORE)
    peer.written = 10
    peer.expect_nothing()
    peer.write(sock, 20)
    peer.expect_sent(30)


@clause("Linux TCP_MAXSEG")
def test_maxseg(arm: Arm, peer: Peer) -> None:
    """TCP_MAXSEG before the connection bounds the segments that are sent."""
    sock = arm.socket()
    sock.setsockopt(TCP, socket.TCP_MAXSEG, 600)
    sock.setsockopt(TCP, socket.TCP_NODELAY, 1)
    peer.connect(sock)
    peer.send("SA")
    peer.expect("A")
    peer.write(sock, 1000)
    peer.expect_data([600, 400])


@clause("Linux TCP_MAXSEG")
def test_maxseg_is_told(arm: Arm, peer: Peer) -> None:
    """TCP_MAXSEG before the connection is what the SYN says."""
    sock = arm.socket()
    sock.setsockopt(TCP, socket.TCP_MAXSEG, 600)
    peer.connect(sock)
    assert peer.syn is not None
    assert peer.syn.mss == 600


@clause("RFC 9293 MUST-48, MUST-49")
def test_tos_and_ttl(arm: Arm, peer: Peer) -> None:
    """IP_TOS and IP_TTL count for every segment from then on."""
    sock = peer.established()
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 33)
    peer.write(sock, 10)
    got = peer.expect_sent(10)
    assert (got.raw.tos, got.raw.ttl) == (0xB8, 33)


@clause("RFC 1191, RFC 6864 4")
def test_dont_fragment(arm: Arm, peer: Peer) -> None:
    """Every segment has DF."""
    sock = peer.established()
    peer.write(sock, 10)
    assert peer.expect_sent(10).raw.df
    peer.send("FA")
    assert peer.expect("A").raw.df


@clause("RFC 9293 MUST-33, RFC 6093")
def test_urgent_data_are_marked(arm: Arm, peer: Peer) -> None:
    """MSG_OOB sets URG on the segment, the pointer at or behind the last octet."""
    sock = peer.established()
    sock.send(b"abc", socket.MSG_OOB)
    got = peer.expect_now(flags="AU", seq=1, len=3)
    assert got.urg in {2, 3}


@clause("RFC 9293 3.4")
@pytest.mark.parametrize("before", [1, 100, 1460, 5000])
@pytest.mark.parametrize("turn", [1 << 32, 1 << 31], ids=["2^32", "2^31"])
def test_own_numbers_wrap(arm: Arm, peer: Peer, turn: int, before: int) -> None:
    """The arm's sequence numbers pass 2^32, or change sign at 2^31."""
    sock = arm.socket()
    sock.setsockopt(TCP, socket.TCP_NODELAY, 1)
    arm.set_isn(sock, (turn - before) % (1 << 32))
    peer.connect(sock)
    assert peer.arm_isn == (turn - before) % (1 << 32)
    peer.send("SA")
    peer.expect("A")
    peer.write(sock, 8000)
    peer.expect_data([1460] * 5 + [700])
    for ack in (1461, 5841, 8001):
        peer.send("A", ack=ack)
    peer.expect_nothing()
    sock.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=8001)
    peer.send("A")
    assert peer.state == "FIN-WAIT-2"


@clause("RFC 9293 3.10.7.4")
def test_data_carry_the_newest_ack(arm: Arm, peer: Peer) -> None:
    """An ACK that is owed rides on data."""
    sock = peer.established()
    peer.send("A", 100)
    peer.write(sock, 50)
    got = peer.expect_sent(50)
    assert got.ack == 101


@clause("RFC 9293 3.10.7.4")
def test_ack_of_what_was_not_sent(arm: Arm, peer: Peer) -> None:
    """An ACK for data never sent is answered by an ACK; the data with it are not taken."""
    sock = peer.established()
    peer.send("A", b"evil", seq=1, ack=5000)
    peer.expect_now("A", seq=1, ack=1, len=0)
    peer.send("A", b"good", seq=1)
    assert arm.wait(lambda: sock.recv(10)) == b"good"


@clause("RFC 9293 3.10.7.4")
def test_old_ack_changes_nothing(arm: Arm, peer: Peer) -> None:
    """An ACK from the past is ignored: what is acknowledged stays so, no window is taken from it."""
    sock = peer.established()
    peer.write(sock, 1000)
    peer.expect_sent(1000)
    peer.send("A")
    peer.send("A", ack=1)
    peer.expect_nothing()
    peer.write(sock, 500)
    peer.expect_sent(500)


@clause("RFC 9293 3.10.7.4")
def test_window_of_an_old_segment(arm: Arm, peer: Peer) -> None:
    """A window in a segment that is older than the last one does not count (WL1, WL2)."""
    sock = peer.established()
    peer.send("A", 100)
    peer.drain()
    peer.send("A", wnd=5000)
    peer.send("A", wnd=0, seq=51, ack=1)
    peer.drain()
    peer.write(sock, 1000)
    peer.expect_sent(1000)


@clause("RFC 1191 3, RFC 5927 7")
def test_fragmentation_needed(arm: Arm, peer: Peer) -> None:
    """ICMP "fragmentation needed" makes segments smaller, and what is lost is sent again so."""
    peer.ip = arm.new_host()  # what is learnt is kept for this address
    sock = peer.established()
    peer.write(sock, 1460)
    got = peer.expect_sent(1460)
    peer.line.send(peer.icmp_error(3, 4, got, mtu=1000))
    again = peer.expect("A", seq=1, len=960)
    assert again.raw.df
    peer.expect("A", seq=961, len=500)
    peer.send("A")
    peer.write(sock, 2000)
    peer.expect_data([960, 960, 80])


@clause("RFC 5927 4")
def test_fragmentation_needed_for_something_else(arm: Arm, peer: Peer) -> None:
    """An ICMP error that quotes numbers out of the window is ignored."""
    sock = peer.established()
    peer.write(sock, 1460)
    got = peer.expect_sent(1460)
    peer.line.send(peer.icmp_error(3, 4, got, mtu=1000, seq=100_000_000))
    peer.expect_nothing()
    peer.send("A")
    peer.write(sock, 1460)
    peer.expect_sent(1460)


@pytest.mark.parametrize("code", [0, 1, 5, 2, 3, 13])
@clause("RFC 9293 SHLD-25, RFC 5927 5.2")
def test_unreachable_in_an_open_connection(arm: Arm, peer: Peer, code: int) -> None:
    """ICMP "unreachable" does not end an open connection."""
    sock = peer.established()
    peer.write(sock, 100)
    got = peer.expect_sent(100)
    peer.line.send(peer.icmp_error(3, code, got))
    arm.settle()
    assert peer.state == "ESTABLISHED"
    peer.send("A")
    peer.expect_nothing()
    peer.write(sock, 100)
    peer.expect_sent(100)


@clause("RFC 9293 SHLD-26")
def test_port_unreachable_while_connecting(arm: Arm, peer: Peer) -> None:
    """ICMP "port unreachable" for a SYN: ECONNREFUSED."""
    sock = peer.connect()
    assert peer.syn is not None
    peer.line.send(peer.icmp_error(3, 3, peer.syn))
    arm.settle()
    assert errno_of(lambda: sock.connect(peer.address)) == "ECONNREFUSED"


@clause("RFC 9293 SHLD-25")
def test_host_unreachable_while_connecting(arm: Arm, peer: Peer) -> None:
    """ICMP "host unreachable" for a SYN is a soft error: the connection may still open."""
    peer.connect()
    assert peer.syn is not None
    peer.line.send(peer.icmp_error(3, 1, peer.syn))
    arm.settle()
    assert peer.state == "SYN-SENT"
    peer.send("SA")
    peer.expect("A", ack=1)


@clause("RFC 5681 4.1")
def test_window_after_idleness(arm: Arm, peer: Peer) -> None:
    """After each full exchange the window is at least the initial one again."""
    sock = peer.established(wscale=7)
    peer.wnd = 2000
    peer.send("A")
    for _ in range(3):
        peer.write(sock, 14600)
        peer.expect_data([1460] * 10)
        peer.send("A")
    arm.sleep(50 * MS)
    peer.write(sock, 14600)
    assert sum(got.len for got in peer.drain()) == 14600


@clause("RFC 9293 3.8.6.1")
def test_several_writes_before_the_ack(arm: Arm, peer: Peer) -> None:
    """ACKs of single segments, of several, and in the middle of one move the window alike."""
    sock = peer.established()
    peer.write(sock, 7300)
    peer.expect_data([1460] * 5)
    for ack in (1461, 2000, 5000, 7301):
        peer.send("A", ack=ack)
        peer.expect_nothing()
    peer.write(sock, 100)
    peer.expect_sent(100)
