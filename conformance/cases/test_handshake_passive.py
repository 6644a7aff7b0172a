# SPDX-License-Identifier: MIT
"""Opening: the arm listens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance.arms import SEC
from conformance.peer import Offer, between, errno_of, one_of

if TYPE_CHECKING:
    from conformance.arms import Arm
    from conformance.peer import Peer

clause = pytest.mark.clause


@clause("RFC 9293 3.5, RFC 7323 2.2, RFC 2018 2")
def test_all_options(arm: Arm, peer: Peer) -> None:
    """A SYN with all options is answered with all of them, our timestamp echoed."""
    peer.listen()
    peer.offer = Offer(wscale=7, sack=True, ts=True)
    peer.send("S")
    syn = peer.expect_now("SA", seq=0, ack=1, len=0, mss=1460, sack_ok=True)
    assert syn.wscale is not None
    assert syn.ts is not None
    assert syn.ts[1] == peer.tsval


@clause("RFC 7323 1.3, RFC 2018 2")
def test_no_option_is_answered_with_one(arm: Arm, peer: Peer) -> None:
    """A SYN that offers nothing gets nothing but an MSS."""
    peer.listen()
    peer.send("S")
    peer.expect_now("SA", mss=1460, wscale=None, sack_ok=False, ts=None)


@pytest.mark.parametrize(
    "offer",
    [
        Offer(wscale=3),
        Offer(sack=True),
        Offer(ts=True),
        Offer(sack=True, ts=True),
        Offer(wscale=3, sack=True),
    ],
    ids=["wscale", "sack", "ts", "sack+ts", "wscale+sack"],
)
@clause("RFC 7323 1.3, RFC 2018 2")
def test_each_option_by_itself(arm: Arm, peer: Peer, offer: Offer) -> None:
    """Each option is agreed on without the others."""
    peer.listen()
    peer.offer = offer
    peer.send("S")
    syn = peer.expect_now("SA", sack_ok=offer.sack)
    assert (syn.wscale is not None) == (offer.wscale is not None)
    assert (syn.ts is not None) == offer.ts


@pytest.mark.arm(timestamps=False, sack=False, wscale=False)
@clause("RFC 9293 MUST-14")
def test_options_that_are_switched_off(arm: Arm, peer: Peer) -> None:
    """Options that are off are not agreed on, whoever offers them."""
    peer.listen()
    peer.offer = Offer(wscale=7, sack=True, ts=True)
    peer.send("S")
    peer.expect_now("SA", mss=1460, wscale=None, sack_ok=False, ts=None)


@clause("RFC 9293 MUST-15")
def test_no_mss_means_536(arm: Arm, peer: Peer) -> None:
    """To a peer that says no MSS, segments have at most 536 octets."""
    sock = peer.established(mss=None)
    peer.write(sock, 1200)
    peer.expect_data([536, 536, 128])


@clause("RFC 9293 MUST-16, RFC 6691")
def test_small_mss_is_kept_to(arm: Arm, peer: Peer) -> None:
    """Segments have no more octets than the peer's MSS says."""
    sock = peer.established(mss=700)
    peer.write(sock, 1600)
    peer.expect_data([700, 700, 200])


@clause("RFC 6691 2, RFC 9293 MUST-16")
def test_options_count_against_the_mss(arm: Arm, peer: Peer) -> None:
    """The sender takes the 12 octets of timestamps off the MSS; the MSS that it says is without."""
    sock = peer.established(mss=700, ts=True)
    peer.write(sock, 1600)
    peer.expect_data([688, 688, 224])


@pytest.mark.arm(mtu=600)
@clause("RFC 9293 MUST-67, RFC 6691")
def test_mss_follows_the_mtu(arm: Arm, peer: Peer) -> None:
    """The MSS option is the MTU less 40, and bounds what is sent too."""
    sock = peer.established()
    assert peer.syn is not None
    assert peer.syn.mss == 560
    peer.write(sock, 1000)
    peer.expect_data([560, 440])


@pytest.mark.parametrize("kind", [76, 253, 254])
@clause("RFC 9293 MUST-6")
def test_unknown_option(arm: Arm, peer: Peer, kind: int) -> None:
    """An option that nobody knows is stepped over, the one behind it is seen."""
    peer.listen()
    peer.send("S", opts=bytes((kind, 4, 1, 2, 2, 4, 1, 244)))
    peer.expect_now("SA", ack=1)


