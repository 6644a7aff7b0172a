# SPDX-License-Identifier: MIT
"""Closing: from either side, from both, half, hard; and TIME-WAIT."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

from conformance.arms import MS
from conformance.peer import Offer, errno_of, one_of

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Peer

clause = pytest.mark.clause

LINGER_0 = struct.pack("ii", 1, 0)


def fin_wait_1(peer: Peer, **offer: Any) -> Any:
    """The application has shut its side down; the FIN is out."""
    sock = peer.established(**offer)
    sock.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=1, ack=1, len=0)
    return sock


def fin_wait_2(peer: Peer, **offer: Any) -> Any:
    """The FIN is acknowledged."""
    sock = fin_wait_1(peer, **offer)
    peer.send("A")
    assert peer.state == "FIN-WAIT-2"
    return sock


def close_wait(peer: Peer, **offer: Any) -> Any:
    """The peer has sent FIN."""
    sock = peer.established(**offer)
    peer.send("FA")
    peer.expect("A", ack=2)
    return sock


def time_wait(peer: Peer, **offer: Any) -> Any:
    """Both FINs are acknowledged, the arm's first; the socket is closed."""
    sock = fin_wait_2(peer, **offer)
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    sock.close()
    assert peer.state == "TIME-WAIT"
    return sock


@clause("RFC 9293 3.6, 3.10.4")
def test_passive_close(arm: Arm, peer: Peer) -> None:
    """FIN from the peer: end of stream, CLOSE-WAIT; close() sends FIN: LAST-ACK; its ACK: CLOSED."""
    sock = close_wait(peer)
    assert arm.wait(lambda: sock.recv(1)) == b""
    assert peer.state == "CLOSE-WAIT"
    sock.close()
    peer.expect("FA", seq=1, ack=2)
    assert peer.state == "LAST-ACK"
    peer.send("A")
    assert peer.state == "CLOSED"
    peer.expect_nothing()


@clause("RFC 9293 3.6, 3.10.4")
def test_active_close(arm: Arm, peer: Peer) -> None:
    """close(), then the peer's: FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT."""
    sock = peer.established()
    sock.close()
    peer.expect("FA", seq=1, ack=1)
    assert peer.state == "FIN-WAIT-1"
    peer.send("A")
    assert peer.state == "FIN-WAIT-2"
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    assert peer.state == "TIME-WAIT"


@clause("RFC 9293 3.10.7.4")
def test_fin_with_the_ack_of_the_fin(arm: Arm, peer: Peer) -> None:
    """A FIN that acknowledges ours: from FIN-WAIT-1 to TIME-WAIT at once."""
    fin_wait_1(peer)
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    assert peer.state == "TIME-WAIT"


@clause("RFC 9293 3.6 figure 13")
def test_simultaneous_close(arm: Arm, peer: Peer) -> None:
    """FINs that cross: CLOSING, and TIME-WAIT with the ACK."""
    sock = fin_wait_1(peer)
    peer.send("FA", ack=1)
    peer.expect("A", ack=2)
    assert peer.state == "CLOSING"
    peer.send("A")
    assert peer.state == "TIME-WAIT"
    assert arm.wait(lambda: sock.recv(1)) == b""


@clause("RFC 9293 3.6")
def test_half_close_goes_on_receiving(arm: Arm, peer: Peer) -> None:
    """After shutdown(SHUT_WR) what the peer sends is received and acknowledged."""
    sock = fin_wait_2(peer)
    peer.send("A", 100)
    peer.send("A", 100)
    peer.read(sock, 200)
    assert peer.expect("A", seq=2).ack in {101, 201}
    assert errno_of(lambda: sock.send(b"x")) == "EPIPE"


@clause("RFC 9293 3.6")
def test_half_closed_peer_gets_data(arm: Arm, peer: Peer) -> None:
    """In CLOSE-WAIT the application can go on sending."""
    sock = close_wait(peer)
    peer.write(sock, 3000)
    peer.expect_data([1460, 1460, 80])
    peer.send("A")
    peer.write(sock, 10)
    peer.expect_sent(10)


