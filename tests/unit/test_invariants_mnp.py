# SPDX-License-Identifier: MIT
"""The invariants of the message protocol's packets, and that each of them can be violated."""

from __future__ import annotations

import errno
import struct
from typing import Any

import mnp_peer
import pytest
from check_kit import CheckedNode, Poke, build_poke, stats_of
from mnp_peer import ACK, DATA, FIN, NO_ACK, RST, SYN, SYNACK
from tcp_segment import build_eth, build_ip

import machnet
from machnet._native import lib
from machnet.sim import Network

A, B = "10.0.0.1", "10.0.0.2"
MAC = bytes(6)
M32 = 0xFFFFFFFF
MS = 1_000_000


def frame(src: str, dst: str, ports: tuple[int, int], packet: mnp_peer.Packet) -> bytes:
    body = mnp_peer.header(packet) + packet.rest + packet.payload
    udp = struct.pack(">HHHH", *ports, 8 + len(body), 0) + body
    return build_eth(MAC, MAC, build_ip(udp, src, dst, proto=17))


class Frames(CheckedNode):
    """Packets that leave node 3, and that arrive there: one flow, after its handshake."""

    def __init__(
        self,
        *,
        ext: bool = True,
        passive: bool = False,
        feats: int = mnp_peer.ALL,
        wnd: int = 8,
        iss: int = 100,
        irs: int = 5000,
    ) -> None:
        super().__init__()
        self.ext, self.iss, self.irs = ext, iss, irs
        offer, answer = (
            mnp_peer.syn_rest(feats=bits, wnd=wnd) if ext else bytes(42)
            for bits in (mnp_peer.ALL, feats)
        )
        if passive:
            self.arrive(SYN, 0, 0, rest=offer)
            self.send(SYNACK, 0, 1, rest=answer)
        else:
            self.send(SYN, 0, -irs, rest=offer)
            self.arrive(SYNACK, 0, 1, rest=answer)
        assert self.text == ""

    def rest(self, fields: dict[str, int]) -> bytes:
        return mnp_peer.rest(**fields) if self.ext else bytes(42)

    def send(
        self,
        kind: int,
        seq: int,
        ack: int | None = 1,
        payload: bytes = b"",
        *,
        flags: int | None = None,
        rest: bytes | None = None,
        **fields: int,
    ) -> None:
        """Numbers count from the initial ones. ``ack`` None: none."""
        if flags is None:
            flags = 5 if kind == DATA else 0
        if kind == DATA and flags & 1:
            fields.setdefault("word12", len(payload))
        packet = mnp_peer.Packet(
            kind,
            (self.iss + seq) & M32,
            NO_ACK if ack is None else (self.irs + ack) & M32,
            flags,
            self.rest(fields) if rest is None else rest,
            payload,
        )
        self.leave(frame(A, B, (1000, 7), packet))

    def arrive(
        self,
        kind: int,
        seq: int,
        ack: int = 1,
        payload: bytes = b"",
        rest: bytes | None = None,
        **fields: int,
    ) -> None:
        rest = self.rest(fields) if rest is None else rest
        seq, ack = (self.irs + seq) & M32, (self.iss + ack) & M32
        packet = mnp_peer.Packet(kind, seq, ack, 5 if payload else 0, rest, payload)
        data = frame(B, A, (7, 1000), packet)
        lib.mn_check_arrived(self.check, 3, data, len(data))


def right(frames: Frames) -> None:
    assert (frames.rc, frames.text) == (0, "")


def wrong(frames: Frames, rule: str) -> None:
    assert frames.text.startswith("at 1."), frames.text
    assert f": node 3: 10.0.0.1:1000-10.0.0.2:7: {rule}" in frames.text
    assert frames.rc == -errno.EPROTO
    frames.send(DATA, 1, 1, b"x")
    assert frames.rc == 0  # told once


@pytest.mark.parametrize("passive", [False, True])
@pytest.mark.parametrize("start", [0, 1000, 2**32 - 150])
def test_packets_that_are_right(start: int, passive: bool) -> None:
    frames = Frames(iss=start, irs=(start * 3) & M32, passive=passive, wnd=256)
    for i in range(1, 700):
        data = bytes([i & 255]) * (1 + i % 1400)
        if i % 7:
            frames.arrive(DATA, i, max(1, i - 20), b"x")
        else:  # late by one: the next one is held until then
            frames.arrive(DATA, i + 1, max(1, i - 20), b"x")
            frames.send(ACK, i, i, held=1)
            frames.arrive(DATA, i, max(1, i - 20), b"x")
        frames.send(DATA, i, i + 1, data)
        frames.send(DATA, i, i + 1, data)
        right(frames)
        frames.send(ACK, i + 1, i + 1)
    frames.send(DATA, 680, 700, b"\0")  # keep-alive of what is not acknowledged is none
    assert "what is sent again is what was sent first" in frames.text
    assert frames.stats().compared == 1 + sum(1 + i % 1400 for i in range(1, 700))


