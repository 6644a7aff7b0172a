# SPDX-License-Identifier: MIT
"""Three writings-down of mnp's format (scapy's, the dissector's, the tests' own) say the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mnp_layer
import mnp_wire as w
import pytest
from mnp_dissect import dissect
from mnp_wire import Addresses, Mnp

A = Addresses("02:00:00:00:00:0a", "02:00:00:00:00:0b", "10.0.0.1", "10.0.0.2", 1024, 888)
B = A.turned()


def random_packet(draw: random.Random, kind: int) -> Mnp:
    return Mnp(
        kind, draw.getrandbits(32), draw.getrandbits(32), draw.getrandbits(8), draw.randbytes(32),
        draw.getrandbits(16), draw.getrandbits(64), draw.randbytes(draw.randrange(1, 40)),
    )  # fmt: skip


@pytest.mark.parametrize("kind", w.NAMES)
def test_scapy_makes_and_reads_the_same_bytes(kind: int) -> None:
    layer = mnp_layer.layer()
    draw = random.Random(kind)
    for _ in range(20):
        packet = random_packet(draw, kind)
        theirs = layer(
            net_flags=packet.net_flags, msg_flags=packet.msg_flags, seqno=packet.seqno,
            ackno=packet.ackno, sack_bitmap=int.from_bytes(packet.body, "big"),
            sack_bitmap_count=packet.count, timestamp1=packet.stamp,
        )  # fmt: skip
        assert bytes(theirs) + packet.payload == bytes(packet)
        assert mnp_layer.frame(A, theirs, packet.payload) == w.frame(A, packet)
        read = layer(bytes(packet))
        assert (read.net_flags, read.msg_flags.value, read.seqno) == (
            kind,
            packet.msg_flags,
            packet.seqno,
        )
        assert bytes(read.payload) == packet.payload
        assert w.parse_frame(w.frame(A, packet)) == (A, packet)


def test_offers_and_bitmaps_agree() -> None:
    layer = mnp_layer.layer()
    body = w.offer(version=3, features=0x55, mss=4000, window=77)
    view = layer(bytes(Mnp(w.SYN, body=body, stamp=w.stamps(5, 6)))).extended()
    assert (view.marker, view.version, view.features.value) == (w.MARKER, 3, 0x55)
    assert (view.mss, view.window, view.tsval, view.tsecr) == (4000, 77, 5, 6)
    draw = random.Random(1)
    for ackno in (0, 0xFFFFFFFF, 0xFFFFFF80, 12345):
        held = sorted(draw.sample(range(256), 40))
        seqnos = [w.add32(ackno, 1 + i) for i in held]
        packet = Mnp(w.ACK, 1, ackno, body=w.sack_body(ackno, seqnos), count=9)
        assert packet.sacked == seqnos
        view = layer(bytes(packet)).extended()
        assert (view.held(ackno), view.window) == (seqnos, 9)


def values(layers: dict[str, list[str]], name: str) -> list[int]:
    return [int(text, 0) for text in layers.get(f"mnp.{name}", [])]


def test_dissector_agrees_with_scapy(tmp_path: Path) -> None:
    layer = mnp_layer.layer()
    draw = random.Random(2)
    shake: list[tuple[Addresses, Any]] = [
        (A, Mnp(w.SYN, 9, body=w.offer())),
        (B, Mnp(w.SYN_ACK, 70, 10, body=w.offer())),
    ]
    kinds = [w.DATA, w.ACK, w.FIN, w.RST] * 10
    packets = [random_packet(draw, kind) for kind in kinds]
    seen = dissect(tmp_path / "both.pcap", [*shake, *((A, packet) for packet in packets)])
    for layers, packet in zip(seen[2:], packets, strict=True):
        theirs = layer(bytes(packet))
        view = theirs.extended()
        for name in ("magic", "net_flags", "seqno", "ackno"):
            assert values(layers, name) == [getattr(theirs, name)]
        assert values(layers, "msg_flags") == [theirs.msg_flags.value]
        for name in ("message_length", "window", "tsval", "tsecr"):
            if hasattr(view, name):
                assert values(layers, name) == [getattr(view, name)], name
        if hasattr(view, "words"):
            assert values(layers, "sack.seqno") == view.held(packet.ackno)
        if hasattr(view, "reason"):
            assert values(layers, "reset_reason") == [view.reason]
        assert values(layers, "len") == [len(packet.payload)]


def test_plain_fields_agree(tmp_path: Path) -> None:
    layer = mnp_layer.layer()
    draw = random.Random(3)
    packets = [random_packet(draw, kind) for kind in [w.SYN, w.SYN_ACK, w.ACK, w.RST] * 5]
    seen = dissect(tmp_path / "plain.pcap", [(A, packet) for packet in packets])
    for layers, packet in zip(seen, packets, strict=True):
        theirs = layer(bytes(packet))
        assert int(layers["mnp.sack_bitmap"][0], 16) == theirs.sack_bitmap
        assert values(layers, "sack_bitmap_count") == [theirs.sack_bitmap_count]
        assert values(layers, "timestamp1") == [theirs.timestamp1]
