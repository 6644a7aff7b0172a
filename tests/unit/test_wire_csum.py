# SPDX-License-Identifier: MIT
"""The Internet checksum: each implementation against RFC 1071 word by word, and against scapy."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_reference import checksum, pseudo_header
from wire_views import guarded

from machnet._native import ffi, lib


def cpu_has_avx2() -> bool:
    return " avx2 " in Path("/proc/cpuinfo").read_text(encoding="ascii").replace("\n", " ")


@pytest.fixture(params=["portable", "avx2"], autouse=True)
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run each test with the portable and with the AVX2 code."""
    if request.param == "avx2" and not cpu_has_avx2():
        pytest.skip("this CPU has no AVX2")
    lib.mn_csum_select(lib.MN_CPU_AVX2 if request.param == "avx2" else 0)
    yield request.param
    lib.mn_csum_select(lib.MN_CPU_AVX2 if cpu_has_avx2() else 0)


def core_checksum(data: bytes, start: int = 0) -> int:
    return lib.mn_csum_fold(lib.mn_csum_partial(guarded(data), len(data), start))


def test_every_length_to_300_at_every_alignment_to_15() -> None:
    noise = random.Random(1).randbytes(400)
    buffer = ffi.from_buffer(noise)
    for length in range(301):
        for align in range(16):
            at = align
            expected = checksum(noise[at : at + length])
            got = lib.mn_csum_fold(lib.mn_csum_partial(buffer + at, length, 0))
            assert got == expected, (length, align)


def test_reads_nothing_behind_the_end() -> None:
    for length in range(301):
        data = random.Random(length).randbytes(length)
        assert core_checksum(data) == checksum(data), length


def test_copy_of_every_length_to_300_at_every_alignment_to_15() -> None:
    noise = random.Random(2).randbytes(400)
    source = ffi.from_buffer(noise)
    room = bytearray(400)
    target = ffi.from_buffer(room)
    for length in range(301):
        for align in range(16):
            to = 16 + (align * 7 + length) % 16
            room[:] = b"\x5a" * 400
            got = lib.mn_csum_fold(lib.mn_csum_copy(target + to, source + align, length, 0))
            assert got == checksum(noise[align : align + length]), (length, align)
            copied = noise[align : align + length]
            assert room == b"\x5a" * to + copied + b"\x5a" * (400 - to - length), (length, align)


@pytest.mark.parametrize("length", [1459, 1460, 4095, 9000, 16384, 65534, 65535])
@pytest.mark.parametrize("fill", ["noise", "zeros", "ones", "high halves"])
def test_long_input(length: int, fill: str) -> None:
    data = {
        "noise": random.Random(length).randbytes(length),
        "zeros": bytes(length),
        "ones": b"\xff" * length,
        # Each kind of carry at once: the upper half of every 64-bit word is full.
        "high halves": (b"\0\0\0\0\xff\xff\xff\xff" * (length // 8 + 1))[:length],
    }[fill]
    assert core_checksum(data) == checksum(data)
    target = ffi.new("uint8_t[]", length)
    assert lib.mn_csum_fold(lib.mn_csum_copy(target, guarded(data), length, 0)) == checksum(data)
    assert bytes(target) == data


@given(st.binary(max_size=2000))
def test_agrees_with_scapy(data: bytes) -> None:
    from scapy.utils import checksum as scapy_checksum

    assert core_checksum(data) == scapy_checksum(data)


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_pieces_add_up_to_the_whole(pieces: list[bytes]) -> None:
    total = 0
    offset = 0
    for piece in pieces:
        piece_sum = lib.mn_csum_partial(guarded(piece), len(piece), 0)
        if offset % 2:
            piece_sum = lib.mn_csum_shift(piece_sum)
        total = lib.mn_csum_add(total, piece_sum)
        offset += len(piece)
    assert lib.mn_csum_fold(total) == checksum(b"".join(pieces))


@given(st.binary(max_size=300).filter(lambda data: len(data) % 2 == 0), st.binary(max_size=300))
def test_sum_continues_behind_an_even_piece(head: bytes, tail: bytes) -> None:
    total = lib.mn_csum_partial(guarded(head), len(head), 0)
    assert core_checksum(tail, total) == checksum(head + tail)
    target = ffi.new("uint8_t[]", max(1, len(tail)))
    got = lib.mn_csum_copy(target, guarded(tail), len(tail), total)
    assert lib.mn_csum_fold(got) == checksum(head + tail)


@given(st.binary(max_size=300))
def test_data_with_its_checksum_folds_to_zero(data: bytes) -> None:
    even = data + b"\0" * (len(data) % 2)
    assert core_checksum(struct.pack(">H", checksum(even)) + even) == 0


U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)


@given(U32, U32, st.integers(0, 255), st.integers(0, 65535))
def test_pseudo_header(src: int, dst: int, proto: int, length: int) -> None:
    expected = checksum(pseudo_header(src, dst, proto, length))
    total = lib.mn_csum_pseudo(src, dst, proto, length)
    assert lib.mn_csum_fold(total) == expected
    assert lib.mn_csum_fold_seed(total) == expected ^ 0xFFFF


@given(st.binary(min_size=8, max_size=60).filter(lambda d: len(d) % 2 == 0), U16, st.data())
def test_incremental_update_equals_computing_anew(
    data: bytes, now: int, draw: st.DataObject
) -> None:
    at = 2 * draw.draw(st.integers(0, len(data) // 2 - 1))
    # RFC 1624 keeps a receiver's verdict; over all zeros both forms of zero are right.
    (was,) = struct.unpack_from(">H", data, at)
    changed = bytearray(data)
    struct.pack_into(">H", changed, at, now)
    updated = lib.mn_csum_update16(checksum(data), was, now)
    if any(changed):
        assert updated == checksum(changed)
    else:
        assert updated in (0, 0xFFFF)
