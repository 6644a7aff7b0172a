# SPDX-License-Identifier: MIT
"""Windows: closed, probed, shrunk, opened again; and silly ones that nobody should send."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING, Any

import pytest

from conformance.arms import MS
from conformance.peer import between, errno_of, pattern

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Got, Peer

clause = pytest.mark.clause
short_rto = pytest.mark.arm(rto_min_ms=200)


def small_buffer(peer: Peer, size: int = 8192, **offer: Any) -> Any:
    """An open connection whose receive buffer was set small before."""
    from conformance.peer import Offer

    peer.offer = Offer(**offer)

    def prepare(sock: Any) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)

    listener = peer.listen(prepare=prepare)
    peer.shake_hands()
    sock = peer.accept(listener)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.close()
    return sock


def fill(peer: Peer) -> Got:
    """Send what the arm's window takes, until it is closed; the ACK that closes it."""
    assert peer.syn is not None
    last: Got = peer.syn
    edge = 1 + peer.syn.wnd
    for _ in range(10_000):
        size = min(1000, edge - peer.snd_nxt)
        if size > 0:
            peer.send("A", size)
        got = peer.drain()
        if not got and size <= 0:
            got = [peer.expect("A")]
        for ack in got:
            assert ack.ack + ack.wnd >= edge, f"the window was taken back\n{peer.history()}"
            edge, last = ack.ack + ack.wnd, ack
        if last.wnd == 0 and last.ack == peer.snd_nxt:
            return last
    raise AssertionError(f"the window does not close\n{peer.history()}")


@clause("RFC 9293 3.8.6")
def test_window_is_kept_to(arm: Arm, peer: Peer) -> None:
    """No more is sent than the window allows."""
    peer.wnd = 3000
    sock = peer.established()
    peer.write(sock, 10000)
    assert sum(got.len for got in peer.drain()) in {2920, 3000}
    peer.expect_nothing()


@clause("RFC 9293 3.8.6")
def test_window_moves_with_the_ack(arm: Arm, peer: Peer) -> None:
    """With each ACK the window slides and as much as it frees goes out."""
    peer.wnd = 2920
    sock = peer.established()
    peer.write(sock, 10000)
    for _ in range(3):
        peer.expect_data([1460, 1460])
        peer.expect_nothing()
        peer.send("A")


@clause("RFC 9293 3.8.6")
def test_closed_window(arm: Arm, peer: Peer) -> None:
    """Into a closed window nothing is sent at once."""
    sock = peer.established()
    peer.send("A", wnd=0)
    peer.write(sock, 1000)
    peer.expect_nothing()


@clause("RFC 9293 3.8.6.1")
def test_window_update_lets_go(arm: Arm, peer: Peer) -> None:
    """An ACK that opens the window sends what waits at once."""
    sock = peer.established()
    peer.send("A", wnd=0)
    peer.write(sock, 1000)
    peer.expect_nothing()
    peer.send("A", wnd=5000)
    got = peer.expect_now("A", seq=1, len=1000)
    assert got.data == pattern(0, 1000)


@short_rto
@clause("RFC 9293 MUST-35, MUST-36, SHLD-29")
def test_zero_window_probe(arm: Arm, peer: Peer) -> None:
    """A closed window is probed, by an octet at its edge or below, again and again."""
    sock = peer.established()
    peer.send("A", wnd=0)
    peer.write(sock, 1000)
    for _ in range(2):
        probe = peer.expect("A", seq=between(0, 1), len=between(0, 1))
        peer.send("A", ack=1, wnd=0)
        assert probe.ack == 1
    peer.rcv_nxt = 1
    peer.send("A", wnd=5000)
    rest = peer.expect("A", seq=between(1, 2))
    assert rest.end == 1001


@short_rto
@clause("RFC 9293 SHLD-30")
def test_probes_back_off(arm: Arm, peer: Peer) -> None:
    """The time between probes doubles."""
    sock = peer.established(ts=True)
    peer.send("A", wnd=0)
    peer.write(sock, 1000)
    clock = []
    for _ in range(4):
        got = peer.expect("A", seq=between(0, 1))
        assert got.ts is not None
        clock.append(got.ts[0])
        peer.send("A", ack=1, wnd=0)
    # The arm's own clock, in the timestamps: how late we look does not count.
    gaps = [b - a for a, b in itertools.pairwise(clock)]
    assert gaps[1] > 1.4 * gaps[0], gaps
    assert gaps[2] > 1.4 * gaps[1], gaps