def test_the_end_of_a_flow() -> None:
    frames = Frames()
    frames.send(DATA, 1, 1, b"last")
    frames.send(FIN, 2, 1)
    frames.send(FIN, 2, 1)
    frames.send(DATA, 1, 1, b"last")
    frames.send(ACK, 3, 1)
    frames.send(RST, 3, 77)
    right(frames)


@pytest.mark.parametrize(
    ("packet", "rule"),
    [
        ((DATA, 3, 1, b"x"), "nothing is sent behind a FIN"),
        ((DATA, 2, 1, b"x"), "what is sent again is what was sent first"),
        ((FIN, 3, 1), "nothing is sent behind a FIN"),
        ((FIN, 1, 1), "what is sent again is what was sent first"),
        ((ACK, 4, 1), "an ACK bears the number of what is sent next"),
    ],
)
def test_behind_a_fin(packet: tuple[Any, ...], rule: str) -> None:
    frames = Frames()
    frames.send(DATA, 1, 1, b"last")
    frames.send(FIN, 2, 1)
    right(frames)
    frames.send(*packet)
    wrong(frames, rule)


@pytest.mark.parametrize(
    ("fields", "data"),
    [({}, b"good."), ({}, b"goo"), ({"flags": 3}, b"good"), ({"word12": 9}, b"good")],
)
def test_what_is_sent_again(fields: dict[str, int], data: bytes) -> None:
    frames = Frames()
    frames.send(DATA, 1, 1, b"good")
    frames.send(DATA, 1, 1, b"good", wnd=3, ts=99)
    right(frames)
    frames.send(DATA, 1, 1, data, **fields)
    wrong(frames, "what is sent again is what was sent first: packet 1, of kind 0")


def test_keep_alive_is_no_repetition() -> None:
    frames = Frames()
    frames.send(DATA, 1, 1, b"good")
    frames.arrive(ACK, 1, 2)
    frames.send(DATA, 1, 1, b"\0")
    right(frames)
    frames.send(DATA, 1, 1, b"\1")
    wrong(frames, "what is sent again")


@pytest.mark.parametrize(
    ("ext", "feats", "room"), [(True, 0x7F, 8), (True, 0x77, 64), (False, 0, 32)]
)
@pytest.mark.parametrize("passive", [False, True])
def test_the_window_of_the_peer(ext: bool, feats: int, room: int, passive: bool) -> None:
    frames = Frames(ext=ext, feats=feats, passive=passive)
    ack = 1 if ext else None
    fields = {} if feats & 8 or not ext else {"wnd": 0}
    for i in range(room):
        frames.send(DATA, 1 + i, ack, b"x", **fields)
    frames.arrive(ACK, 1, 4, wnd=0 if feats & 8 else 200)
    more = 0 if feats & 8 else 3
    for i in range(more):
        frames.send(DATA, 1 + room + i, ack, b"x", **fields)
    right(frames)
    frames.send(DATA, 1 + room + more, ack, b"x", **fields)
    wrong(frames, f"what is sent is within the window of the peer: packet {1 + room + more}, ")


def test_a_closed_window_may_be_asked_and_fin_needs_none() -> None:
    frames = Frames(wnd=0)
    frames.send(DATA, 1, 1, b"x")
    frames.send(DATA, 1, 1, b"x")
    frames.send(FIN, 2, 1)
    right(frames)
    frames = Frames(wnd=0)
    frames.send(DATA, 1, 1, b"x")
    frames.arrive(ACK, 1, 500, wnd=200)  # of what was never sent
    frames.send(DATA, 2, 1, b"x")
    wrong(frames, "what is sent is within the window of the peer")


@pytest.mark.parametrize("ext", [True, False])
def test_acknowledgements(ext: bool) -> None:
    for ack, rule in (
        (3, ""),
        (2, "acknowledgements only go forward: back by 1, to 2"),
        (4, "only what has arrived is acknowledged: all before 4, but 3 has not arrived"),
    ):
        frames = Frames(ext=ext)
        for i in (1, 2, 4):
            frames.arrive(DATA, i, 1, b"x")
        frames.send(ACK, 1, 3)
        right(frames)
        frames.send(ACK, 1, ack)
        wrong(frames, rule) if rule else right(frames)
        if ext and rule:
            frames = Frames()
            for i in (1, 2, 4):
                frames.arrive(DATA, i, 1, b"x")
            frames.send(DATA, 1, 3, b"x")
            frames.send(DATA, 2, ack, b"x")
            wrong(frames, rule)