@pytest.mark.parametrize("length", [0, 1, 40, 255])
@clause("RFC 9293 MUST-7")
def test_illegal_option_length(arm: Arm, peer: Peer, length: int) -> None:
    """An option with an impossible length does no harm: the connection opens as if it was not there."""
    listener = peer.listen()
    peer.send("S", opts=bytes((2, 4, 5, 180, 253, length, 0, 0)))
    peer.expect_now("SA", ack=1)
    peer.send("A")
    peer.accept(listener)


@clause("RFC 9293 MUST-5, MUST-64")
def test_options_in_any_order_and_place(arm: Arm, peer: Peer) -> None:
    """Options need neither order nor alignment."""
    peer.listen()
    peer.send("S", opts=bytes((8, 10, 0, 0, 1, 2, 0, 0, 0, 0, 4, 2, 3, 3, 5, 2, 4, 5, 180, 0)))
    syn = peer.expect_now("SA", sack_ok=True)
    assert syn.wscale is not None
    assert syn.ts is not None
    assert syn.ts[1] == 0x102


@clause("RFC 7323 2.3")
def test_shift_above_14(arm: Arm, peer: Peer) -> None:
    """A window scale of 15 counts as 14."""
    sock = peer.established(wscale=15)
    peer.wnd = 2
    peer.send("A")
    peer.write(sock, 30000)
    peer.expect_data([1460] * 10)
    peer.send("A")
    peer.expect_data([1460] * 10)
    peer.expect("A", len=800)
    peer.wnd = 1
    peer.send("A")
    # The congestion window is 30 segments now, so that the window is what bounds: 1 << 14.
    peer.write(sock, 40000)
    sent = sum(got.len for got in peer.drain())
    assert sent in {1 << 14, (1 << 14) // 1460 * 1460}, sent


@clause("RFC 7323 2.2")
def test_window_of_a_syn_is_not_scaled(arm: Arm, peer: Peer) -> None:
    """The window in a SYN counts as it is: no more than that is sent before the next segment."""
    peer.offer = Offer(wscale=8)
    listener = peer.listen()
    peer.send("S", wnd=2000)
    syn = peer.expect_now("SA")
    assert syn.wscale is not None
    peer.send("A", wnd=7)
    sock = peer.accept(listener)
    peer.write(sock, 8000)
    total = sum(got.len for got in peer.drain())
    assert total == 7 << 8 or total == 1460


@clause("RFC 9293 3.10.7.2")
def test_syn_with_data(arm: Arm, peer: Peer) -> None:
    """Data that come with a SYN are not lost: acknowledged, or taken when they come again."""
    listener = peer.listen()
    peer.send("S", bytes(10), seq=0)
    syn = peer.expect_now("SA", ack=one_of(1, 11))
    peer.snd_nxt = 1
    if syn.ack == 1:
        peer.send("A", bytes(10))
    else:
        peer.send("A", seq=11)
    sock, _ = arm.wait(listener.accept)
    assert arm.wait(lambda: sock.recv(100)) == bytes(10)


@clause("RFC 9293 3.10.7.4")
def test_syn_again_is_answered_again(arm: Arm, peer: Peer) -> None:
    """A retransmitted SYN gets the same SYN-ACK."""
    peer.listen()
    peer.send("S")
    peer.expect_now("SA", seq=0, ack=1)
    peer.send("S", seq=0)
    peer.expect_now(seq=one_of(0, 1), ack=1, flags=one_of("SA", "A"))


@clause("RFC 6298 5.5, RFC 9293 MUST-19")
def test_synack_is_sent_again(arm: Arm, peer: Peer) -> None:
    """A SYN-ACK without an answer is sent again after a second, then after two more."""
    peer.listen()
    peer.send("S")
    first = peer.expect("SA", seq=0)
    second = peer.expect("SA", seq=0, ack=1)
    third = peer.expect("SA", seq=0, ack=1)
    assert second.t_ns - first.t_ns > 0.7 * SEC
    assert third.t_ns - second.t_ns > 1.5 * SEC


@clause("RFC 9293 3.5.2")
def test_syn_to_a_closed_port(arm: Arm, peer: Peer) -> None:
    """A SYN to a port that nobody listens on gets RST with number 0, which acknowledges it."""
    peer.arm_port = peer.line.new_port()
    peer.send("S")
    got = peer.expect_now("RA", ack=1, len=0)
    assert got.raw.seq == 0


@clause("RFC 9293 3.5.2")
def test_ack_to_a_closed_port(arm: Arm, peer: Peer) -> None:
    """A segment with ACK to a closed port gets RST with the number that it acknowledges."""
    peer.arm_port = peer.line.new_port()
    peer.send("A", b"hello", ack=12345)
    got = peer.expect_now("R", len=0)
    assert got.raw.seq == 12345


@clause("RFC 9293 3.5.2")
def test_data_without_ack_to_a_closed_port(arm: Arm, peer: Peer) -> None:
    """Without ACK, the RST acknowledges all that the segment takes in sequence space."""
    peer.arm_port = peer.line.new_port()
    peer.send("F", b"hello")
    got = peer.expect_now("RA", ack=6, len=0)
    assert got.raw.seq == 0


@clause("RFC 9293 3.5.2")
def test_no_reset_for_a_reset(arm: Arm, peer: Peer) -> None:
    """A RST to a closed port gets no answer."""
    peer.arm_port = peer.line.new_port()
    peer.send("R")
    peer.send("RA", ack=77)
    peer.expect_nothing()


@clause("RFC 9293 3.10.7.2")
def test_ack_to_a_listener(arm: Arm, peer: Peer) -> None:
    """An ACK to a listener gets RST with the number that it acknowledges."""
    peer.listen()
    peer.send("A", ack=999)
    got = peer.expect_now("R", len=0)
    assert got.raw.seq == 999


@pytest.mark.parametrize("flags", ["R", "RA", "F", "", "P", "SR"])
@clause("RFC 9293 3.10.7.2")
def test_nonsense_to_a_listener(arm: Arm, peer: Peer, flags: str) -> None:
    """RST, FIN alone and no flag at all are dropped by a listener without an answer."""
    peer.listen()
    peer.send(flags, seq=0)
    peer.expect_nothing()


@clause("RFC 9293 3.10.7.2")
def test_synack_to_a_listener(arm: Arm, peer: Peer) -> None:
    """A SYN-ACK to a listener gets RST."""
    peer.listen()
    peer.send("SA", seq=0, ack=500)
    got = peer.expect_now("R", len=0)
    assert got.raw.seq == 500


@pytest.mark.parametrize("number", [0, 2, 1000])
@clause("RFC 9293 3.10.7.4")
def test_wrong_ack_in_syn_received(arm: Arm, peer: Peer, number: int) -> None:
    """An ACK for something else than the SYN-ACK gets RST, and the right one still opens."""
    listener = peer.listen()
    peer.send("S")
    peer.expect_now("SA")
    peer.send("A", ack=number)
    peer.expect_now("R", seq=number, len=0)
    peer.send("A")
    peer.accept(listener)


@clause("RFC 9293 MUST-11")
def test_reset_in_syn_received(arm: Arm, peer: Peer) -> None:
    """A RST in SYN-RECEIVED ends the attempt and leaves the listener as it was."""
    listener = peer.listen()
    peer.send("S")
    peer.expect_now("SA")
    peer.send("R")
    peer.expect_nothing()
    peer.send("A")
    peer.expect_now("R", seq=1)
    assert errno_of(listener.accept) == "EAGAIN"
    other = peer.another()
    other.shake_hands()
    other.accept(listener)


@clause("RFC 5961 3")
def test_reset_beside_the_mark_in_syn_received(arm: Arm, peer: Peer) -> None:
    """A RST in the window but not at its start does not end the attempt."""
    listener = peer.listen()
    peer.send("S")
    peer.expect_now("SA")
    peer.send("R", seq=100)
    peer.drain()
    peer.send("A")
    peer.accept(listener)


@clause("RFC 9293 3.10.7.4")
def test_data_with_the_last_ack(arm: Arm, peer: Peer) -> None:
    """The segment that finishes the handshake may carry data."""
    listener = peer.listen()
    peer.send("S")
    peer.expect_now("SA")
    peer.send("A", 300)
    peer.read(peer.accept(listener), 300)
    peer.expect("A", ack=301)


@clause("RFC 9293 3.10.7.4")
def test_lost_last_ack(arm: Arm, peer: Peer) -> None:
    """When the last ACK is lost, the data behind it finish the handshake."""
    listener = peer.listen()
    peer.send("S")
    peer.expect_now("SA")
    peer.send("A", 100)
    peer.send("A", 100)
    peer.read(peer.accept(listener), 200)


@clause("RFC 9293 3.10.7.4")
def test_fin_with_the_last_ack(arm: Arm, peer: Peer) -> None:
    """The segment that finishes the handshake may carry FIN too."""
    listener = peer.listen()
    peer.send("S")
    peer.expect_now("SA")
    peer.send("FA", 10)
    sock = peer.accept(listener)
    peer.read(sock, 10)
    assert arm.wait(lambda: sock.recv(1)) == b""
    peer.expect("A", ack=12)
    assert peer.state == "CLOSE-WAIT"


@clause("RFC 9293 3.10.7.4, RFC 7323 5.3")
def test_old_segment_in_syn_received(arm: Arm, peer: Peer) -> None:
    """A segment from outside of the window is answered in SYN-RECEIVED, and changes nothing."""
    listener = peer.listen()
    peer.send("S")
    peer.expect_now("SA")
    peer.send("A", b"x", seq=-5000)
    for got in peer.drain():
        assert got.ack == 1
        assert "R" not in got.flags
    peer.send("A")
    peer.accept(listener)


@clause("RFC 9293 MUST-41")
def test_backlog_full(arm: Arm, peer: Peer) -> None:
    """With a full backlog no more connections open, and none is refused; after accept() they open."""
    listener = peer.listen(backlog=1)
    waiting = []
    refused = None
    for _ in range(6):
        other = peer.another()
        other.send("S")
        if not (got := other.drain()):
            refused = other
            break
        assert got[0].flags == "SA"
        other.send("A")
        other.drain()
        waiting.append(other)
    assert refused is not None, "a backlog of 1 took six connections"
    waiting[0].accept(listener)
    refused.send("S", seq=0)
    refused.expect("SA", ack=1)


@clause("RFC 9293 MUST-41")
def test_connections_of_one_port_are_apart(arm: Arm, peer: Peer) -> None:
    """Two connections to one port do not mix, and the listener goes on."""
    listener = peer.listen()
    peer.shake_hands()
    first = peer.accept(listener)
    other = peer.another()
    other.shake_hands()
    second = other.accept(listener)
    peer.send("A", b"to the first")
    other.send("A", b"to the second")
    assert arm.wait(lambda: first.recv(100)) == b"to the first"
    assert arm.wait(lambda: second.recv(100)) == b"to the second"


@clause("RFC 9293 MUST-3")
def test_bad_checksum(arm: Arm, peer: Peer) -> None:
    """A SYN with a wrong checksum is dropped without an answer."""
    peer.listen()
    peer.send("S", csum=0x1234)
    peer.expect_nothing()


@pytest.mark.parametrize("source", ["255.255.255.255", "224.0.0.1", "127.0.0.1"])
@clause("RFC 9293 MUST-63")
def test_impossible_source(arm: Arm, peer: Peer, source: str) -> None:
    """A SYN from an address that no host has is ignored."""
    peer.listen()
    peer.send("S", src=source)
    peer.expect_nothing()


@pytest.mark.parametrize("target", ["255.255.255.255", "10.9.255.255", "224.0.0.1"])
@clause("RFC 9293 MUST-57")
def test_syn_to_everybody(arm: Arm, peer: Peer, target: str) -> None:
    """A SYN to a broadcast or multicast address is dropped."""
    peer.listen()
    peer.send("S", dst=target)
    peer.expect_nothing()


@clause("RFC 3168 6.1.1")
def test_ecn_is_not_agreed_on(arm: Arm, peer: Peer) -> None:
    """With ECN off, an ECN-setup SYN gets a SYN-ACK without ECE."""
    peer.listen()
    peer.send("SEC")
    peer.expect_now("SA")


@clause("RFC 9293 3.10.4")
def test_listener_closes(arm: Arm, peer: Peer) -> None:
    """Closing the listener refuses those who come later, and ends what is half open."""
    listener = peer.listen()
    peer.send("S")
    peer.expect_now("SA")
    listener.close()
    peer.drain()
    peer.send("A")
    peer.expect_now(flags=one_of("R", "RA"), seq=1)
    other = peer.another()
    other.send("S")
    other.expect_now("RA", ack=1)


@clause("RFC 9293 3.10.4")
def test_listener_closes_over_unaccepted(arm: Arm, peer: Peer) -> None:
    """Closing the listener resets connections that nobody has accepted."""
    listener = peer.listen()
    peer.shake_hands()
    arm.settle()
    listener.close()
    peer.expect_now(flags=one_of("R", "RA"), seq=1)


@clause("RFC 9293 3.3.1")
def test_window_is_announced(arm: Arm, peer: Peer) -> None:
    """The first window is at least ten full segments and fits 16 bits."""
    peer.listen()
    peer.send("S")
    peer.expect_now("SA", wnd=between(14600, 65535))