@short_rto
@clause("RFC 9293 MUST-37")
def test_probes_that_are_answered_keep_it_alive(arm: Arm, peer: Peer) -> None:
    """While probes are answered the connection stays, and sends when it may."""
    sock = peer.established()
    peer.send("A", wnd=0)
    peer.write(sock, 100)
    for _ in range(3):
        peer.expect("A", seq=between(0, 1))
        peer.send("A", ack=1, wnd=0)
    assert peer.state == "ESTABLISHED"
    peer.rcv_nxt = 1
    peer.send("A")
    assert peer.expect("A", seq=between(1, 2)).end == 101


@short_rto
@clause("RFC 9293 MUST-35")
def test_probe_octet_may_be_taken(arm: Arm, peer: Peer) -> None:
    """A peer that takes the octet of a probe gets the rest from behind it."""
    sock = peer.established()
    peer.send("A", wnd=0)
    peer.write(sock, 100)
    probe = peer.expect("A", seq=between(0, 1))
    taken = max(probe.end, 1)
    peer.send("A", ack=taken, wnd=2000)
    peer.rcv_nxt = taken
    got = peer.expect("A", seq=taken, len=101 - taken)
    assert got.data == pattern(taken - 1, 101 - taken)


@clause("RFC 9293 MUST-34, SHLD-15")
def test_shrunk_window(arm: Arm, peer: Peer) -> None:
    """A peer that takes its window back gets nothing new beyond it, and the connection goes on."""
    peer.wnd = 4380
    sock = peer.established()
    peer.write(sock, 8000)
    peer.expect_data([1460, 1460, 1460])
    peer.send("A", ack=1461, wnd=1460)
    peer.expect_nothing()
    peer.send("A", ack=4381, wnd=10000)
    peer.expect_data([1460, 1460, 700])


@short_rto
@clause("RFC 9293 SHLD-16, MUST-34")
def test_shrunk_window_and_a_loss(arm: Arm, peer: Peer) -> None:
    """What was sent into a window that was taken back is retransmitted from its start."""
    peer.wnd = 2920
    sock = peer.established()
    peer.write(sock, 2920)
    peer.expect_data([1460, 1460])
    peer.send("A", ack=1, wnd=1460)
    peer.expect("A", seq=1, len=1460)
    peer.send("A", ack=2921, wnd=8000)
    arm.settle()
    assert peer.state == "ESTABLISHED"


@clause("RFC 9293 MUST-38")
def test_no_silly_segments(arm: Arm, peer: Peer) -> None:
    """When a large window opens by a little, no small segment is sent into it at once."""
    sock = peer.established()
    peer.write(sock, 1460)
    peer.expect_sent(1460)
    peer.send("A", wnd=0)
    peer.write(sock, 5000)
    peer.expect_nothing()
    peer.send("A", wnd=50)
    peer.expect_nothing()
    peer.send("A", wnd=8000)
    assert sum(got.len for got in peer.drain()) == 5000


@short_rto
@clause("RFC 9293 3.8.6.2.1")
def test_small_window_for_long(arm: Arm, peer: Peer) -> None:
    """Into a window that stays small, what fits is sent after a while."""
    sock = peer.established()
    peer.send("A", wnd=0)
    peer.write(sock, 5000)
    peer.send("A", wnd=100)
    total = 0
    while total < 100:
        got = peer.expect("A", len=between(0, 100))
        total = max(total, got.end - 1)
        peer.send("A", ack=max(1, got.end), wnd=101 - max(1, got.end))
    assert total == 100


@clause("RFC 9293 3.8.6")
def test_window_closes_when_nobody_reads(arm: Arm, peer: Peer) -> None:
    """The window goes down to 0 when the application reads nothing, its right edge never back."""
    small_buffer(peer)
    assert fill(peer).wnd == 0


@clause("RFC 9293 3.10.7.4")
def test_data_into_a_closed_window(arm: Arm, peer: Peer) -> None:
    """Data beyond a closed window are answered by an ACK that says so, and not taken."""
    small_buffer(peer)
    fill(peer)
    peer.send("A", 1, seq=peer.snd_nxt)
    peer.expect_now("A", ack=peer.snd_nxt, wnd=0)