def test_a_damaged_packet_has_not_arrived() -> None:
    frames = Frames()
    packet = mnp_peer.Packet(DATA, 5001, 101, 5, mnp_peer.rest(word12=1), b"x")
    data = bytearray(frame(B, A, (7, 1000), packet))
    data[40:42] = b"\x12\x34"  # its UDP checksum
    lib.mn_check_arrived(frames.check, 3, bytes(data), len(data))
    frames.send(ACK, 1, 2)
    wrong(frames, "only what has arrived is acknowledged")


def test_the_bitmap() -> None:
    def some() -> Frames:
        frames = Frames()
        for i in (3, 5, 200):
            frames.arrive(DATA, i, 1, b"x")
        frames.send(ACK, 1, 1, held=1 << 1 | 1 << 3 | 1 << 198)
        frames.arrive(DATA, 1, 1, b"x")
        right(frames)
        return frames

    for held, rule in (
        (1 << 0 | 1 << 2 | 1 << 197, ""),
        (1 << 0 | 1 << 197, "what is said to be held is not given up: packet 5, in an ACK of 2"),
        (0, "what is said to be held is not given up: packet 3"),
        (1 << 0 | 1 << 2 | 1 << 197 | 1 << 5, "only what has arrived is said to be held: packet 8"),
        (1 << 0 | 1 << 2 | 1 << 197 | 1 << 250, "only what has arrived is said to be held"),
    ):
        frames = some()
        frames.send(ACK, 1, 2, held=held)
        wrong(frames, rule) if rule else right(frames)


def test_equal_acks_of_plain_mode() -> None:
    frames = Frames(ext=False, passive=True)
    frames.arrive(DATA, 1, 1, b"x")
    frames.send(ACK, 1, 2)
    frames.send(ACK, 1, 2)
    frames.arrive(DATA, 3, 1, b"x")
    for _ in range(5):
        frames.send(ACK, 1, 2)  # one is held
    frames.arrive(DATA, 2, 1, b"x")
    frames.send(ACK, 1, 4)
    frames.send(ACK, 1, 4)
    frames.now += 200 * MS
    frames.arrive(DATA, 3, 1, b"x")
    frames.send(ACK, 1, 4)  # the others were lost
    right(frames)
    frames.arrive(DATA, 3, 1, b"x")
    frames.send(ACK, 1, 4)
    wrong(frames, "at most two ACKs of plain mode say the same: another one of 4, nothing is held")


def test_time_alone_allows_no_third_ack() -> None:
    frames = Frames(ext=False, passive=True)
    frames.arrive(DATA, 1, 1, b"x")
    for _ in range(2):
        frames.send(ACK, 1, 2)
    frames.now += 1_000 * MS
    right(frames)
    frames.send(ACK, 1, 2)
    assert "at most two ACKs of plain mode say the same" in frames.text


def test_the_ack_of_the_handshake_is_repeated_twice() -> None:
    frames = Frames(ext=False)
    for _ in range(4):
        frames.send(ACK, 1, 1)
    right(frames)
    frames.send(ACK, 1, 1)
    wrong(frames, "at most two ACKs of plain mode say the same")


@pytest.mark.parametrize(
    ("ext", "feats", "kind", "at"),
    [
        *((False, 0, kind, at) for kind in (DATA, ACK) for at in (0, 5, 31, 33, 34, 41)),
        *((True, 0x7F, DATA, at) for at in (4, 31)),
        *((True, 0x7E, kind, at) for kind in (ACK, FIN) for at in (0, 31)),
        *((True, 0x77, kind, 33) for kind in (DATA, ACK, FIN)),
        *((True, 0x7B, kind, at) for kind in (DATA, ACK, FIN) for at in (34, 41)),
        (True, 0x3F, DATA, 3),
    ],
)
def test_reserved_bytes(ext: bool, feats: int, kind: int, at: int) -> None:
    frames = Frames(ext=ext, feats=feats)
    rest = bytearray(42)
    payload, ack = (b"x", 1 if ext else None) if kind == DATA else (b"", 1)
    if kind == DATA and feats & 0x40:
        rest[3] = 1
    frames.send(kind, 1, ack, payload, rest=bytes(rest))
    right(frames)
    rest[at] = 1
    frames.send(kind, 1, ack, payload, rest=bytes(rest))
    wrong(frames, f"reserved bytes are zero: not in a packet of kind {kind}, ")


@pytest.mark.parametrize(
    ("payload", "flags"), [(b"", 5), (b"x" * 1419, 5), (b"x", 0), (b"x", 7), (b"x", 0x0D)]
)
def test_payload_and_framing(payload: bytes, flags: int) -> None:
    frames = Frames(ext=False)
    frames.send(DATA, 1, None, payload, flags=flags)
    wrong(frames, "a packet has the payload and the framing of its kind")


