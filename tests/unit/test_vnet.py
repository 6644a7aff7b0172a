# SPDX-License-Identifier: MIT
"""What is made of a virtio_net_hdr: everything in it is checked against the frame."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rawnic import CSUM_NONE, CSUM_PARTIAL, CSUM_VALID, Meta, meta_of

from machnet._native import ffi, lib

NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80


def header(
    flags: int = 0, gso: int = 0, hdr_len: int = 0, gso_size: int = 0, start: int = 0, off: int = 0
) -> bytes:
    return struct.pack("=BBHHHH", flags, gso, hdr_len, gso_size, start, off)


def read(hdr: bytes, frame: bytes) -> Meta | None:
    """What the header says about the frame; None when it is refused."""
    # A buffer of its exact size, so that ASan sees a read behind its end.
    buf, meta = ffi.new("uint8_t[]", frame or b"\0"), ffi.new("struct mn_pkt_meta *")
    result = lib.mn_vnet_check(hdr, buf, len(frame), meta)
    assert result in {0, -errno.EINVAL}
    return meta_of(meta) if result == 0 else None


def tcp_frame(payload: int = 5000, ip_options: int = 0, tcp_options: int = 0) -> bytes:
    ip = bytes([0x45 + ip_options, *bytes(8), 6]) + bytes(10 + 4 * ip_options)
    tcp = bytes(12) + bytes([(5 + tcp_options) << 4]) + bytes(7 + 4 * tcp_options)
    return bytes(12) + b"\x08\x00" + ip + tcp + bytes(payload)


GSO = {
    "flags": NEEDS_CSUM,
    "gso": GSO_TCPV4,
    "hdr_len": 54,
    "gso_size": 1460,
    "start": 34,
    "off": 16,
}


def test_a_plain_frame() -> None:
    assert read(header(), bytes(60)) == Meta(CSUM_NONE)


def test_an_unfinished_checksum() -> None:
    assert read(header(NEEDS_CSUM, start=34, off=6), bytes(60)) == Meta(CSUM_PARTIAL, 34, 6)


def test_a_verified_checksum() -> None:
    assert read(header(DATA_VALID), bytes(60)) == Meta(CSUM_VALID)


def test_unfinished_counts_more_than_verified() -> None:
    got = read(header(NEEDS_CSUM | DATA_VALID, start=34, off=16), bytes(60))
    assert got == Meta(CSUM_PARTIAL, 34, 16)


@pytest.mark.parametrize("ecn", [0, GSO_ECN])
@pytest.mark.parametrize(("ip_options", "tcp_options"), [(0, 0), (0, 3), (10, 10)])
def test_a_large_segment(ecn: int, ip_options: int, tcp_options: int) -> None:
    start = 34 + 4 * ip_options
    fields = {**GSO, "gso": GSO_TCPV4 | ecn, "start": start, "hdr_len": start + 20}
    got = read(header(**fields), tcp_frame(5000, ip_options, tcp_options))
    assert got == Meta(CSUM_PARTIAL, start, 16, 1460)


@pytest.mark.parametrize(
    ("start", "off"), [(34, 25), (60, 0), (59, 0), (65535, 65535), (0, 65535), (13, 0), (0, 0)]
)
def test_an_unfinished_checksum_outside_the_payload_is_refused(start: int, off: int) -> None:
    assert read(header(NEEDS_CSUM, start=start, off=off), bytes(60)) is None


@pytest.mark.parametrize(
    "change",
    [
        {"flags": 0},
        {"flags": DATA_VALID},
        {"gso": GSO_UDP},
        {"gso": GSO_TCPV6},
        {"gso": GSO_UDP_L4},
        {"gso": 0x7F},
        {"gso_size": 0},
        {"hdr_len": 5055},
        {"start": 38},
        {"start": 30},
        {"off": 6},
    ],
)
def test_a_large_segment_that_contradicts_itself_is_refused(change: dict[str, int]) -> None:
    assert read(header(**GSO), tcp_frame()) is not None
    assert read(header(**{**GSO, **change}), tcp_frame()) is None


@pytest.mark.parametrize(
    ("at", "value"), [(12, 0x86), (23, 17), (14, 0x4F), (14, 0x40), (46, 0x40), (46, 0x00)]
)
def test_a_large_segment_of_other_headers_is_refused(at: int, value: int) -> None:
    frame = bytearray(tcp_frame())
    frame[at] = value
    assert read(header(**GSO), bytes(frame)) is None


def test_a_large_segment_cut_off_anywhere_in_its_headers_is_refused() -> None:
    whole = tcp_frame(0, tcp_options=3)
    fields = {**GSO, "hdr_len": 0}
    assert read(header(**fields), whole) is not None
    for length in range(len(whole)):
        assert read(header(**fields), whole[:length]) is None


@given(st.binary(min_size=10, max_size=10), st.binary(max_size=100))
@example(header(**GSO), tcp_frame(0))
@example(header(NEEDS_CSUM, start=34, off=6), bytes(42))
def test_whatever_is_accepted_lies_inside_the_frame(hdr: bytes, frame: bytes) -> None:
    got = read(hdr, frame)
    if got is not None and got.csum == CSUM_PARTIAL:
        assert got.l4_off >= 14
        assert got.l4_off + got.csum_off + 2 <= len(frame)
    if got is not None and got.gso_size != 0:
        assert got.csum == CSUM_PARTIAL
        assert got.csum_off == 16
        assert got.l4_off + 20 <= len(frame)
