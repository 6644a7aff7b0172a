# SPDX-License-Identifier: MIT
"""The message protocol packet by packet, against a peer made by hand: handshake, data, ends."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from mnp_peer import (
    ACK,
    ALL,
    DATA,
    FIN,
    NO_ACK,
    RST,
    SYN,
    SYNACK,
    Peer,
    close_all,
    rest,
    syn_rest,
)

from machnet._native import ffi
from machnet.errors import FlowError, FlowResetError

MS = 1_000_000


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def connect(extended: bool = True, **settings: Any) -> tuple[Peer, Any]:
    """A flow that the stack has begun, to the peer's port 888, and the SYN."""
    peer = Peer.make(**settings)
    token = peer.channel._connect_start("10.0.0.2", "10.0.0.1", 888, "udp", 30.0, 4000)
    peer.port, peer.their_port, peer.ext = 888, 4000, extended
    syn = peer.one(SYN)
    return peer, (token, syn)


def established(extended: bool = True, **settings: Any) -> tuple[Peer, Any]:
    """The same once the handshake is through; and the flow."""
    peer, (token, syn) = connect(extended, **settings)
    peer.ack = syn.seq + 1
    peer.put(SYNACK, rest=syn_rest(ts=1) if extended else bytes(42))
    peer.seq += 1
    answer = peer.one(ACK)
    assert (answer.seq, answer.ack) == (syn.seq + 1, peer.seq)
    event = ffi.new("struct mn_ctl_evt *")
    assert peer.channel._result(token, event) is not None
    return peer, peer.channel._connect_finish(event, "connect")


class TestHandshake:
    def test_a_syn_offers_everything(self) -> None:
        _, (_, syn) = connect(isn=77)
        assert (syn.seq, syn.ack, syn.flags, syn.payload) == (77, 0, 0, b"")
        assert syn.rest[0:12] == b"MNXT" + bytes([1, 0, 0, ALL]) + (1418).to_bytes(2, "big") + (
            256
        ).to_bytes(2, "big")
        assert syn.rest[12:34] == bytes(22)
        assert syn.rest[38:42] == bytes(4)

    def test_a_plain_syn_is_zero_behind_ackno(self) -> None:
        _, (_, syn) = connect(extended=False, mnp_extended=False)
        assert (syn.ack, syn.rest) == (0, bytes(42))

    def test_a_syn_is_repeated_at_a_doubling_interval(self) -> None:
        peer, (_, syn) = connect()
        times = [syn.at_ns]
        for _ in range(5):
            peer.stack.advance(500 * MS)
            times += [p.at_ns for p in peer.got()]
        gaps = [b - a for a, b in itertools.pairwise(times)][:5]
        assert [round(gap / MS) for gap in gaps] == [10, 20, 40, 80, 160]

    def test_an_initial_number_is_not_0(self) -> None:
        assert connect()[1][1].seq != 0

    def test_a_listener_accepts_what_is_offered(self) -> None:
        peer = Peer.make()
        answer = peer.accept(feats=0xFF15, version=9, ts=0x01020304)
        assert answer.rest[0:8] == b"MNXT" + bytes([1, 0, 0, 0x15])
        assert answer.ts[1] == (0x01020304 if 0x15 & 4 else 0)

    def test_a_listener_answers_a_plain_syn_in_plain(self) -> None:
        peer = Peer.make()
        assert peer.accept(extended=False).rest == bytes(42)

    def test_version_0_is_plain(self) -> None:
        peer = Peer.make()
        peer.channel.listen("10.0.0.2", 888)
        peer.put(SYN, ack=0, rest=syn_rest(version=0))
        assert peer.one(SYNACK).rest == bytes(42)

    def test_a_syn_ack_is_repeated_and_a_second_syn_is_answered(self) -> None:
        peer = Peer.make()
        peer.channel.listen("10.0.0.2", 888)
        peer.put(SYN, ack=0, rest=syn_rest())
        first = peer.one(SYNACK)
        peer.stack.advance(11 * MS)
        assert peer.one(SYNACK).seq == first.seq
        peer.put(SYN, ack=0, rest=syn_rest())
        assert peer.one(SYNACK).seq == first.seq
        peer.stack.advance(20_000 * MS)
        assert peer.got()
        assert [s.state for s in peer.stack.sockets()] == ["LISTEN"]

    def test_a_repeated_syn_ack_is_acknowledged_again(self) -> None:
        peer, _ = established()
        peer.put(SYNACK, peer.seq - 1, rest=syn_rest())
        assert peer.one(ACK).ack == peer.seq

    @pytest.mark.parametrize("mss", [0, 511, 8901, 65535])
    def test_an_impossible_mss_is_no_offer(self, mss: int) -> None:
        peer = Peer.make()
        peer.channel.listen("10.0.0.2", 888)
        peer.put(SYN, ack=0, rest=syn_rest(mss=mss))
        assert peer.got() == []
        assert peer.stack.stats()["mnp_broken"] == 1

    def test_nobody_listens(self) -> None:
        peer = Peer.make()
        peer.put(SYN, 500, 0, rest=syn_rest())
        reset = peer.one(RST)
        assert (reset.ack, reset.word12) == (501, 2)
        peer.put(SYN, 500, 0, rest=bytes(42))
        assert peer.stack.drain() == []

    def test_a_reset_refuses_a_connect(self) -> None:
        peer, (token, syn) = connect()
        for wrong in (syn.seq, syn.seq + 2):
            peer.put(RST, 0, wrong, rest=rest(word12=2))
        assert peer.stack.sockets()
        peer.put(RST, 0, syn.seq + 1, rest=rest(word12=2))
        assert peer.stack.sockets() == []
        event = ffi.new("struct mn_ctl_evt *")
        assert peer.channel._result(token, event).status == -errno.ECONNREFUSED


