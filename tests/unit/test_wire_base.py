# SPDX-License-Identifier: MIT
"""base.h: big-endian access and arithmetic on the circle of sequence numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_views import guarded

from machnet._native import ffi, lib

U32 = st.integers(0, 2**32 - 1)
#: Distances that a window can have; at 2**31 the order is undefined.
DISTANCE = st.integers(1, 2**31 - 1)


@given(U32)
def test_loads_and_stores_are_big_endian(value: int) -> None:
    assert lib.mn_rd32be(guarded(value.to_bytes(4, "big"))) == value
    assert lib.mn_rd16be(guarded((value >> 16).to_bytes(2, "big"))) == value >> 16
    out = ffi.new("uint8_t[5]")
    lib.mn_wr32be(out + 1, value)
    assert bytes(out) == b"\0" + value.to_bytes(4, "big")
    lib.mn_wr16be(out + 2, 0x0102)
    assert bytes(out)[2:4] == b"\x01\x02"


@given(U32, DISTANCE)
def test_sequence_order_follows_the_shorter_way_round(a: int, distance: int) -> None:
    b = (a + distance) % 2**32
    assert lib.mn_seq_lt(a, b)
    assert lib.mn_seq_le(a, b)
    assert not lib.mn_seq_gt(a, b)
    assert not lib.mn_seq_ge(a, b)
    assert not lib.mn_seq_lt(b, a)
    assert not lib.mn_seq_le(b, a)
    assert lib.mn_seq_gt(b, a)
    assert lib.mn_seq_ge(b, a)
    assert lib.mn_seq_max(a, b) == lib.mn_seq_max(b, a) == b
    assert lib.mn_seq_min(a, b) == lib.mn_seq_min(b, a) == a


@pytest.mark.parametrize("a", [0, 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_sequence_number_equals_itself(a: int) -> None:
    assert not lib.mn_seq_lt(a, a)
    assert not lib.mn_seq_gt(a, a)
    assert lib.mn_seq_le(a, a)
    assert lib.mn_seq_ge(a, a)
    assert lib.mn_seq_max(a, a) == lib.mn_seq_min(a, a) == a


def test_sequence_numbers_wrap() -> None:
    assert lib.mn_seq_lt(2**32 - 1, 0)
    assert lib.mn_seq_max(2**32 - 1, 5) == 5
    assert lib.mn_seq_min(2**32 - 1, 5) == 2**32 - 1


@given(U32, U32)
def test_plain_minimum_and_maximum(a: int, b: int) -> None:
    assert lib.mn_min_u32(a, b) == min(a, b)
    assert lib.mn_max_u32(a, b) == max(a, b)
    assert lib.mn_min_u64(a << 20, b << 20) == min(a, b) << 20
    assert lib.mn_max_u64(a << 20, b << 20) == max(a, b) << 20
