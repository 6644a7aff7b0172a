# SPDX-License-Identifier: MIT
"""Opening: the arm connects."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING

import pytest

from conformance.arms import SEC
from conformance.peer import Offer, between, errno_of, one_of

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Peer

clause = pytest.mark.clause

SO_ERROR = (socket.SOL_SOCKET, socket.SO_ERROR)


@clause("RFC 9293 3.5, RFC 7323 2.2, RFC 2018 2")
def test_syn_offers_all(arm: Arm, peer: Peer) -> None:
    """A SYN offers MSS, window scale, SACK and timestamps, echoes nothing, and has no data."""
    peer.connect()
    syn = peer.syn
    assert syn is not None
    assert (syn.mss, syn.sack_ok, syn.len, syn.raw.ack) == (1460, True, 0, 0)
    assert syn.wscale is not None
    assert 0 <= syn.wscale <= 14
    assert syn.ts is not None
    assert syn.ts[1] == 0


@pytest.mark.arm(timestamps=False, sack=False, wscale=False)
@clause("RFC 9293 MUST-14")
def test_syn_without_what_is_off(arm: Arm, peer: Peer) -> None:
    """What is switched off is not offered."""
    peer.connect()
    assert peer.syn is not None
    assert peer.syn.raw.options == (("mss", 1460),)


@clause("RFC 7323 2.2, RFC 9293 MUST-1")
def test_syn_window(arm: Arm, peer: Peer) -> None:
    """The window of a SYN is not scaled and at least ten full segments."""
    peer.connect()
    assert peer.syn is not None
    assert 14600 <= peer.syn.raw.window <= 65535


@clause("RFC 9293 3.5")
def test_open_and_talk(arm: Arm, peer: Peer) -> None:
    """SYN, SYN-ACK, ACK; then data both ways."""
    sock = peer.established(active=True, wscale=7, sack=True, ts=True)
    assert peer.state == "ESTABLISHED"
    peer.write(sock, 100)
    peer.expect("A", seq=1, len=100, ack=1)
    peer.send("A", 50)
    peer.read(sock, 50)


@pytest.mark.parametrize(
    ("offer", "size"),
    [(Offer(mss=None), 536), (Offer(mss=1000), 1000), (Offer(mss=1000, ts=True), 988)],
    ids=["no MSS", "MSS", "MSS and timestamps"],
)
@clause("RFC 9293 MUST-15, MUST-16")
def test_synack_decides_the_mss(arm: Arm, peer: Peer, offer: Offer, size: int) -> None:
    """Segments are as large as the SYN-ACK allows, 536 octets if it does not say."""
    sock = peer.established(active=True, mss=offer.mss, ts=offer.ts)
    peer.write(sock, 2 * size + 10)
    peer.expect_data([size, size])


@clause("RFC 7323 1.3, RFC 2018 2")
def test_synack_without_options(arm: Arm, peer: Peer) -> None:
    """What the SYN-ACK leaves out is not used: no timestamps, no scaling, no SACK."""
    sock = peer.established(active=True)
    peer.send("A", 10, seq=101)
    peer.expect_now("A", ack=1, ts=None, sack=[])
    peer.write(sock, 10)
    peer.expect("A", len=10, ts=None)


@clause("RFC 7323 2.2")
def test_synack_window_is_not_scaled(arm: Arm, peer: Peer) -> None:
    """The window of a SYN-ACK counts as it is, whatever the shift."""
    peer.offer = Offer(wscale=8)
    sock = peer.connect()
    peer.send("SA", wnd=1000)
    peer.expect("A")
    peer.write(sock, 8000)
    assert sum(got.len for got in peer.drain()) <= 1000


@clause("RFC 6298 5.5, RFC 9293 MUST-19")
def test_syn_is_sent_again(arm: Arm, peer: Peer) -> None:
    """A SYN without an answer is sent again after a second, then after two, with the same number."""
    peer.connect()
    first = peer.syn
    assert first is not None
    second = peer.expect("S", seq=0)
    third = peer.expect("S", seq=0)
    assert second.t_ns - first.t_ns > 0.7 * SEC
    assert third.t_ns - second.t_ns > 1.5 * SEC


@pytest.mark.arm(syn_retries=1)
@clause("RFC 9293 MUST-20, MUST-47")
def test_nobody_answers(arm: Arm, peer: Peer) -> None:
    """An open that nobody answers ends with ETIMEDOUT."""
    sock = peer.connect()
    peer.expect("S", seq=0)
    assert arm.wait(lambda: not_now(sock)) == "ETIMEDOUT"
    assert peer.state == "CLOSED"


def not_now(sock: object) -> str | None:
    """SO_ERROR of a socket by name, once it is not 0."""
    import errno

    number = sock.getsockopt(*SO_ERROR)  # type: ignore[attr-defined]
    if number == 0:
        raise BlockingIOError
    return errno.errorcode[number]


@clause("RFC 9293 3.10.7.3, MUST-12")
def test_refused(arm: Arm, peer: Peer) -> None:
    """RST with ACK of the SYN: ECONNREFUSED, told once."""
    sock = peer.connect()
    peer.send("RA", seq=0)
    arm.settle()
    assert errno_of(lambda: sock.connect(peer.address)) == "ECONNREFUSED"
    assert sock.getsockopt(*SO_ERROR) == 0
    assert peer.state == "CLOSED"
    peer.expect_nothing()


@pytest.mark.parametrize("how", ["no ACK", "wrong ACK", "ACK of nothing"])
@clause("RFC 9293 3.10.7.3, RFC 5961 3")
def test_reset_that_is_not_for_the_syn(arm: Arm, peer: Peer, how: str) -> None:
    """In SYN-SENT a RST that does not acknowledge the SYN is ignored."""
    sock = peer.connect()
    if how == "no ACK":
        peer.send("R", seq=0)
    else:
        peer.send("RA", seq=0, ack=0 if how == "ACK of nothing" else 7)
    # Linux looks again at once: its SYN may come sooner.
    assert {got.flags for got in peer.drain()} <= {"S"}
    assert peer.state == "SYN-SENT"
    peer.send("SA")
    peer.expect("A", ack=1, past="S")
    assert sock.getsockopt(*SO_ERROR) == 0


@pytest.mark.parametrize("number", [0, 2, 5000])
@clause("RFC 9293 3.10.7.3")
def test_synack_for_something_else(arm: Arm, peer: Peer, number: int) -> None:
    """A SYN-ACK that acknowledges something else gets RST; the right one still opens."""
    peer.connect()
    peer.send("SA", seq=0, ack=number)
    peer.expect_now("R", seq=number, len=0)
    assert peer.state == "SYN-SENT"
    peer.send("SA")
    peer.expect("A", ack=1, past="S")


@clause("RFC 9293 3.10.7.3")
def test_ack_alone_in_syn_sent(arm: Arm, peer: Peer) -> None:
    """An acceptable ACK without SYN or RST is dropped in SYN-SENT."""
    peer.connect()
    peer.send("A", seq=0, ack=1)
    peer.expect_nothing()
    assert peer.state == "SYN-SENT"


@clause("RFC 9293 3.10.7.3")
def test_wrong_ack_alone_in_syn_sent(arm: Arm, peer: Peer) -> None:
    """An ACK for what was never sent gets RST in SYN-SENT."""
    peer.connect()
    peer.send("A", seq=0, ack=100)
    peer.expect_now("R", seq=100, len=0)
    assert peer.state == "SYN-SENT"


@clause("RFC 9293 3.5.1")
def test_half_open_connection_is_discovered(arm: Arm, peer: Peer) -> None:
    """A peer with an old connection answers the SYN with an ACK: it gets RST, and the SYN again."""
    peer.connect()
    peer.send("A", seq=300, ack=100)
    peer.expect_now("R", seq=100)
    peer.expect("S", seq=0)
    peer.send("SA")
    peer.expect("A", ack=1, past="S")


@clause("RFC 9293 MUST-10")
def test_simultaneous_open(arm: Arm, peer: Peer) -> None:
    """Two SYNs cross: each is acknowledged, and the connection works."""
    peer.offer = Offer(ts=True)
    sock = peer.connect()
    peer.send("S")
    peer.expect_now("SA", seq=0, ack=1)
    assert peer.state == "SYN-RECEIVED"
    peer.send("A")
    peer.drain()
    assert peer.state == "ESTABLISHED"
    peer.send("A", 20)
    peer.read(sock, 20)
    peer.write(sock, 30)
    peer.expect_sent(30, ack=21)


@clause("RFC 9293 MUST-10")
def test_simultaneous_open_with_synack(arm: Arm, peer: Peer) -> None:
    """In a simultaneous open the peer may acknowledge by SYN-ACK, as real stacks do."""
    sock = peer.connect()
    peer.send("S")
    peer.expect_now("SA", seq=0, ack=1)
    peer.send("SA", seq=0)
    peer.drain()
    assert peer.state == "ESTABLISHED"
    peer.send("A", 20)
    peer.read(sock, 20)


@clause("RFC 9293 MUST-10, MUST-11")
def test_simultaneous_open_then_reset(arm: Arm, peer: Peer) -> None:
    """A RST in a SYN-RECEIVED that began actively ends the connection with ECONNREFUSED."""
    sock = peer.connect()
    peer.send("S")
    peer.expect_now("SA")
    peer.send("RA")
    arm.settle()
    assert errno_of(lambda: sock.connect(peer.address)) in {"ECONNREFUSED", "ECONNRESET"}
    assert peer.state == "CLOSED"


@clause("RFC 9293 3.10.7.4, RFC 5961 4")
def test_synack_again(arm: Arm, peer: Peer) -> None:
    """A SYN-ACK that comes again, because our ACK was lost, is acknowledged again."""
    peer.established(active=True)
    peer.send("SA", seq=0)
    peer.expect_now("A", seq=1, ack=1, len=0)
    assert peer.state == "ESTABLISHED"


@clause("RFC 9293 3.10.7.3")
def test_synack_with_data(arm: Arm, peer: Peer) -> None:
    """Data that come with a SYN-ACK are not lost: acknowledged, or taken when they come again."""
    sock = peer.connect()
    peer.send("SA", bytes(10), seq=0)
    got = peer.expect("A", ack=one_of(1, 11))
    peer.snd_nxt = 1
    if got.ack == 1:
        peer.send("A", bytes(10))
    assert arm.wait(lambda: sock.recv(100)) == bytes(10)


@clause("RFC 9293 3.10.7.3")
def test_synack_with_fin(arm: Arm, peer: Peer) -> None:
    """A FIN that comes with the SYN-ACK is taken, at the latest when it comes again."""
    sock = peer.connect()
    peer.send("SAF", seq=0)
    got = peer.expect("A", ack=one_of(1, 2))
    peer.snd_nxt = 1
    if got.ack == 1:
        peer.send("FA")
    assert arm.wait(lambda: sock.recv(100)) == b""
    assert peer.state == "CLOSE-WAIT"


@clause("RFC 9293 3.10.4")
def test_close_in_syn_sent(arm: Arm, peer: Peer) -> None:
    """A socket closed while it connects forgets the attempt: the SYN-ACK gets RST."""
    sock = peer.connect()
    sock.close()
    assert peer.state == "CLOSED"
    peer.send("SA")
    peer.expect_now("R", seq=1, len=0)


@clause("RFC 9293 3.10.4")
def test_close_in_syn_sent_leaves_no_connection(arm: Arm, peer: Peer) -> None:
    """A connection whose socket was closed while it connected is reset when it opens."""
    sock = peer.connect()
    sock.close()
    peer.send("SA")
    assert "R" in peer.drain()[-1].flags
    assert peer.state == "CLOSED"


@clause("RFC 9293 3.10.2")
def test_nothing_is_sent_before_it_is_open(arm: Arm, peer: Peer) -> None:
    """Data wait for the connection: the SYN carries none, and send() says so."""
    sock = peer.connect()
    assert errno_of(lambda: sock.send(b"early")) == "EAGAIN"
    peer.expect_nothing()


@clause("RFC 6528 3, RFC 9293 MUST-8")
def test_initial_numbers_differ(arm: Arm, peer: Peer) -> None:
    """Initial sequence numbers of connections to different ports are no simple series."""
    numbers = []
    for _ in range(8):
        other = peer.another()
        other.connect()
        numbers.append(other.arm_isn)
    steps = {(b - a) % (1 << 32) for a, b in itertools.pairwise(numbers)}
    assert len(set(numbers)) == 8
    assert len(steps) > 4
    assert max(steps) > 1 << 24


@clause("RFC 6056 3")
def test_ports_are_of_the_dynamic_range(arm: Arm, peer: Peer) -> None:
    """A port that the stack chooses is from 1024 on, and no two connections share one."""
    ports = []
    for _ in range(8):
        other = peer.another()
        other.connect()
        ports.append(other.arm_port)
        other.send("RA", seq=0)
    assert min(ports) >= 1024
    assert len(set(ports)) == 8


@clause("RFC 9293 MUST-43")
def test_bound_port_is_used(arm: Arm, peer: Peer) -> None:
    """A socket that is bound connects from that port."""
    sock = arm.socket()
    port = peer.line.new_port()
    sock.bind((arm.ip, port))
    peer.connect(sock)
    assert peer.arm_port == port
    assert sock.getsockname() == (arm.ip, port)


@clause("RFC 9293 MUST-49, RFC 1191")
def test_ip_header_of_a_syn(arm: Arm, peer: Peer) -> None:
    """The SYN has DF set, a TTL of 64 and no traffic class; all three are the defaults."""
    peer.connect()
    assert peer.syn is not None
    raw = peer.syn.raw
    assert (raw.ttl, raw.tos, raw.df) == (64, 0, True)


@clause("RFC 9293 3.10.7.3")
def test_first_segment_of_an_open_connection(arm: Arm, peer: Peer) -> None:
    """The ACK that ends the handshake has the window, and is not late."""
    peer.connect()
    peer.send("SA")
    peer.expect_now("A", seq=1, ack=1, len=0, wnd=between(14600, 1 << 30))
