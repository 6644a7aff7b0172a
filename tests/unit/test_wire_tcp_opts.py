# SPDX-License-Identifier: MIT
"""TCP options: what is read, what is refused, and in which form they are written."""

from __future__ import annotations

from typing import Any

import pytest
import wire_reference
from hypothesis import given
from hypothesis import strategies as st
from wire_views import guarded, tcp_opts

from machnet._native import ffi, lib

MSS = b"\x02\x04\x05\xb4"
WSCALE = b"\x03\x03\x07"
SACK_PERMITTED = b"\x04\x02"
TS = b"\x08\x0a\x01\x02\x03\x04\xfe\xfd\xfc\xfb"
TS_VALUE = (0x01020304, 0xFEFDFCFB)
NOP = b"\x01"
EOL = b"\x00"


def sack(*blocks: tuple[int, int]) -> bytes:
    body = b"".join(edge.to_bytes(4, "big") for block in blocks for edge in block)
    return bytes([5, 2 + len(body)]) + body


def test_no_options() -> None:
    assert tcp_opts(b"") == ({}, True)


def test_syn_of_linux() -> None:
    assert tcp_opts(MSS + SACK_PERMITTED + TS + NOP + WSCALE) == (
        {"mss": 1460, "wscale": 7, "sack_permitted": True, "ts": TS_VALUE},
        True,
    )


def test_aligned_timestamps_take_the_fast_path_to_the_same_answer() -> None:
    area = NOP + NOP + TS
    fast, slow = ffi.new("struct mn_tcp_opts *"), ffi.new("struct mn_tcp_opts *")
    assert lib.mn_tcp_opts_parse(guarded(area), len(area), fast) == 0
    assert lib.mn_tcp_opts_parse_any(guarded(area), len(area), slow) == 0
    assert bytes(ffi.buffer(fast)) == bytes(ffi.buffer(slow))
    assert tcp_opts(area) == ({"ts": TS_VALUE}, True)


@pytest.mark.parametrize("front", range(4))
def test_alignment_does_not_matter(front: int) -> None:
    area = NOP * front + TS + sack((1, 2)) + MSS
    assert tcp_opts(area) == ({"ts": TS_VALUE, "sack": [(1, 2)], "mss": 1460}, True)


def test_end_of_list_hides_what_follows() -> None:
    assert tcp_opts(MSS + EOL + WSCALE + b"\x09\x00") == ({"mss": 1460}, True)


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 8, 30, 254, 255])
@pytest.mark.parametrize("length", [0, 1])
def test_length_0_or_1_ends_the_parse_and_keeps_what_came_before(kind: int, length: int) -> None:
    area = WSCALE + bytes([kind, length]) + MSS
    assert tcp_opts(area) == ({"wscale": 7}, False)


@pytest.mark.parametrize("option", [MSS, WSCALE, SACK_PERMITTED, TS, sack((1, 2), (3, 4))])
def test_option_cut_by_the_end_of_the_header(option: bytes) -> None:
    for cut in range(1, len(option)):
        assert tcp_opts(NOP + option[:cut]) == ({}, False), cut


def test_length_past_the_end() -> None:
    assert tcp_opts(MSS + b"\xfe\xff" + bytes(34)) == ({"mss": 1460}, False)


@pytest.mark.parametrize("kind", range(256))
def test_forty_bytes_of_one_kind(kind: int) -> None:
    assert tcp_opts(bytes([kind]) * 40) == wire_reference.tcp_opts(bytes([kind]) * 40)


def test_nop_flood() -> None:
    assert tcp_opts(NOP * 40) == ({}, True)
    assert tcp_opts(NOP * 36 + MSS) == ({"mss": 1460}, True)


def test_of_duplicates_the_first_counts() -> None:
    area = MSS + b"\x02\x04\x00\x01" + WSCALE + b"\x03\x03\x0f" + sack((1, 2)) + sack((3, 4))
    assert tcp_opts(area) == ({"mss": 1460, "wscale": 7, "sack": [(1, 2)]}, True)
    assert tcp_opts(TS + b"\x08\x0a" + bytes(8)) == ({"ts": TS_VALUE}, True)
    assert tcp_opts(SACK_PERMITTED * 3) == ({"sack_permitted": True}, True)


@pytest.mark.parametrize(
    ("kind", "legal"), [(2, {4}), (3, {3}), (4, {2}), (5, {10, 18, 26, 34}), (8, {10})]
)
def test_known_kind_of_a_wrong_length_counts_as_unknown(kind: int, legal: set[int]) -> None:
    for length in range(2, 37):
        area = bytes([kind, length]) + bytes(length - 2) + MSS
        found, ok = tcp_opts(area)
        assert ok
        assert found["mss"] == (1460 if length not in legal or kind != 2 else 0), length
        assert found.get("unknown", 0) == (length not in legal), length


@pytest.mark.parametrize("mss", [0, 1, 8, 48, 88, 535, 65535])
def test_mss_is_handed_on_as_it_is(mss: int) -> None:
    assert tcp_opts(b"\x02\x04" + mss.to_bytes(2, "big")) == ({"mss": mss}, True)


