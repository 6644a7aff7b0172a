# SPDX-License-Identifier: MIT
"""Keep-alive, and the time after which a silent peer is given up."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

from conformance.arms import MS, SEC
from conformance.peer import between, errno_of

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Peer

clause = pytest.mark.clause
short_rto = pytest.mark.arm(rto_min_ms=200)

TCP = socket.IPPROTO_TCP


def keep_alive(sock: Any, idle: int = 1, interval: int = 1, count: int = 2) -> None:
    """Ask for probes, times in seconds."""
    sock.setsockopt(TCP, socket.TCP_KEEPIDLE, idle)
    sock.setsockopt(TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(TCP, socket.TCP_KEEPCNT, count)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


@clause("RFC 9293 MUST-25")
def test_keep_alive_is_off(arm: Arm, peer: Peer) -> None:
    """A new socket has no keep-alive, and two hours as its default time."""
    sock = peer.established()
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    assert sock.getsockopt(TCP, socket.TCP_KEEPIDLE) >= 7200


@clause("RFC 9293 MUST-26, SHLD-12")
def test_keep_alive(arm: Arm, peer: Peer) -> None:
    """An idle connection is probed below its window; an answer keeps it."""
    sock = peer.established()
    keep_alive(sock)
    start = peer.wire.now_ns
    probe = peer.expect("A", seq=0, len=between(0, 1), ack=1)
    assert probe.t_ns - start > 700 * MS
    peer.send("A", ack=1)
    peer.rcv_nxt = 1
    peer.expect("A", seq=0)
    peer.send("A", ack=1)
    assert peer.state == "ESTABLISHED"
    assert errno_of(lambda: sock.recv(1)) == "EAGAIN"


@clause("RFC 9293 MUST-27, MUST-29")
def test_keep_alive_gives_up(arm: Arm, peer: Peer) -> None:
    """Probes that nobody answers end the connection with ETIMEDOUT."""
    sock = peer.established()
    keep_alive(sock)
    peer.expect("A", seq=0)
    peer.expect("A", seq=0)
    assert arm.wait(lambda: ended(sock)) == "ETIMEDOUT"
    assert peer.state == "CLOSED"


def ended(sock: Any) -> str:
    """How a connection has ended, by recv()."""
    name = errno_of(lambda: sock.recv(1))
    if name == "EAGAIN":
        raise BlockingIOError
    assert name is not None
    return name


@clause("RFC 9293 3.8.4")
@pytest.mark.parametrize("garbage", [0, 1])
def test_keep_alive_of_the_peer(arm: Arm, peer: Peer, garbage: int) -> None:
    """A peer's probe, with an octet of garbage or without, is answered by an ACK."""
    sock = peer.established()
    peer.send("A", bytes(garbage), seq=0)
    peer.expect_now("A", seq=1, ack=1, len=0)
    assert errno_of(lambda: sock.recv(1)) == "EAGAIN"


@clause("RFC 9293 3.8.4")
def test_peer_that_has_forgotten(arm: Arm, peer: Peer) -> None:
    """A RST in answer to a probe ends the connection with ECONNRESET."""
    sock = peer.established()
    keep_alive(sock)
    probe = peer.expect("A", seq=0)
    peer.send("R", seq=probe.ack)
    arm.settle()
    assert errno_of(lambda: sock.recv(1)) == "ECONNRESET"


@short_rto
@clause("RFC 9293 MUST-21, RFC 5482")
def test_user_timeout(arm: Arm, peer: Peer) -> None:
    """With TCP_USER_TIMEOUT, data that nobody acknowledges end the connection in that time."""
    sock = peer.established()
    sock.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 700)
    start = peer.wire.now_ns
    peer.write(sock, 100)
    peer.expect_sent(100)
    peer.expect("A", seq=1, len=100)
    assert arm.wait(lambda: ended(sock)) == "ETIMEDOUT"
    assert peer.wire.now_ns - start > 500 * MS
    assert peer.state == "CLOSED"


@short_rto
@clause("RFC 9293 MUST-21")
def test_progress_resets_the_user_timeout(arm: Arm, peer: Peer) -> None:
    """The user timeout counts from the last progress."""
    sock = peer.established()
    sock.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 2000)
    for _ in range(3):
        peer.write(sock, 100)
        peer.expect_sent(100)
        arm.sleep(100 * MS)
        peer.send("A")
        peer.drain()
    assert peer.state == "ESTABLISHED"


@short_rto
@clause("RFC 9293 MUST-20")
def test_user_timeout_of_a_connect(arm: Arm, peer: Peer) -> None:
    """TCP_USER_TIMEOUT bounds an open too."""
    sock = arm.socket()
    sock.setsockopt(TCP, socket.TCP_USER_TIMEOUT, 1500)
    start = peer.wire.now_ns
    peer.connect(sock)
    arm.wait(lambda: connect_ended(sock))
    assert peer.wire.now_ns - start < 8 * SEC
    assert peer.state == "CLOSED"


def connect_ended(sock: Any) -> None:
    """Raises BlockingIOError until the attempt has failed."""
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
        raise BlockingIOError