@clause("RFC 9293 3.10.4")
def test_fin_comes_behind_the_data(arm: Arm, peer: Peer) -> None:
    """close() sends what is queued first, and FIN behind it."""
    peer.wnd = 2920
    sock = peer.established()
    peer.write(sock, 8000)
    sock.close()
    peer.expect_data([1460, 1460])
    peer.expect_nothing()
    peer.send("A")
    peer.expect_data([1460, 1460])
    peer.wnd = 8000
    peer.send("A")
    end = 5841
    while end < 8002:
        end = peer.expect(flags=one_of("A", "FA"), seq=end).end
    assert end == 8002
    peer.send("A", ack=8002)
    assert peer.state == "FIN-WAIT-2"


@clause("RFC 9293 3.10.4, SHLD-27")
def test_fin_rides_on_data(arm: Arm, peer: Peer) -> None:
    """FIN goes with the last data that wait."""
    peer.wnd = 2920
    sock = peer.established()
    peer.write(sock, 3020)
    sock.shutdown(socket.SHUT_WR)
    peer.expect_data([1460, 1460])
    peer.send("A")
    peer.expect("FA", seq=2921, len=100)


@clause("RFC 9293 3.10.7.4")
def test_fin_again_in_close_wait(arm: Arm, peer: Peer) -> None:
    """A FIN that comes again is acknowledged again."""
    close_wait(peer)
    peer.send("FA", seq=1)
    peer.expect_now("A", ack=2, len=0)
    assert peer.state == "CLOSE-WAIT"


@clause("RFC 9293 3.10.7.4")
def test_fin_again_in_time_wait(arm: Arm, peer: Peer) -> None:
    """In TIME-WAIT a FIN that comes again is acknowledged again."""
    time_wait(peer)
    peer.send("FA", seq=1)
    peer.expect_now("A", seq=2, ack=2, len=0)
    assert peer.state == "TIME-WAIT"


@clause("RFC 9293 3.10.7.4")
def test_old_data_in_time_wait(arm: Arm, peer: Peer) -> None:
    """An old segment in TIME-WAIT gets an ACK."""
    time_wait(peer)
    peer.send("A", b"old", seq=-100)
    peer.expect_now("A", seq=2, ack=2, len=0)
    assert peer.state == "TIME-WAIT"


@clause("RFC 1337 3")
def test_reset_in_time_wait(arm: Arm, peer: Peer) -> None:
    """TIME-WAIT is not ended by a RST."""
    time_wait(peer)
    peer.send("R")
    peer.line.collect()
    assert peer.state == "TIME-WAIT"


@clause("RFC 9293 MAY-2, RFC 6191")
def test_reopen_from_time_wait(arm: Arm, peer: Peer) -> None:
    """A SYN with a higher number opens the connection again out of TIME-WAIT."""
    listener = listen_then_time_wait(peer)
    again = reborn(peer, isn=peer.isn + 100_000)
    again.send("S")
    again.expect_now("SA", seq=0, ack=1)
    again.send("A")
    again.accept(listener)
    assert again.state == "ESTABLISHED"
    again.send("A", 10)
    # Above all that the old connection has used.
    assert (again.arm_isn - peer.arm_isn) % (1 << 32) < 1 << 31


@clause("RFC 6191 2")
def test_reopen_from_time_wait_by_timestamp(arm: Arm, peer: Peer) -> None:
    """A SYN with a lower number but a later timestamp opens the connection again too."""
    listener = listen_then_time_wait(peer, ts=True)
    again = reborn(peer, isn=peer.isn - 100_000)
    again.offer = Offer(ts=True)
    again.tsval = peer.tsval + 5000
    again.send("S")
    again.expect_now("SA", seq=0, ack=1)
    again.send("A")
    again.accept(listener)


@clause("RFC 6191 2")
def test_old_syn_in_time_wait(arm: Arm, peer: Peer) -> None:
    """A SYN with a lower number does not end TIME-WAIT."""
    listen_then_time_wait(peer)
    again = reborn(peer, isn=peer.isn - 100_000)
    again.arm_isn = peer.arm_isn
    again.syn = peer.syn
    again.send("S", seq=0)
    got = again.expect_now("A", seq=2)
    assert got.raw.ack == (peer.isn + 2) % (1 << 32)
    assert peer.state == "TIME-WAIT"


