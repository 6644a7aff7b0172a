# SPDX-License-Identifier: MIT
"""Data that the arm receives: order, overlaps, duplicates, numbers that wrap, torn writes."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from conformance.arms import MS
from conformance.peer import Peer, errno_of, pattern
from machnet.testing import Packet, ip

if TYPE_CHECKING:
    from conformance.arms import Arm

clause = pytest.mark.clause


@clause("RFC 9293 3.10.7.4, MUST-40")
def test_data_are_acknowledged_within_500_ms(arm: Arm, peer: Peer) -> None:
    """One small segment is acknowledged, at the latest after half a second."""
    sock = peer.established()
    start = peer.wire.now_ns
    peer.send("A", 100)
    got = peer.expect("A", ack=101, len=0)
    # Far more than 500 ms is allowed for here: it is the delay of a machine that is busy.
    assert got.t_ns - start < (500 * MS if arm.name == "machnet" else 5000 * MS)
    peer.read(sock, 100)


@clause("RFC 9293 SHLD-19, RFC 5681 4.2")
def test_every_second_segment_is_acknowledged(arm: Arm, peer: Peer) -> None:
    """Of full segments at least every second one is acknowledged at once."""
    peer.established()
    for _ in range(5):
        peer.send("A", 1460)
        peer.send("A", 1460)
        acks = peer.drain()
        assert acks
        assert acks[-1].ack == peer.snd_nxt


@clause("RFC 9293 MAY-13, RFC 5681 4.2")
def test_gap_is_told_at_once(arm: Arm, peer: Peer) -> None:
    """A segment behind a gap is answered at once by an ACK for what is there; both are kept."""
    sock = peer.established()
    peer.send("A", 100, seq=101)
    peer.expect_now("A", ack=1, len=0, sack=[])
    peer.send("A", 100)
    peer.expect_now("A", ack=201)
    peer.read(sock, 200)


@clause("RFC 5681 4.2")
def test_filled_gap_is_told_at_once(arm: Arm, peer: Peer) -> None:
    """A segment that fills a part of a gap is acknowledged at once."""
    peer.established()
    peer.send("A", 100, seq=301)
    peer.expect_now("A", ack=1)
    peer.send("A", 100)
    peer.expect_now("A", ack=101)


@clause("RFC 2018 3, 4")
def test_sack_of_a_gap(arm: Arm, peer: Peer) -> None:
    """Where SACK was agreed on, the ACK has the block behind the gap."""
    peer.established(sack=True)
    peer.send("A", 100, seq=101)
    peer.expect_now("A", ack=1, sack=[(101, 201)])


@clause("RFC 2018 4")
def test_sack_blocks_newest_first(arm: Arm, peer: Peer) -> None:
    """The first block is the one that the newest segment belongs to; the others follow."""
    peer.established(sack=True)
    peer.send("A", 100, seq=101)
    peer.expect_now("A", sack=[(101, 201)])
    peer.send("A", 100, seq=501)
    peer.expect_now("A", sack=[(501, 601), (101, 201)])
    peer.send("A", 100, seq=301)
    peer.expect_now("A", sack=[(301, 401), (501, 601), (101, 201)])
    peer.send("A", 100, seq=601)
    peer.expect_now("A", sack=[(501, 701), (301, 401), (101, 201)])


@clause("RFC 2018 3")
def test_sack_blocks_beside_timestamps(arm: Arm, peer: Peer) -> None:
    """Four blocks fit without timestamps, three with them."""
    peer.established(sack=True, ts=True)
    for i in range(5):
        peer.send("A", 10, seq=101 + 100 * i)
    blocks = peer.drain()[-1].sack
    assert blocks == [(501, 511), (401, 411), (301, 311)]


@clause("RFC 2018 4")
def test_sack_blocks_join(arm: Arm, peer: Peer) -> None:
    """Blocks that touch or overlap are told as one."""
    peer.established(sack=True)
    peer.send("A", 100, seq=101)
    peer.send("A", 100, seq=301)
    peer.send("A", 150, seq=176)
    assert peer.drain()[-1].sack[-1] == (101, 401)


@clause("RFC 2883 4.2.1")
def test_dsack_of_a_partial_duplicate(arm: Arm, peer: Peer) -> None:
    """Of a segment that is there in part, the part that was there is told."""
    peer.established(sack=True)
    peer.send("A", 100, seq=101)
    peer.drain()
    peer.send("A", 100, seq=151)
    peer.expect_now("A", ack=1, sack=[(151, 201), (101, 251)])


@clause("RFC 2018 4")
def test_sack_ends_with_the_gap(arm: Arm, peer: Peer) -> None:
    """What is acknowledged is not in a block any more."""
    peer.established(sack=True)
    peer.send("A", 100, seq=101)
    peer.send("A", 100, seq=301)
    peer.drain()
    peer.send("A", 100)
    peer.expect_now("A", ack=201, sack=[(301, 401)])
    peer.send("A", 100, seq=201)
    peer.expect_now("A", ack=401, sack=[])


@clause("RFC 2883 4.1")
def test_dsack_of_a_whole_duplicate(arm: Arm, peer: Peer) -> None:
    """A segment that is there already is told as the first block, below the ACK."""
    sock = peer.established(sack=True)
    peer.send("A", 100)
    peer.expect("A", ack=101)
    peer.send("A", 100, seq=1)
    peer.expect_now("A", ack=101, sack=[(1, 101)])
    peer.read(sock, 100)
    assert errno_of(lambda: sock.recv(1)) == "EAGAIN"


@clause("RFC 2883 4.2")
def test_dsack_within_a_block(arm: Arm, peer: Peer) -> None:
    """A duplicate of what lies behind a gap is told with the block that has it."""
    peer.established(sack=True)
    peer.send("A", 300, seq=101)
    peer.expect_now("A", sack=[(101, 401)])
    peer.send("A", 100, seq=201)
    peer.expect_now("A", ack=1, sack=[(201, 301), (101, 401)])


@pytest.mark.arm(sack=False)
@clause("RFC 2018 2")
def test_no_sack_without_agreement(arm: Arm, peer: Peer) -> None:
    """Without SACK a gap gives duplicate ACKs and no blocks."""
    peer.established(sack=True)
    for seq in (101, 201, 301):
        peer.send("A", 100, seq=seq)
        peer.expect_now("A", ack=1, sack=[], len=0)


@clause("RFC 9293 3.10.7.4")
def test_duplicate_is_acknowledged(arm: Arm, peer: Peer) -> None:
    """A segment that is there already is acknowledged at once and delivered once."""
    sock = peer.established()
    peer.send("A", 100)
    peer.expect("A", ack=101)
    for _ in range(3):
        peer.send("A", 100, seq=1)
        peer.expect_now("A", ack=101, len=0)
    peer.read(sock, 100)
    assert errno_of(lambda: sock.recv(1)) == "EAGAIN"


@pytest.mark.parametrize(
    "pieces",
    [
        [(1, 100), (51, 100)],
        [(51, 100), (1, 100)],
        [(101, 100), (51, 200), (1, 100)],
        [(101, 50), (1, 300)],
        [(201, 100), (101, 150), (1, 101)],
        [(11, 10), (31, 10), (51, 10), (5, 60), (1, 30)],
    ],
    ids=["left", "right", "around", "inside", "chain", "comb"],
)
@clause("RFC 9293 3.10.7.4, 3.4")
def test_overlaps(arm: Arm, peer: Peer, pieces: list[tuple[int, int]]) -> None:
    """Segments that overlap give each octet once, in order."""
    sock = peer.established(sack=True)
    end = max(seq + size for seq, size in pieces)
    for seq, size in pieces:
        peer.send("A", size, seq=seq)
    peer.snd_nxt = end
    peer.read(sock, end - 1)
    acks = [got.ack for got in peer.drain()] or [peer.expect("A").ack]
    assert acks[-1] == end or peer.expect("A").ack == end


@pytest.mark.parametrize("order", ["reversed", "odd first", "middle out"])
@clause("RFC 9293 SHLD-31")
def test_any_order(arm: Arm, peer: Peer, order: str) -> None:
    """Ten segments in a wild order come out in theirs."""
    sock = peer.established(sack=True, wscale=7)
    places = list(range(10))
    if order == "reversed":
        places.reverse()
    elif order == "odd first":
        places = places[1::2] + places[::2]
    else:
        places.sort(key=lambda i: abs(i - 5.2))
    for i in places:
        peer.send("A", 1000, seq=1 + 1000 * i)
    peer.read(sock, 10000)
    assert peer.drain()[-1].ack == 10001


@pytest.mark.parametrize("before", [1, 50, 100, 1500])
@pytest.mark.parametrize("turn", [1 << 32, 1 << 31], ids=["2^32", "2^31"])
@clause("RFC 9293 3.4")
def test_numbers_of_the_peer_wrap(arm: Arm, peer: Peer, turn: int, before: int) -> None:
    """The peer's sequence numbers pass 2^32, or change sign at 2^31, in order and behind a gap."""
    peer = Peer(peer.line, isn=(turn - before) % (1 << 32))
    sock = peer.established(sack=True, ts=True)
    peer.send("A", 1000, seq=1001)
    peer.expect_now("A", ack=1, sack=[(1001, 2001)])
    peer.send("A", 1000)
    peer.expect_now("A", ack=2001, sack=[])
    peer.snd_nxt = 2001
    peer.read(sock, 2000)
    peer.send("FA")
    peer.expect("A", ack=2002)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@clause("RFC 9293 3.8.2")
