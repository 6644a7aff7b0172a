# SPDX-License-Identifier: MIT
"""The channel's memory: geometry, layout, header."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from channel_peer import SMALL, Memory, geometry
from hypothesis import given
from hypothesis import strategies as st

from machnet._native import ffi, lib

CACHE_LINE = 64
DESC_BYTES = 16
CTL_BYTES = 64
HDR_BYTES = 128

RANGES = {
    "n_lanes": (1, 64),
    "buf_bytes": (512, 65536),
    "tx_bufs": (16, 1 << 20),
    "rx_bufs": (16, 1 << 20),
    "flows_max": (1, 65535),
    "ctl_slots": (16, 4096),
}

# A flow may have a whole pool queued, with a prefix for each buffer: 2^30 bytes at most.
POOL_BYTES_MAX = 1 << 30
LARGEST_POOL = {
    "buf_bytes": 65536,
    "tx_bufs": POOL_BYTES_MAX // (65536 + 4),
    "rx_bufs": POOL_BYTES_MAX // (65536 + 4),
}

geometries = st.fixed_dictionaries(
    {
        "n_lanes": st.integers(1, 64),
        "buf_bytes": st.sampled_from([1 << i for i in range(9, 17)]),
        "tx_bufs": st.integers(16, 1 << 20),
        "rx_bufs": st.integers(16, 1 << 20),
        "flows_max": st.integers(1, 65535),
        "ctl_slots": st.sampled_from([1 << i for i in range(4, 13)]),
    }
).filter(lambda g: max(g["tx_bufs"], g["rx_bufs"]) * (g["buf_bytes"] + 4) <= POOL_BYTES_MAX)


def layout(geo: Any) -> Any:
    out = ffi.new("struct mn_lane_layout *")
    assert lib.mn_chan_layout(geo, out) == 0
    return out


def pow2_ceil(value: int) -> int:
    return 1 << (value - 1).bit_length()


def formatted(**changes: int) -> tuple[Memory, Any]:
    geo = geometry(**changes)
    memory = Memory(lib.mn_chan_bytes(geo))
    assert lib.mn_chan_format(memory.ptr, memory.size, geo) == 0
    return memory, ffi.cast("struct mn_chan_hdr *", memory.ptr)


def check(memory: Memory, size: int | None = None) -> int:
    geo = ffi.new("struct mn_chan_geometry *")
    return int(lib.mn_chan_check(memory.ptr, memory.size if size is None else size, geo))


@given(geometries)
def test_parts_are_in_order_aligned_and_do_not_overlap(values: dict[str, int]) -> None:
    geo = geometry(**values)
    lay = layout(geo)
    assert lay.msg_slots_tx == pow2_ceil(values["tx_bufs"] + 2 * values["flows_max"])
    assert lay.msg_slots_rx == pow2_ceil(values["rx_bufs"] + 2 * values["flows_max"])
    assert lay.ret_slots_tx == pow2_ceil(values["tx_bufs"])
    assert lay.ret_slots_rx == pow2_ceil(values["rx_bufs"])
    pool_align = min(values["buf_bytes"], 4096)
    parts = [
        (lay.submit_off, lay.msg_slots_tx * DESC_BYTES, CACHE_LINE),
        (lay.completed_off, lay.ret_slots_tx * 4, CACHE_LINE),
        (lay.deliver_off, lay.msg_slots_rx * DESC_BYTES, CACHE_LINE),
        (lay.released_off, lay.ret_slots_rx * 4, CACHE_LINE),
        (lay.ctl_submit_off, values["ctl_slots"] * CTL_BYTES, CACHE_LINE),
        (lay.ctl_complete_off, values["ctl_slots"] * CTL_BYTES, CACHE_LINE),
        (lay.tx_pool_off, values["tx_bufs"] * values["buf_bytes"], pool_align),
        (lay.rx_pool_off, values["rx_bufs"] * values["buf_bytes"], pool_align),
    ]
    end = ffi.sizeof("struct mn_lane_shared")
    for offset, size, align in parts:
        assert end <= offset < end + align
        # Every lane has the same alignment: the first begins behind the header.
        assert (HDR_BYTES + offset) % align == 0
        end = offset + size
    assert end <= lay.stride < end + 4096
    assert lay.stride % 4096 == 0
    assert lib.mn_chan_bytes(geo) == HDR_BYTES + values["n_lanes"] * lay.stride


def test_the_largest_channel_does_not_overflow() -> None:
    geo = geometry(**{name: high for name, (_, high) in RANGES.items()} | LARGEST_POOL)
    pools = 2 * LARGEST_POOL["tx_bufs"] * LARGEST_POOL["buf_bytes"]
    assert 64 * pools < lib.mn_chan_bytes(geo) < 64 * pools * 1.01


@pytest.mark.parametrize("side", ["tx_bufs", "rx_bufs"])
def test_a_pool_beyond_sequence_arithmetic_is_refused(side: str) -> None:
    """One flow may have a whole pool queued: it must stay far below 2^31 bytes."""
    assert lib.mn_chan_bytes(geometry(**LARGEST_POOL)) > 0
    assert lib.mn_chan_bytes(geometry(**LARGEST_POOL | {side: LARGEST_POOL[side] + 1})) == 0


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("side", ["below", "above", "zero", "all_ones"])
def test_a_value_out_of_its_range_is_refused(name: str, side: str) -> None:
    low, high = RANGES[name]
    value = {"below": low - 1, "above": high + 1, "zero": 0, "all_ones": 0xFFFFFFFF}[side]
    if name in ("buf_bytes", "ctl_slots") and side in ("below", "above"):
        value = low // 2 if side == "below" else high * 2
    geo = geometry(**{name: value})
    out = ffi.new("struct mn_lane_layout *", {"stride": 1})
    assert lib.mn_chan_layout(geo, out) == -errno.EINVAL
    assert out.stride == 1
    assert lib.mn_chan_bytes(geo) == 0
    assert lib.mn_app_bytes(geo) == 0
    memory = Memory(1 << 20)
    assert lib.mn_chan_format(memory.ptr, memory.size, geo) == -errno.EINVAL


@pytest.mark.parametrize("name", ["buf_bytes", "ctl_slots"])
def test_what_must_be_a_power_of_two_is(name: str) -> None:
    assert lib.mn_chan_bytes(geometry(**{name: 1024 + 64})) == 0
    assert lib.mn_chan_bytes(geometry(**{name: 1024})) > 0


@pytest.mark.parametrize("lanes", [1, 3])
def test_format_then_check_gives_the_geometry(lanes: int) -> None:
    memory, hdr = formatted(n_lanes=lanes)
    assert memory.bytes(0, 8) == b"MNETCHAN"
    assert hdr.version == 1
    assert hdr.hdr_bytes == HDR_BYTES
    assert hdr.total_bytes == memory.size
    geo = ffi.new("struct mn_chan_geometry *")
    assert lib.mn_chan_check(memory.ptr, memory.size, geo) == 0
    assert {name: getattr(geo, name) for name in SMALL} == {**SMALL, "n_lanes": lanes}


def test_format_touches_headers_and_indices_only() -> None:
    geo = geometry(n_lanes=2)
    lay = layout(geo)
    memory = Memory(lib.mn_chan_bytes(geo), fill=0xA5)
    assert lib.mn_chan_format(memory.ptr, memory.size, geo) == 0
    shared = ffi.sizeof("struct mn_lane_shared")
    for lane in range(2):
        start = HDR_BYTES + lane * lay.stride
        assert memory.bytes(start, shared) == bytes(shared)
        rest = memory.bytes(start + shared, lay.stride - shared)
        assert rest == b"\xa5" * len(rest)


@pytest.mark.parametrize("short", [1, 4096])
def test_format_refuses_a_region_that_is_too_small(short: int) -> None:
    geo = geometry()
    memory = Memory(lib.mn_chan_bytes(geo))
    assert lib.mn_chan_format(memory.ptr, memory.size - short, geo) == -errno.EINVAL
    assert memory.bytes() == bytes(memory.size)


@pytest.mark.parametrize("off", [1, 8, 32])
def test_a_region_off_the_cache_line_is_refused(off: int) -> None:
    geo = geometry()
    memory = Memory(lib.mn_chan_bytes(geo) + 64)
    assert lib.mn_chan_format(memory.ptr + off, memory.size - 64, geo) == -errno.EINVAL
    memory, _ = formatted()
    out = ffi.new("struct mn_chan_geometry *")
    assert lib.mn_chan_check(memory.ptr + off, memory.size, out) == -errno.EINVAL


def test_no_region_is_refused() -> None:
    geo = geometry()
    assert lib.mn_chan_format(ffi.NULL, 1 << 30, geo) == -errno.EINVAL
    assert lib.mn_chan_check(ffi.NULL, 1 << 30, geo) == -errno.EINVAL


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("magic", 0, errno.EPROTO),
        ("magic", int.from_bytes(b"MNETCHAN", "big"), errno.EPROTO),
        ("version", 0, errno.EPROTO),
        ("version", 2, errno.EPROTO),
        ("hdr_bytes", 64, errno.EPROTO),
        ("total_bytes", 0, errno.EINVAL),
        ("total_bytes", 1 << 60, errno.EINVAL),
        ("lane_stride", 0, errno.EINVAL),
        ("lane_stride", 1 << 40, errno.EINVAL),
    ],
)
def test_check_refuses_a_header_of_another_kind(field: str, value: int, expected: int) -> None:
    memory, hdr = formatted()
    setattr(hdr, field, value)
    assert check(memory) == -expected


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [0, 1000, 0xFFFFFFFF])
def test_check_refuses_a_geometry_that_does_not_fit_its_sizes(name: str, value: int) -> None:
    memory, hdr = formatted()
    setattr(hdr.geo, name, value)
    assert check(memory) == -errno.EINVAL


@pytest.mark.parametrize("size", [0, 1, 127])
def test_check_of_less_than_a_header(size: int) -> None:
    memory, _ = formatted()
    assert check(memory, size) == -errno.EINVAL


def test_check_of_a_truncated_region() -> None:
    memory, _ = formatted()
    assert check(memory, memory.size - 1) == -errno.EINVAL
    assert check(memory, memory.size) == 0


@given(st.integers(0, 31), st.integers(1, 255))
def test_no_byte_in_front_of_the_geometry_may_change(offset: int, flip: int) -> None:
    memory, _ = formatted()
    memory.ptr[offset] ^= flip
    assert check(memory) < 0


@given(st.binary(min_size=HDR_BYTES, max_size=HDR_BYTES))
def test_random_bytes_are_no_channel(data: bytes) -> None:
    memory = Memory(HDR_BYTES)
    ffi.memmove(memory.ptr, data, len(data))
    assert check(memory) < 0


def open_app(geo: Any, region: Memory, mem: Memory, short: int = 0) -> int:
    out = ffi.new("struct mn_app **")
    return int(
        lib.mn_app_open(out, mem.ptr, mem.size - short, region.ptr, region.size, ffi.NULL, ffi.NULL)
    )


def test_open_refuses_what_check_refuses() -> None:
    memory, hdr = formatted()
    mem = Memory(lib.mn_app_bytes(geometry()))
    assert open_app(geometry(), memory, mem) == 0
    hdr.version = 9
    assert open_app(geometry(), memory, mem) == -errno.EPROTO


def test_open_refuses_too_little_memory_and_bad_alignment() -> None:
    memory, _ = formatted()
    mem = Memory(lib.mn_app_bytes(geometry()) + 8)
    assert open_app(geometry(), memory, mem, short=9) == -errno.EINVAL
    mem.ptr += 4
    assert open_app(geometry(), memory, mem) == -errno.EINVAL


def test_open_refuses_more_than_one_lane() -> None:
    memory, _ = formatted(n_lanes=2)
    mem = Memory(lib.mn_app_bytes(geometry(n_lanes=2)))
    assert open_app(geometry(n_lanes=2), memory, mem) == -errno.EINVAL


def test_open_touches_no_more_than_the_first_part_of_its_memory() -> None:
    geo = geometry(tx_bufs=1 << 16, rx_bufs=1 << 16, flows_max=65535, ctl_slots=4096)
    memory, _ = formatted(tx_bufs=1 << 16, rx_bufs=1 << 16, flows_max=65535, ctl_slots=4096)
    mem = Memory(lib.mn_app_bytes(geo), align=8, fill=0xA5)
    assert open_app(geo, memory, mem) == 0
    rest = mem.bytes(2048)
    assert len(rest) > 1 << 20
    assert rest == b"\xa5" * len(rest)
