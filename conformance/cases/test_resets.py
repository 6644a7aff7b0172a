# SPDX-License-Identifier: MIT
"""Resets, and segments that somebody else may have made: RFC 5961."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from conformance.peer import errno_of

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Peer

clause = pytest.mark.clause

STATES = ["ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK"]


def bring_to(peer: Peer, state: str) -> Any:
    """A connection in a state; its socket stays open where it can."""
    import socket

    sock = peer.established()
    if state in {"FIN-WAIT-1", "FIN-WAIT-2", "CLOSING"}:
        sock.shutdown(socket.SHUT_WR)
        peer.expect("FA", seq=1)
    if state == "FIN-WAIT-2":
        peer.send("A")
    if state in {"CLOSE-WAIT", "LAST-ACK"}:
        peer.send("FA")
        peer.expect("A", ack=2)
    if state == "CLOSING":
        peer.send("FA", ack=1)
        peer.expect("A", ack=2)
    if state == "LAST-ACK":
        sock.shutdown(socket.SHUT_WR)
        peer.expect("FA", seq=1)
    if state in {"FIN-WAIT-1", "CLOSING", "LAST-ACK"}:
        peer.rcv_nxt = 1  # the FIN is not acknowledged yet
    assert peer.state == state
    return sock


@pytest.mark.parametrize("state", STATES)
@clause("RFC 9293 3.10.7.4, RFC 5961 3")
def test_exact_reset(arm: Arm, peer: Peer, state: str) -> None:
    """RST with the next number expected ends the connection, without an answer."""
    bring_to(peer, state)
    peer.send("R")
    peer.expect_nothing()
    assert peer.state == "CLOSED"


@pytest.mark.parametrize("state", STATES)
@clause("RFC 5961 3.2")
def test_reset_in_the_window(arm: Arm, peer: Peer, state: str) -> None:
    """RST inside the window but not at its start gets a challenge ACK and ends nothing."""
    bring_to(peer, state)
    peer.send("R", seq=peer.snd_nxt + 100)
    peer.expect_now("A", ack=peer.snd_nxt, len=0)
    assert peer.state == state


@pytest.mark.parametrize("offset", [-1, -1000, 1 << 20, 1 << 30])
@clause("RFC 5961 3.2")
def test_reset_outside_the_window(arm: Arm, peer: Peer, offset: int) -> None:
    """RST outside of the window is dropped without an answer."""
    peer.established()
    peer.send("R", seq=1 + offset)
    peer.expect_nothing()
    assert peer.state == "ESTABLISHED"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("offset", [-1, 0, 100, 1 << 30], ids=["old", "exact", "inside", "far"])
@clause("RFC 5961 4.2")
def test_syn_in_an_open_connection(arm: Arm, peer: Peer, state: str, offset: int) -> None:
    """A SYN gets a challenge ACK, whatever its number, and ends nothing."""
    bring_to(peer, state)
    peer.send("S", seq=peer.snd_nxt + offset)
    peer.expect_now("A", ack=peer.snd_nxt, len=0)
    assert peer.state == state


@clause("RFC 5961 4.2")
def test_challenge_then_reset(arm: Arm, peer: Peer) -> None:
    """A peer that has restarted answers the challenge by an exact RST, and can connect again."""
    sock = peer.established()
    peer.send("S", seq=5000)
    challenge = peer.expect_now("A", len=0)
    peer.send("R", seq=challenge.ack)
    arm.settle()
    assert peer.state == "CLOSED"
    assert errno_of(lambda: sock.recv(1)) == "ECONNRESET"


@clause("RFC 5961 5.2")
def test_data_with_an_ack_from_long_ago(arm: Arm, peer: Peer) -> None:
    """Data whose ACK lies further back than any window was get an ACK and are not taken."""
    sock = peer.established()
    peer.send("A", b"evil", seq=1, ack=1 - 70000)
    peer.expect_now("A", seq=1, ack=1, len=0)
    assert errno_of(lambda: sock.recv(10)) == "EAGAIN"


@clause("RFC 5961 5.2")
def test_data_with_an_ack_of_the_future(arm: Arm, peer: Peer) -> None:
    """Data whose ACK is for what was not sent get an ACK and are not taken."""
    sock = peer.established()
    peer.send("A", b"evil", seq=1, ack=70000)
    peer.expect_now("A", seq=1, ack=1, len=0)
    assert errno_of(lambda: sock.recv(10)) == "EAGAIN"


@clause("RFC 5961 5.2")
def test_data_with_an_old_ack(arm: Arm, peer: Peer) -> None:
    """Data whose ACK is old, but not older than a window, are taken."""
    sock = peer.established()
    peer.write(sock, 1000)
    peer.expect_sent(1000)
    peer.send("A")
    peer.send("A", 10, ack=1)
    peer.read(sock, 10)


@pytest.mark.arm(challenge_ms=500)
@clause("RFC 5961 7")
def test_challenges_are_limited(arm: Arm, peer: Peer) -> None:
    """A flood of RSTs beside the mark gets far fewer challenge ACKs than there are RSTs."""
    peer.established()
    for i in range(100):
        peer.send("R", seq=100 + i)
    answers = peer.drain()
    assert 1 <= len(answers) <= 20
    assert peer.state == "ESTABLISHED"


@clause("RFC 9293 SHLD-2")
def test_reset_with_data(arm: Arm, peer: Peer) -> None:
    """A RST may carry data, a reason in words; it counts all the same."""
    sock = peer.established()
    peer.send("R", b"no such service")
    arm.settle()
    assert peer.state == "CLOSED"
    assert errno_of(lambda: sock.recv(100)) == "ECONNRESET"


@pytest.mark.parametrize("ack", [1, 0, 999999])
@clause("RFC 9293 3.10.7.4")
def test_reset_with_any_ack(arm: Arm, peer: Peer, ack: int) -> None:
    """The acknowledgement number of a RST does not matter in an open connection."""
    peer.established()
    peer.send("RA", ack=ack)
    peer.expect_nothing()
    assert peer.state == "CLOSED"


@clause("RFC 9293 MUST-12")
def test_reset_is_told_once(arm: Arm, peer: Peer) -> None:
    """After a RST recv() fails with ECONNRESET once; then the stream is at its end."""
    sock = peer.established()
    peer.send("R")
    arm.settle()
    assert errno_of(lambda: sock.recv(10)) == "ECONNRESET"
    assert sock.recv(10) == b""
    assert errno_of(lambda: sock.send(b"x")) == "EPIPE"


@clause("RFC 9293 3.10.7.4")
def test_reset_behind_data(arm: Arm, peer: Peer) -> None:
    """Data that came before a RST can still be read; then recv() says ECONNRESET."""
    sock = peer.established()
    peer.send("A", 100)
    peer.line.collect()
    peer.send("R")
    arm.settle()
    peer.read(sock, 100)
    assert errno_of(lambda: sock.recv(100)) == "ECONNRESET"


@clause("RFC 9293 3.10.7.4")
def test_reset_drops_what_waits(arm: Arm, peer: Peer) -> None:
    """After a RST nothing is sent any more, whatever waited."""
    peer.wnd = 2920
    sock = peer.established()
    peer.write(sock, 10000)
    peer.expect_data([1460, 1460])
    peer.send("R")
    peer.expect_nothing()
    peer.send("A", seq=1, wnd=60000)
    peer.expect_now("R", len=0)


@clause("RFC 9293 3.5.2")
def test_segments_after_a_reset(arm: Arm, peer: Peer) -> None:
    """What comes after a RST belongs to nothing and gets RST with the number it acknowledges."""
    peer.established()
    peer.send("R")
    peer.expect_nothing()
    peer.send("A", b"hello", ack=1)
    peer.expect_now("R", seq=1, len=0)


@clause("RFC 9293 3.10.7.4")
def test_reset_behind_a_gap(arm: Arm, peer: Peer) -> None:
    """Out-of-order data do not move the number that a RST must have."""
    peer.established()
    peer.send("A", 100, seq=101)
    peer.expect_now("A", ack=1)
    peer.send("R", seq=201)
    peer.drain()
    assert peer.state == "ESTABLISHED"
    peer.send("R", seq=1)
    arm.settle()
    assert peer.state == "CLOSED"


@clause("RFC 9293 3.10.7.4")
def test_reset_after_fin(arm: Arm, peer: Peer) -> None:
    """A RST behind the peer's FIN: the reader has its end of stream, the writer gets EPIPE."""
    sock = peer.established()
    peer.send("FA")
    peer.expect("A", ack=2)
    peer.send("R")
    arm.settle()
    assert errno_of(lambda: sock.send(b"x")) == "EPIPE"
    assert sock.recv(10) == b""