@pytest.mark.parametrize("shift", [0, 14, 15, 16, 31, 32, 255])
def test_window_scale_is_raw_and_clamped_to_14_by_the_helper(shift: int) -> None:
    assert tcp_opts(NOP + bytes([3, 3, shift])) == ({"wscale": shift}, True)
    assert lib.mn_tcp_wscale_clamp(shift) == min(shift, 14)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_sack_blocks_in_order_and_unjudged(count: int) -> None:
    blocks = [(9, 3), (5, 5), (0xFFFFFFF0, 0x10), (0, 0xFFFFFFFF)][:count]
    assert tcp_opts(sack(*blocks)) == ({"sack": blocks}, True)


@pytest.mark.parametrize("kind", [6, 7, 9, 19, 29, 30, 34, 69, 253, 254, 255])
def test_unknown_kinds_are_skipped_by_their_length(kind: int) -> None:
    # The body looks like other options: it must not be read as such.
    area = bytes([kind, 2 + len(MSS) + len(WSCALE)]) + MSS + WSCALE + NOP + NOP + TS
    assert tcp_opts(area) == ({"ts": TS_VALUE, "unknown": 1}, True)


OPTION = st.one_of(
    st.sampled_from(
        [NOP, EOL, MSS, WSCALE, SACK_PERMITTED, TS, sack((1, 2)), sack((1, 2), (3, 4))]
    ),
    st.binary(min_size=1, max_size=4),
    st.tuples(st.integers(0, 255), st.binary(max_size=12)).map(
        lambda pair: bytes([pair[0], 2 + len(pair[1])]) + pair[1]
    ),
)


@given(st.lists(OPTION, max_size=12).map(lambda options: b"".join(options)[:40]))
def test_any_area_reads_as_the_reference_reads_it(area: bytes) -> None:
    assert tcp_opts(area) == wire_reference.tcp_opts(area)


def emit(options: dict[str, Any]) -> bytes:
    """Write ``options`` (as ``tcp_opts`` returns them) into a buffer that shows any overrun."""
    opts = ffi.new("struct mn_tcp_opts *")
    opts.has_mss, opts.mss = "mss" in options, options.get("mss", 0)
    opts.has_wscale, opts.wscale = "wscale" in options, options.get("wscale", 0)
    opts.sack_permitted = "sack_permitted" in options
    opts.has_ts = "ts" in options
    opts.tsval, opts.tsecr = options.get("ts", (0, 0))
    opts.n_sack = len(options.get("sack", []))
    for i, (left, right) in enumerate(options.get("sack", [])):
        opts.sack[i].left, opts.sack[i].right = left, right
    out = ffi.new("uint8_t[]", b"\xa5" * 64)
    length = lib.mn_tcp_opts_emit(out, opts)
    assert bytes(out)[length:64] == b"\xa5" * (64 - length)
    again = ffi.new("uint8_t[]", 64)
    assert lib.mn_tcp_opts_emit_any(again, opts) == length
    assert bytes(again)[:length] == bytes(out)[:length]
    return bytes(out)[:length]


@pytest.mark.parametrize(
    ("options", "area"),
    [
        ({}, b""),
        ({"ts": TS_VALUE}, NOP + NOP + TS),
        ({"mss": 1460}, MSS),
        (
            {"mss": 1460, "sack_permitted": True, "ts": TS_VALUE, "wscale": 7},
            MSS + SACK_PERMITTED + TS + NOP + WSCALE,
        ),
        ({"mss": 1460, "sack_permitted": True}, MSS + NOP + NOP + SACK_PERMITTED),
        ({"wscale": 0}, NOP + b"\x03\x03\x00"),
        ({"ts": TS_VALUE, "sack": [(1, 2)]}, NOP + NOP + TS + NOP + NOP + sack((1, 2))),
    ],
)
def test_emitted_layout(options: dict[str, Any], area: bytes) -> None:
    assert emit(options) == area


@pytest.mark.parametrize(
    ("others", "fits"),
    [
        ({}, 4),
        ({"ts": TS_VALUE}, 3),
        ({"ts": TS_VALUE, "mss": 1}, 2),
        ({"ts": TS_VALUE, "mss": 1, "wscale": 1, "sack_permitted": True}, 2),
    ],
)
def test_as_many_sack_blocks_as_fit_are_emitted_first_ones_first(
    others: dict[str, Any], fits: int
) -> None:
    blocks = [(10, 20), (30, 40), (50, 60), (70, 80)]
    area = emit({**others, "sack": blocks})
    assert len(area) <= 40
    assert tcp_opts(area) == ({**others, "sack": blocks[:fits]}, True)


U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "mss": U16,
        "wscale": st.integers(0, 255),
        "sack_permitted": st.just(True),
        "ts": st.tuples(U32, U32),
        "sack": st.lists(st.tuples(U32, U32), min_size=1, max_size=2),
    },
)


@given(OPTIONS)
def test_what_is_emitted_reads_back(options: dict[str, Any]) -> None:
    area = emit(options)
    assert len(area) % 4 == 0
    assert tcp_opts(area) == (options, True)


@given(OPTIONS)
def test_scapy_reads_what_is_emitted(options: dict[str, Any]) -> None:
    from scapy.layers.inet import TCP

    area = emit(options)
    packet = TCP(bytes(TCP(dataofs=5 + len(area) // 4))[:20] + area)
    seen: dict[str, Any] = {}
    for name, value in packet.options:
        if name == "SAck":
            seen["sack"] = list(zip(value[::2], value[1::2], strict=True))
        elif name != "NOP":
            key = {"MSS": "mss", "WScale": "wscale", "SAckOK": "sack_permitted", "Timestamp": "ts"}
            seen[key[name]] = True if name == "SAckOK" else value
    assert seen == options