class TestData:
    def test_a_message_and_its_acknowledgement(self) -> None:
        peer = Peer.make()
        peer.accept()
        peer.data(b"hello")
        assert peer.one(ACK).ack == peer.seq
        message = peer.channel.recv(timeout=0)
        assert message.data == b"hello"
        peer.channel.send(message.flow, b"world")
        sent = peer.one(DATA)
        assert (sent.seq, sent.ack, sent.flags, sent.payload) == (peer.ack, peer.seq, 5, b"world")
        assert sent.word12 == 5
        assert sent.rest[4:32] == bytes(28)

    def test_a_long_message_is_cut(self) -> None:
        peer, flow = established()
        peer.channel.send(flow, bytes(3000))
        packets = peer.got()
        assert [(p.flags, len(p.payload), p.word12) for p in packets] == [
            (3, 1418, 3000),
            (2, 1418, 0),
            (4, 164, 0),
        ]
        assert [p.seq - packets[0].seq for p in packets] == [0, 1, 2]

    def test_packets_ahead_are_held_and_told(self) -> None:
        peer = Peer.make()
        peer.accept()
        for ahead in (1, 3, 255):
            peer.data(b"%d" % ahead, ahead=ahead)
        last = peer.got()[-1]
        assert last.ack == peer.seq
        assert last.held == {peer.seq + 1, peer.seq + 3, peer.seq + 255}
        peer.data(b"late", ahead=256)
        assert peer.got()[-1].held == last.held
        assert peer.stack.stats()["drop_mnp_seq"] == 1
        peer.data(b"0")
        assert peer.got()[-1].ack == peer.seq + 1
        assert [peer.channel.recv(timeout=0).data for _ in range(2)] == [b"0", b"1"]

    def test_what_sack_leaves_out_is_sent_again_at_once(self) -> None:
        peer, flow = established()
        for i in range(6):
            peer.channel.send(flow, b"%d" % i)
        first = peer.got()[0].seq
        peer.stack.advance(5_000)
        peer.ack_to(first + 1, held=0b1111)
        again = peer.got()
        assert [p.seq for p in again] == [first + 1]
        assert again[0].payload == b"1"
        assert peer.stack.stats()["mnp_rto"] == 0

    def test_the_tail_is_probed_for_then_sent_again(self) -> None:
        peer, flow = established()
        peer.channel.send(flow, b"x")
        first = peer.one(DATA)
        peer.stack.advance(2000 * MS)
        again = peer.got()
        assert {p.payload for p in again} == {b"x"}
        assert {p.seq for p in again} == {first.seq}
        assert len(again) >= 5

    def test_a_closed_window_is_probed(self) -> None:
        peer, flow = established(mnp_user_timeout_ms=1000)
        peer.ack_to(peer.ack, wnd=0, ts=2)
        peer.channel.send(flow, b"x")
        peer.channel.send(flow, b"y")
        assert peer.got() == []
        for _ in range(20):
            peer.stack.advance(400 * MS)
            assert {p.payload for p in peer.got()} <= {b"x"}
            peer.put(ACK, rest=rest(wnd=0, ts=3))
        assert peer.stack.stats()["mnp_window_probes"] > 10
        peer.ack_to(peer.ack + 1, wnd=2, ts=4)
        assert [p.payload for p in peer.got()] == [b"y"]

    @pytest.mark.parametrize(
        ("flags", "payload", "total"),
        [
            (5, b"", 0),  # nothing
            (2, b"x", 9),  # the middle of no message
            (4, b"x", 9),
            (7, b"x", 1),  # last, and more follow
            (1, b"x", 1),  # neither
            (5, b"x", 2),  # another length
            (3, b"xx", 2),
        ],
    )
    def test_broken_framing_resets(self, flags: int, payload: bytes, total: int) -> None:
        peer = Peer.make()
        peer.accept()
        peer.data(payload, flags, total=total)
        reset = peer.got()[-1]
        assert (reset.kind, reset.word12) == (RST, 4)
        assert [s.state for s in peer.stack.sockets()] == ["LISTEN"]

    def test_a_message_that_is_too_long_resets(self) -> None:
        peer = Peer.make()
        peer.accept()
        peer.data(b"x", 3, total=(8 << 20) + 1)
        reset = peer.got()[-1]
        assert (reset.kind, reset.word12) == (RST, 5)

    def test_an_acknowledgement_of_what_was_never_sent_is_ignored(self) -> None:
        peer, flow = established()
        peer.channel.send(flow, b"x")
        peer.got()
        peer.ack_to(peer.ack + 2)
        assert peer.stack.stats()["drop_mnp_ack"] == 1
        assert peer.stack.sockets()[0].send_queue == 1


