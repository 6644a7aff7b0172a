# SPDX-License-Identifier: MIT
"""The header of the message protocol: each byte of what is emitted, and what a view accepts."""

from __future__ import annotations

import struct

import pytest
import wire_views as views

from machnet._native import ffi, lib

MNP = views.View(
    "mnp",
    (
        *("kind", "msg_flags", "seq", "ack", "word12", "version", "feats", "mss", "syn_wnd"),
        *("wnd", "tsval", "tsecr", "hdr_len"),
    ),
)
DATA, SYN, ACK, SYNACK, FIN, RST = 0, 1, 2, 3, 4, 0x80


def emit(sack: tuple[int, ...] = (), **fields: int) -> bytes:
    """What the core writes, into memory that was full of other bytes."""
    words = ffi.new("uint64_t[4]", sack) if sack else ffi.NULL
    out = ffi.new("uint8_t[64]", b"\xee" * 64)
    length = lib.mn_mnp_emit(out, ffi.new("struct mn_mnp_repr *", {"sack": words, **fields}))
    assert length == 54
    assert bytes(out[54:64]) == b"\xee" * 10
    return bytes(out[0:54])


@pytest.mark.parametrize("kind", [DATA, SYN, ACK, SYNACK, RST])
def test_plain_mode_leaves_everything_behind_ackno_zero(kind: int) -> None:
    got = emit(
        kind=kind, msg_flags=5, seq=0x01020304, ack=0xFFFFFFFF, wnd=9, word12=8, tsval=7, tsecr=6
    )
    assert got == bytes.fromhex(f"4e53{kind:02x}0501020304ffffffff") + bytes(42)


@pytest.mark.parametrize("kind", [SYN, SYNACK])
def test_an_extended_syn(kind: int) -> None:
    got = emit(
        kind=kind,
        ext=1,
        seq=1,
        ack=2,
        version=1,
        feats=0x7F,
        mss=1418,
        wnd=256,
        tsval=0xA1A2A3A4,
        tsecr=0xB1B2B3B4,
    )
    assert got == (
        bytes.fromhex(f"4e53{kind:02x}00 00000001 00000002")
        + b"MNXT"
        + bytes.fromhex("01 00 007f 058a 0100")
        + bytes(22)
        + bytes.fromhex("a1a2a3a4 b1b2b3b4")
    )
    assert MNP(got) == {
        "kind": kind,
        "msg_flags": 0,
        "seq": 1,
        "ack": 2,
        "word12": 0x4D4E5854,
        "version": 1,
        "feats": 0x7F,
        "mss": 1418,
        "syn_wnd": 256,
        "wnd": 0,
        "hdr_len": 54,
        "tsval": 0xA1A2A3A4,
        "tsecr": 0xB1B2B3B4,
        "payload": (54, 0),
    }


def test_extended_data_has_the_length_of_its_message_and_a_window() -> None:
    got = emit(kind=DATA, ext=1, msg_flags=3, seq=5, ack=6, word12=8 << 20, wnd=255)
    assert got[12:16] == (8 << 20).to_bytes(4, "big")
    assert got[16:44] == bytes(28)
    assert got[44:46] == b"\x00\xff"


@pytest.mark.parametrize("bit", [0, 1, 63, 64, 130, 255])
def test_a_bit_of_the_bitmap(bit: int) -> None:
    words = [0, 0, 0, 0]
    words[bit // 64] = 1 << (bit % 64)
    for kind in (ACK, FIN):
        got = emit(tuple(words), kind=kind, ext=1, wnd=3)
        assert got[12:44] == struct.pack(">4Q", *words)
        assert got[44:46] == b"\x00\x03"
        out = ffi.new("struct mn_mnp *")
        assert lib.mn_mnp_parse(views.guarded(got), 54, out) == 0
        assert list(out.sack) == words
    assert emit(tuple(words), kind=DATA, ext=1)[12:44] == bytes(32)


def test_a_reset_has_its_reason() -> None:
    assert emit(kind=RST, ext=1, word12=6)[12:44] == b"\x00\x00\x00\x06" + bytes(28)


def test_every_truncation() -> None:
    whole = emit(kind=DATA, msg_flags=5, seq=1, ack=2) + b"payload"
    for length in range(len(whole) + 1):
        answer = MNP(whole[:length])
        if length < 54:
            assert answer == "TRUNCATED", length
        else:
            assert isinstance(answer, dict), length
            assert answer["payload"] == (54, length - 54)


def test_other_magic_and_other_kinds_are_no_packets() -> None:
    good = bytearray(emit(kind=ACK, seq=1, ack=2))
    for at in (0, 1):
        bad = bytearray(good)
        bad[at] ^= 1
        assert MNP(bad) == "BAD_VERSION"
    for kind in range(256):
        good[2] = kind
        known = kind in (DATA, SYN, ACK, SYNACK, FIN, RST)
        assert isinstance(MNP(good), dict) == known, kind
        assert known or MNP(good) == "UNSUPPORTED"