@clause("RFC 6191 2, RFC 7323 5.3")
def test_old_timestamp_in_time_wait(arm: Arm, peer: Peer) -> None:
    """A SYN with an earlier timestamp does not end TIME-WAIT, whatever its number."""
    peer.tsval = 100_000
    listen_then_time_wait(peer, ts=True)
    again = reborn(peer, isn=peer.isn + 100_000)
    again.offer = Offer(ts=True)
    again.tsval = 90_000
    again.arm_isn, again.syn = peer.arm_isn, peer.syn
    again.send("S")
    for got in again.drain():
        assert "S" not in got.flags
    assert peer.state == "TIME-WAIT"


def listen_then_time_wait(peer: Peer, **offer: Any) -> Any:
    """A connection in TIME-WAIT whose listener is still there."""
    peer.offer = Offer(**offer)
    listener = peer.listen()
    peer.shake_hands()
    sock = peer.accept(listener)
    sock.close()
    peer.expect("FA", seq=1)
    peer.send("A")
    peer.send("FA")
    peer.expect("A", seq=2, ack=2)
    assert peer.state == "TIME-WAIT"
    return listener


def reborn(peer: Peer, *, isn: int) -> Peer:
    """A new connection with the same addresses and ports."""
    again = peer.another(isn=isn % (1 << 32))
    again.port = peer.port
    return again


@clause("RFC 9293 3.10.5, POSIX SO_LINGER")
def test_linger_0(arm: Arm, peer: Peer) -> None:
    """close() with SO_LINGER 0 sends RST at once, and nothing is left."""
    sock = peer.established()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    sock.close()
    peer.expect_now("RA", seq=1, ack=1, len=0)
    assert peer.state == "CLOSED"
    peer.send("A", 10)
    peer.expect_now("R", len=0)


@clause("RFC 9293 3.10.5")
def test_linger_0_drops_what_waits(arm: Arm, peer: Peer) -> None:
    """close() with SO_LINGER 0 drops data that wait, and RST is all that comes."""
    peer.wnd = 2920
    sock = peer.established()
    peer.write(sock, 4000)
    peer.expect_data([1460, 1460])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_0)
    sock.close()
    got = peer.expect_now("RA", len=0)
    assert got.seq in {2921, 4001}
    peer.expect_nothing()


@clause("RFC 9293 SHLD-3, RFC 2525 2.17")
def test_close_over_unread_data(arm: Arm, peer: Peer) -> None:
    """close() with data unread sends RST instead of FIN."""
    sock = peer.established()
    peer.send("A", 100)
    peer.line.collect()
    peer.drain()
    sock.close()
    got = peer.expect_now(flags=one_of("R", "RA"), len=0)
    assert got.seq == 1
    assert peer.state == "CLOSED"


@clause("RFC 9293 SHLD-3")
def test_close_over_read_data(arm: Arm, peer: Peer) -> None:
    """close() with everything read sends FIN."""
    sock = peer.established()
    peer.send("A", 100)
    peer.read(sock, 100)
    peer.drain()
    sock.close()
    peer.expect_now("FA", seq=1, ack=101)


@clause("RFC 9293 3.10.4, RFC 1122 4.2.2.13")
def test_data_after_close(arm: Arm, peer: Peer) -> None:
    """Data for a socket that is closed get RST: nobody will read them."""
    sock = peer.established()
    sock.close()
    peer.expect("FA", seq=1)
    peer.send("A")
    assert peer.state == "FIN-WAIT-2"
    peer.send("A", 100)
    got = peer.expect_now(flags=one_of("R", "RA"), len=0)
    assert got.seq == 2
    assert peer.state == "CLOSED"


@clause("RFC 9293 3.10.4, RFC 1122 4.2.2.13")
def test_data_with_the_ack_after_close(arm: Arm, peer: Peer) -> None:
    """Data that come with the ACK of the FIN of a closed socket get RST."""
    sock = peer.established()
    sock.close()
    peer.expect("FA", seq=1)
    peer.send("A", 100)
    peer.expect_now(flags=one_of("R", "RA"), len=0)
    assert peer.state == "CLOSED"