class TestEnds:
    def test_fin_both_ways(self) -> None:
        peer, flow = established()
        flow.close()
        fin = peer.one(FIN)
        assert fin.seq == peer.ack
        peer.ack_to(fin.seq + 1)
        assert peer.stack.sockets()[0].state == "FIN-WAIT-2"
        peer.put(FIN, rest=rest())
        assert peer.one(ACK).ack == peer.seq + 1
        assert peer.stack.sockets()[0].state == "TIME-WAIT"
        peer.put(FIN, rest=rest())
        assert peer.one(ACK).ack == peer.seq + 1
        peer.stack.advance(2001 * MS)
        assert peer.stack.sockets() == []

    @pytest.mark.parametrize(
        ("reason", "name"),
        [
            (0, "ECONNRESET"),
            (1, "ECONNRESET"),
            (2, "ECONNREFUSED"),
            (3, "ETIMEDOUT"),
            (4, "EPROTO"),
            (5, "EMSGSIZE"),
            (6, "ENOBUFS"),
            (7, "ECONNRESET"),
            (99, "ECONNRESET"),
        ],
    )
    def test_a_reset_says_why(self, reason: int, name: str) -> None:
        peer, _ = established()
        peer.put(RST, rest=rest(word12=reason))
        with pytest.raises((FlowError, OSError)) as caught:
            peer.channel.recv(timeout=0)
        assert caught.value.errno == getattr(errno, name)

    def test_only_an_exact_reset_is_believed(self) -> None:
        peer, _ = established()
        peer.put(RST, peer.seq + 1, rest=rest(word12=1))
        assert peer.one(ACK).ack == peer.seq
        for seq in (peer.seq - 1, peer.seq + 256):
            peer.put(RST, seq, rest=rest(word12=1))
        assert peer.got() == []
        assert peer.stack.sockets()
        peer.put(RST, rest=rest(word12=1))
        with pytest.raises(FlowResetError):
            peer.channel.recv(timeout=0)

    @pytest.mark.parametrize("kind", [ACK, SYNACK, FIN, DATA])
    def test_packets_of_no_flow_are_reset(self, kind: int) -> None:
        peer = Peer.make()
        peer.put(kind, 10, 20, payload=b"x" if kind == DATA else b"", rest=rest())
        reset = peer.one(RST)
        assert (reset.seq, reset.word12) == (20, 1)
        peer.put(DATA, 10, NO_ACK, payload=b"x")
        peer.put(RST, 10, 20)
        assert peer.stack.drain() == []