def test_torn_into_small_segments(arm: Arm, peer: Peer, size: int) -> None:
    """A stream torn into segments of an octet or a few is the same stream."""
    sock = peer.established()
    for _ in range(42 // size):
        peer.send("A", size)
    peer.read(sock, 42 // size * size)


@pytest.mark.parametrize("flags", ["", "P", "F"])
@clause("RFC 9293 3.10.7.4")
def test_segment_without_ack_is_dropped(arm: Arm, peer: Peer, flags: str) -> None:
    """In an open connection a segment without ACK is dropped, its data and its FIN too."""
    sock = peer.established()
    peer.send(flags, 10, seq=1)
    peer.line.collect()
    assert errno_of(lambda: sock.recv(10)) == "EAGAIN"
    assert peer.state == "ESTABLISHED"
    peer.send("A", 10, seq=1)
    peer.snd_nxt = 11
    peer.read(sock, 10)


@clause("RFC 9293 3.10.7.4")
def test_data_before_the_window(arm: Arm, peer: Peer) -> None:
    """A segment from before the window is answered by an ACK and not delivered."""
    sock = peer.established()
    peer.send("A", 100)
    peer.read(sock, 100)
    peer.drain()
    peer.send("A", bytes(50), seq=-200)
    peer.expect_now("A", ack=101, len=0)
    assert errno_of(lambda: sock.recv(1)) == "EAGAIN"


@clause("RFC 9293 3.10.7.4")
def test_data_beyond_the_window(arm: Arm, peer: Peer) -> None:
    """A segment from beyond the window is answered by an ACK and not kept."""
    peer.established()
    assert peer.syn is not None
    peer.send("A", 100, seq=1 + peer.syn.wnd + 10)
    peer.expect_now("A", ack=1, len=0, sack=[])


@clause("RFC 9293 3.10.7.4")
def test_segment_over_the_edge_of_the_window(arm: Arm, peer: Peer) -> None:
    """Of a segment over the right edge of the window, what is inside may be kept, nothing is lost."""
    sock = peer.established(sack=True)
    assert peer.syn is not None
    edge = peer.syn.wnd
    peer.send("A", 200, seq=edge - 99)
    got = peer.expect_now("A", ack=1)
    assert not got.sack or got.sack[0][1] <= edge + 1 + 100
    at = 1
    while at < edge - 99:
        size = min(1460, edge - 99 - at)
        peer.send("A", size, seq=at)
        at += size
    arm.settle()
    peer.read(sock, at - 1)


@clause("RFC 9293 MUST-3")
def test_bad_checksum_of_data(arm: Arm, peer: Peer) -> None:
    """Data with a wrong checksum are dropped without an answer."""
    sock = peer.established()
    peer.send("A", 100, seq=1, csum=0x4242)
    peer.expect_nothing()
    assert errno_of(lambda: sock.recv(1)) == "EAGAIN"


@clause("RFC 9293 3.10.7.4")
def test_fin_behind_a_gap(arm: Arm, peer: Peer) -> None:
    """A FIN behind a gap waits for what is missing."""
    sock = peer.established()
    peer.send("FA", 100, seq=101)
    peer.expect_now("A", ack=1)
    assert peer.state == "ESTABLISHED"
    peer.send("A", 100)
    peer.expect_now("A", ack=202)
    peer.read(sock, 200)
    assert arm.wait(lambda: sock.recv(1)) == b""


@clause("RFC 9293 3.10.7.4")
def test_data_behind_the_fin(arm: Arm, peer: Peer) -> None:
    """What lies behind a FIN is not delivered."""
    sock = peer.established()
    peer.send("FA", 10)
    peer.drain()
    peer.send("A", b"x" * 10)
    peer.drain()
    peer.read(sock, 10)
    assert arm.wait(lambda: sock.recv(1)) == b""
    assert peer.state == "CLOSE-WAIT"


@clause("RFC 9293 MUST-5, MUST-6, MUST-64")
def test_options_on_data(arm: Arm, peer: Peer) -> None:
    """Data segments may carry options, known or not, at any offset."""
    sock = peer.established()
    peer.send("A", 10, opts=bytes((1, 253, 3, 9, 1, 1, 254, 2, 0, 0, 0, 0)))
    peer.read(sock, 10)


@pytest.mark.parametrize(
    "opts",
    [b"\x02\x00", b"\x08\x01", b"\x05\xff\x00\x00", b"\x05\x09" + bytes(7), b"\xfd", b"\x05\x02"],
    ids=["MSS 0", "TS 1", "SACK 255", "SACK 9", "no length", "empty SACK"],
)
@clause("RFC 9293 MUST-7")
def test_broken_options_on_data(arm: Arm, peer: Peer, opts: bytes) -> None:
    """Options with impossible lengths on a data segment do no harm to the stream."""
    sock = peer.established(sack=True)
    peer.send("A", 10, seq=1, opts=opts + bytes(-len(opts) % 4))
    peer.drain()
    peer.send("A", 10, seq=1)
    peer.snd_nxt = 11
    peer.read(sock, 10)
    assert errno_of(lambda: sock.recv(1)) == "EAGAIN"


@clause("RFC 9293 MUST-50, RFC 791 3.1")
def test_ip_options(arm: Arm, peer: Peer) -> None:
    """IP options that mean nothing here are stepped over."""
    sock = peer.established()
    peer.send("A", 10, ip_options=b"\x01\x01\x01\x00")
    peer.read(sock, 10)


@clause("RFC 894, RFC 791 3.1")
def test_ethernet_padding(arm: Arm, peer: Peer) -> None:
    """What an Ethernet frame has behind the IP packet is no data."""
    sock = peer.established()
    peer.line.send(peer.make("A", 1) + b"\xaa" * 5)
    assert arm.wait(lambda: sock.recv(10)) == pattern(0, 1)


@clause("RFC 791 3.2, RFC 1122 3.3.2")
def test_fragments(arm: Arm, peer: Peer) -> None:
    """A segment in two IP fragments is put together."""
    sock = peer.established()
    whole = Packet(peer.make("A", 100))
    body = whole.ip_payload
    for offset, part in ((0, body[:64]), (64, body[64:])):
        fragment = ip(
            eth_src=whole.eth_src,
            eth_dst=whole.eth_dst,
            src=whole.src,
            dst=whole.dst,
            proto=6,
            ip_id=0x1234,
            df=False,
            mf=offset == 0,
            frag_offset=offset,
            payload=part,
        )
        peer.line.send(fragment.build())
    peer.snd_nxt = 101
    peer.read(sock, 100)


@clause("RFC 9293 3.8.5, MUST-30, MUST-31")
def test_urgent_data_stay_in_line(arm: Arm, peer: Peer) -> None:
    """Urgent data are a part of the stream, as RFC 9293 and RFC 6093 describe them."""
    sock = peer.established()
    peer.send("AU", b"abc", urg=3)
    peer.send("A", b"def")
    arm.settle()
    assert sock.recv(10, socket.MSG_PEEK) == b"abcdef"


@clause("RFC 9293 3.8.5")
def test_urgent_pointer_beyond_the_segment(arm: Arm, peer: Peer) -> None:
    """An urgent pointer to what has not come yet harms nothing."""
    sock = peer.established()
    peer.send("AU", b"abc", urg=5000)
    assert arm.wait(lambda: sock.recv(10)) == b"abc"
    peer.send("A", b"def")
    assert arm.wait(lambda: sock.recv(10)) == b"def"


@clause("POSIX recv()")
def test_peek(arm: Arm, peer: Peer) -> None:
    """MSG_PEEK leaves what it reads."""
    sock = peer.established()
    peer.send("A", 20)
    assert arm.wait(lambda: sock.recv(10, socket.MSG_PEEK)) == pattern(0, 10)
    peer.read(sock, 20)


@clause("RFC 9293 3.10.7.4")
def test_data_and_fin_together(arm: Arm, peer: Peer) -> None:
    """Data in the same segment as FIN come before the end of the stream."""
    sock = peer.established()
    peer.send("FA", 30)
    peer.expect("A", ack=32, len=0)
    peer.read(sock, 30)
    assert arm.wait(lambda: sock.recv(1)) == b""


@clause("RFC 9293 3.8.6.2.2")
def test_acks_carry_the_window(arm: Arm, peer: Peer) -> None:
    """The right edge of the window never moves back while data come in and are read."""
    sock = peer.established(wscale=7)
    edge = 0
    for i in range(20):
        peer.send("A", 1460)
        for got in peer.drain():
            assert got.ack + got.wnd >= edge
            edge = got.ack + got.wnd
        if i % 3 == 0:
            peer.read(sock, 1460, at=(i // 3) * 1460)
    assert edge > 0
    peer.expect_nothing()


@clause("RFC 9293 MUST-58, RFC 5681 4.2")
def test_ack_of_several_segments(arm: Arm, peer: Peer) -> None:
    """One ACK may acknowledge several segments, and none acknowledges what did not come."""
    peer.established()
    for _ in range(4):
        peer.send("A", 500)
    acks = [got.ack for got in peer.drain()]
    assert acks == sorted(acks)
    assert all(ack in {1, 501, 1001, 1501, 2001} for ack in acks)
    if not acks or acks[-1] != 2001:
        peer.expect("A", ack=2001)