@clause("RFC 9293 3.8.6.1")
def test_probe_is_answered_while_closed(arm: Arm, peer: Peer) -> None:
    """A probe below the window, as Linux sends it, is answered with the window."""
    small_buffer(peer)
    fill(peer)
    peer.send("A", seq=peer.snd_nxt - 1)
    peer.expect_now("A", ack=peer.snd_nxt, wnd=0)


@clause("RFC 9293 3.8.6.2.2, MUST-39")
def test_reading_opens_the_window(arm: Arm, peer: Peer) -> None:
    """When the application reads all, a window update goes out by itself."""
    sock = small_buffer(peer)
    fill(peer)
    peer.read(sock, peer.snd_nxt - 1)
    update = peer.expect("A", ack=peer.snd_nxt, len=0)
    assert update.wnd >= 1460
    peer.send("A", 100)
    peer.read(sock, 100, at=peer.snd_nxt - 101)


@clause("RFC 9293 MUST-39")
def test_no_silly_window(arm: Arm, peer: Peer) -> None:
    """Reading a few octets does not open a closed window by a few octets."""
    sock = small_buffer(peer)
    fill(peer)
    peer.read(sock, 50)
    for got in peer.drain():
        assert got.wnd == 0 or got.wnd >= 1000
    peer.send("A", seq=peer.snd_nxt - 1)
    got = peer.expect_now("A")
    assert got.wnd == 0 or got.wnd >= 1000


@clause("RFC 9293 MUST-66")
def test_reset_at_a_closed_window(arm: Arm, peer: Peer) -> None:
    """RST counts at a closed window."""
    sock = small_buffer(peer)
    fill(peer)
    peer.send("R")
    arm.settle()
    assert peer.state == "CLOSED"
    assert errno_of(lambda: sock.send(b"x")) in {"ECONNRESET", "EPIPE"}


@clause("RFC 9293 MUST-66")
def test_ack_at_a_closed_window(arm: Arm, peer: Peer) -> None:
    """With its own window closed, the arm still sends, and takes ACKs and windows."""
    sock = small_buffer(peer)
    fill(peer)
    peer.write(sock, 1000)
    peer.expect_sent(1000, wnd=0)
    peer.send("A")
    peer.write(sock, 1000)
    peer.expect_sent(1000)


@clause("RFC 9293 3.10.7.4")
def test_fin_at_a_closed_window(arm: Arm, peer: Peer) -> None:
    """A FIN at the edge of a closed window is taken, then or when the window is open again."""
    sock = small_buffer(peer)
    fill(peer)
    at = peer.snd_nxt
    peer.send("FA", seq=at)
    peer.line.collect()
    peer.drain()
    peer.read(sock, at - 1)
    peer.send("FA", seq=at)
    peer.snd_nxt = at + 1
    assert arm.wait(lambda: sock.recv(1)) == b""
    assert peer.state == "CLOSE-WAIT"


@clause("POSIX SO_RCVBUF")
def test_receive_buffer_is_the_first_window(arm: Arm, peer: Peer) -> None:
    """A listener's small SO_RCVBUF is the window of its SYN-ACKs."""
    small_buffer(peer, 16384)
    assert peer.syn is not None
    assert peer.syn.wnd <= 32768


@clause("RFC 9293 3.8.6, POSIX SO_RCVBUF")
def test_all_that_the_window_promises_is_taken(arm: Arm, peer: Peer) -> None:
    """Every octet that the window has promised is taken and delivered."""
    sock = small_buffer(peer, 16384)
    fill(peer)
    peer.read(sock, peer.snd_nxt - 1)


@clause("RFC 9293 3.10.7.4")
def test_smaller_window_for_the_same_data(arm: Arm, peer: Peer) -> None:
    """A smaller window counts also in an ACK that says nothing else that is new."""
    sock = peer.established()
    peer.send("A", wnd=3000)
    peer.write(sock, 10000)
    assert sum(got.len for got in peer.drain()) <= 3000


@clause("RFC 7323 2.3")
def test_scaled_window(arm: Arm, peer: Peer) -> None:
    """A window beyond 64 KiB is used as far as the congestion window allows."""
    sock = peer.established(wscale=7, sack=True)
    peer.wnd = 2000  # 256000 octets
    peer.send("A")
    for _ in range(5):
        peer.write(sock, 100_000)
        while peer.drain():
            peer.send("A")
    assert peer.written > 65536
    assert peer.rcv_nxt == peer.written + 1
    arm.sleep(1 * MS)
    peer.expect_nothing()