class TestPlain:
    def test_data_has_no_acknowledgement(self) -> None:
        peer = Peer.make()
        peer.accept(extended=False)
        peer.data(b"ask")
        assert peer.one(ACK).rest == bytes(42)
        message = peer.channel.recv(timeout=0)
        peer.channel.send(message.flow, b"answer")
        sent = peer.one(DATA)
        assert (sent.ack, sent.rest, sent.payload) == (NO_ACK, bytes(42), b"answer")

    def test_32_packets_are_in_flight(self) -> None:
        peer, flow = established(extended=False)
        for i in range(100):
            peer.channel.send(flow, b"%d" % i)
        total = 0
        for _ in range(6):
            total += len(peer.got())
            peer.ack_to(peer.ack + 1)
        unacked = total + len(peer.got()) - 6
        assert unacked <= 32
        while peer.ack + 32 <= peer.seen[-1].seq + 1 + 32 and len(peer.seen) < 90:
            peer.ack_to(peer.seen[-1].seq + 1)
            assert len(peer.got()) <= 32

    def test_equal_acks_are_at_most_two(self) -> None:
        peer = Peer.make()
        peer.accept(extended=False)
        peer.data(b"x")
        assert peer.one(ACK).ack == peer.seq
        for _ in range(5):
            peer.put(DATA, peer.seq - 1, NO_ACK, flags=5, payload=b"x")
        assert len(peer.got()) == 1
        assert peer.stack.stats()["mnp_acks_withheld"] >= 4
        peer.stack.advance(2000 * MS)
        peer.put(DATA, peer.seq - 1, NO_ACK, flags=5, payload=b"x")
        assert len(peer.got()) == 1  # what comes again so late shows that the others were lost
        peer.data(b"2", ahead=1)
        peer.data(b"3", ahead=2)
        peer.data(b"4", ahead=3)
        assert [(p.kind, p.ack, p.rest) for p in peer.got()] == [(ACK, peer.seq, bytes(42))] * 3

    def test_the_ack_of_the_handshake_is_repeated_twice(self) -> None:
        peer, flow = established(extended=False)
        peer.channel.send(flow, b"first")
        assert peer.one(DATA)
        kinds = []
        for _ in range(6):
            peer.stack.advance(1000 * MS)
            kinds += [p.kind for p in peer.got()]
        assert kinds.count(ACK) == 2
        assert kinds.count(DATA) >= 4
        assert kinds[0:2] == [ACK, DATA]

    def test_three_duplicates_bring_the_first_packet_again(self) -> None:
        peer, flow = established(extended=False)
        for i in range(8):
            peer.channel.send(flow, b"%d" % i)
        first = peer.got()[0].seq
        for _ in range(2):
            peer.put(ACK)
        assert [p.seq for p in peer.got() if p.seq <= first + 7] == []
        peer.put(ACK)
        assert first in [p.seq for p in peer.got()]

    def test_a_long_message_of_unknown_length(self) -> None:
        peer = Peer.make()
        peer.accept(extended=False)
        body = bytes(range(250)) * 1200  # 300 kB
        pieces = [body[i : i + 1418] for i in range(0, len(body), 1418)]
        for i, piece in enumerate(pieces):
            flags = (1 if i == 0 else 0) | (4 if i == len(pieces) - 1 else 2)
            peer.data(piece, flags)
        assert peer.channel.recv(timeout=0).data == body
        peer.data(b"next", 0x0D)
        assert peer.channel.recv(timeout=0).data == b"next"
        assert peer.stack.usage()["ooo_blocks"] == 0

    def test_close_waits_for_the_acknowledgement_then_resets(self) -> None:
        peer, flow = established(extended=False)
        peer.channel.send(flow, b"bye")
        data = peer.one(DATA)
        flow.close()
        assert peer.got() == []
        peer.ack_to(data.seq + 1)
        reset = peer.one(RST)
        assert (reset.seq, reset.ack, reset.rest) == (data.seq + 1, peer.seq, bytes(42))
        assert peer.stack.sockets() == []

    def test_a_reset_elsewhere_is_ignored(self) -> None:
        peer, _ = established(extended=False)
        for seq in (peer.seq - 1, peer.seq + 1):
            peer.put(RST, seq)
        assert peer.got() == []
        peer.put(RST)
        with pytest.raises(FlowResetError):
            peer.channel.recv(timeout=0)

    def test_garbage_in_the_bitmap_means_nothing(self) -> None:
        peer, flow = established(extended=False)
        for i in range(6):
            peer.channel.send(flow, b"%d" % i)
        peer.got()
        peer.put(ACK, peer.seq, peer.ack + 1, rest=b"\xff" * 32 + b"\x00\x05" + bytes(8))
        assert peer.stack.sockets()[0].send_queue == 5
        assert peer.got() == []