@clause("RFC 9293 3.5.2")
def test_after_last_ack_nothing_is_left(arm: Arm, peer: Peer) -> None:
    """When the passive close is over, segments get RST."""
    sock = close_wait(peer)
    sock.close()
    peer.expect("FA", seq=1)
    peer.send("A")
    assert peer.state == "CLOSED"
    peer.send("A", 10)
    peer.expect_now("R", seq=2)


@clause("RFC 9293 3.10.7.4")
def test_fin_wait_2_answers_duplicates(arm: Arm, peer: Peer) -> None:
    """A duplicate in FIN-WAIT-2 is acknowledged."""
    sock = fin_wait_2(peer)
    peer.send("A", 50)
    peer.read(sock, 50)
    peer.drain()
    peer.send("A", 50, seq=1)
    peer.expect_now("A", seq=2, ack=51)


@pytest.mark.arm(fin_wait2_s=1, rto_min_ms=200)
@clause("Linux tcp_fin_timeout")
def test_fin_wait_2_of_nobody_ends(arm: Arm, peer: Peer) -> None:
    """A connection in FIN-WAIT-2 that no application holds ends after its time."""
    sock = peer.established()
    sock.close()
    peer.expect("FA", seq=1)
    peer.send("A")
    arm.sleep(1200 * MS)
    arm.wait(lambda: gone(peer))
    peer.send("FA")
    peer.expect_now(flags=one_of("R", "RA"), seq=2)


def gone(peer: Peer) -> None:
    """Raises BlockingIOError while there is a connection."""
    if peer.state != "CLOSED":
        raise BlockingIOError


@clause("POSIX shutdown()")
def test_shutdown_reading(arm: Arm, peer: Peer) -> None:
    """After shutdown(SHUT_RD) recv() gives the end of the stream; nothing is said on the wire."""
    sock = peer.established()
    sock.shutdown(socket.SHUT_RD)
    peer.expect_nothing()
    assert sock.recv(10) == b""
    assert peer.state == "ESTABLISHED"
    peer.write(sock, 10)
    peer.expect_sent(10)


@clause("POSIX shutdown()")
def test_shutdown_both(arm: Arm, peer: Peer) -> None:
    """shutdown(SHUT_RDWR) sends FIN, and the socket still is there."""
    sock = peer.established()
    sock.shutdown(socket.SHUT_RDWR)
    peer.expect("FA", seq=1)
    peer.send("A")
    assert peer.state == "FIN-WAIT-2"
    assert sock.recv(10) == b""
    assert errno_of(lambda: sock.send(b"x")) == "EPIPE"


@clause("RFC 9293 3.10.7.4")
def test_fin_before_data(arm: Arm, peer: Peer) -> None:
    """A FIN that overtakes data does not count before they are there."""
    sock = fin_wait_2(peer)
    peer.send("FA", seq=101)
    peer.drain()
    assert peer.state == "FIN-WAIT-2"
    peer.send("A", 100)
    peer.send("FA", seq=101)
    peer.snd_nxt = 102
    assert peer.drain()[-1].ack == 102
    assert peer.state == "TIME-WAIT"
    peer.read(sock, 100)
    assert arm.wait(lambda: sock.recv(1)) == b""


@clause("RFC 9293 SHLD-31")
def test_fin_before_data_is_kept(arm: Arm, peer: Peer) -> None:
    """A FIN without data that overtakes others need not come again."""
    fin_wait_2(peer)
    peer.send("FA", seq=101)
    peer.drain()
    peer.send("A", 100)
    peer.expect_now("A", ack=102)


@clause("RFC 9293 MAY-13")
def test_fin_before_data_is_answered(arm: Arm, peer: Peer) -> None:
    """A FIN without data that overtakes others is answered at once."""
    fin_wait_2(peer)
    peer.send("FA", seq=101)
    peer.expect_now("A", ack=1)


@clause("RFC 9293 3.10.7.4")
def test_ack_of_half_of_it(arm: Arm, peer: Peer) -> None:
    """An ACK for the data but not for the FIN leaves FIN-WAIT-1 as it is."""
    sock = peer.established()
    peer.write(sock, 100)
    peer.expect_sent(100)
    sock.shutdown(socket.SHUT_WR)
    peer.expect("FA", seq=101)
    peer.send("A", ack=101)
    assert peer.state == "FIN-WAIT-1"
    peer.send("A", ack=102)
    assert peer.state == "FIN-WAIT-2"