def test_modes() -> None:
    frames = Frames(ext=False)
    frames.send(DATA, 1, 1, b"x")
    wrong(frames, "DATA of this mode acknowledges nothing")
    frames = Frames(ext=True)
    frames.send(DATA, 1, None, b"x")
    assert frames.rc == -errno.EPROTO
    frames = Frames(ext=False)
    frames.send(FIN, 1, 1)
    wrong(frames, "FIN leaves where both sides have the feature")
    frames = Frames(ext=True)
    frames.send(ACK, 1, 1, wnd=257)
    wrong(frames, "no window is larger than the bitmap")
    frames = Frames(ext=False, passive=True)
    frames.irs += 70
    frames.arrive(SYN, 0, 0)
    frames.send(SYNACK, 50, 1, rest=mnp_peer.syn_rest())
    wrong(frames, "only what was offered is accepted: features 7f, offered 0")


def test_what_is_not_known_from_its_beginning_is_left_alone() -> None:
    frames = Frames()
    lib.mn_check_forget(frames.check, 3)
    assert (frames.stats().flows_live, frames.stats().mem_bytes) == (0, 0)
    frames.send(DATA, 900, 70, b"x")
    frames.send(ACK, 2, 3, held=7)
    right(frames)
    frames.send(SYN, 4, -5000, rest=mnp_peer.syn_rest())
    frames.send(ACK, 2, 3, held=7)  # the SYN's answer has not come
    right(frames)


# --- networks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def poke(tmp_path_factory: pytest.TempPathFactory) -> Poke:
    return build_poke(tmp_path_factory.mktemp("poke"))


@pytest.mark.parametrize("extended", [True, False])
@pytest.mark.parametrize(
    ("field", "by", "rule"),
    [
        ("rcv_nxt", 3, "only what has arrived is acknowledged"),
        ("rcv_nxt", -2, "acknowledgements only go forward"),
    ],
)
def test_a_broken_engine_is_found(
    poke: Poke, extended: bool, field: str, by: int, rule: str
) -> None:
    with Network() as net:
        a, b = net.host(A, mnp_extended=extended), net.host(B)
        net.link(a, b, latency="1ms")
        sender, receiver = a.attach(), b.attach()
        receiver.listen(B, 7)
        flow = sender.connect(A, B, 7)
        for _ in range(3):
            sender.send(flow, b"good")
            assert receiver.recv(timeout=1).data == b"good"
        net.advance("1s")
        poke(b.stack._native, 7, field, by)
        sender.send(flow, b"more")
        with pytest.raises(machnet.InvariantError, match=rule) as error:
            net.advance("1s")
        assert f"{B}:7-{A}:" in str(error.value)


@pytest.mark.parametrize("extended", [True, False])
def test_a_bad_network_violates_nothing(extended: bool) -> None:
    with Network(seed=3) as net:
        a, b = net.host(A, mnp_extended=extended), net.host(B)
        net.link(a, b, latency="1ms", loss=0.05, reorder=0.05, duplicate=0.03, corrupt=0.01)
        sender, receiver = a.attach(), b.attach()
        receiver.listen(B, 7)
        flow = sender.connect(A, B, 7)
        for i in range(20):
            sender.send(flow, bytes([i]) * 20_000)
            message = receiver.recv(timeout=20)
            assert message.data == bytes([i]) * 20_000
            receiver.send(message.flow, b"thanks")
            assert sender.recv(timeout=20).data == b"thanks"
        stats = stats_of(lib.mn_simnet_check(net._native))
        assert stats.compared > 20_000
        assert stats.flows_live == 2
        flow.close()
        net.advance("20s")
        sender.close()
        receiver.close()
        net.advance("20s")
        assert net.leaks() == []
        assert stats_of(lib.mn_simnet_check(net._native)).unfollowed == 0


@pytest.mark.parametrize("feats", [mnp_peer.ALL, 0x3F, 0])
def test_a_keep_alive_probe_has_no_length_where_none_was_agreed(feats: int) -> None:
    """What the invariants are for: it had."""
    try:
        peer = mnp_peer.Peer.make(keepalive_idle_s=1)
        peer.accept(feats=feats)
        peer.data(b"hello")
        message = peer.channel.recv(timeout=1)
        peer.channel.set_option(message.flow, lib.MN_OPT_KEEPALIVE, 1)
        peer.got()
        peer.stack.advance(1_500_000_000)
        probe = next(packet for packet in peer.got() if packet.kind == DATA)
        assert (probe.payload, probe.word12) == (b"\0", int(feats & 0x40 != 0))
    finally:
        mnp_peer.close_all()
