# SPDX-License-Identifier: MIT
"""The histogram of durations: buckets, precision, quantiles, merging."""

from __future__ import annotations

import base64
import math
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machnet._native import ffi, lib
from machnet.cli._hdr import encode_hdr

TOP_NS = 60_000_000_000
PPM = 1_000_000

durations = st.one_of(
    st.integers(0, 5_000), st.integers(0, TOP_NS), st.integers(TOP_NS, 1_000 * TOP_NS)
)


def histogram(*values: int):
    hist = ffi.new("struct mn_hist *")
    lib.mn_hist_reset(hist)
    for value in values:
        lib.mn_hist_record(hist, value)
    return hist


def nearest_rank(values: list[int], ppm: int) -> int:
    rank = -(-len(values) * ppm // PPM)
    return sorted(values)[max(rank, 1) - 1]


def contents(hist) -> tuple[int, ...]:
    return (hist.count, hist.sum_ns, hist.min_ns, hist.max_ns, hist.over_top, *hist.buckets)


@given(st.integers(0, TOP_NS))
def test_a_bucket_holds_its_value_to_three_significant_digits(value):
    bucket = lib.mn_hist_bucket(value)
    assert 0 <= bucket < lib.MN_HIST_BUCKETS
    end = lib.mn_hist_bucket_end_ns(bucket)
    start = lib.mn_hist_bucket_end_ns(bucket - 1) + 1 if bucket else 0
    assert start <= value <= end
    assert end - start <= value / 1000


def test_buckets_follow_each_other_without_a_gap():
    last = lib.mn_hist_bucket(TOP_NS)
    assert last < lib.MN_HIST_BUCKETS
    for bucket in range(last):
        end = lib.mn_hist_bucket_end_ns(bucket)
        assert lib.mn_hist_bucket(end) == bucket
        assert lib.mn_hist_bucket(end + 1) == bucket + 1


def test_empty():
    hist = histogram()
    assert hist.count == 0
    assert lib.mn_hist_mean_ns(hist) == 0.0
    for ppm in (0, PPM // 2, PPM):
        assert lib.mn_hist_quantile_ns(hist, ppm) == 0


def test_small_values_are_exact():
    hist = histogram(*range(1, 1001))
    assert lib.mn_hist_quantile_ns(hist, 500_000) == 500
    assert lib.mn_hist_quantile_ns(hist, 990_000) == 990
    assert lib.mn_hist_quantile_ns(hist, 999_000) == 999
    assert lib.mn_hist_quantile_ns(hist, 999_900) == 1000
    assert lib.mn_hist_quantile_ns(hist, 0) == 1
    assert lib.mn_hist_mean_ns(hist) == 500.5


def test_one_slow_message_in_a_thousand_is_above_the_999th_permille():
    hist = histogram(*([1_000] * 999), 1_000_000)
    assert lib.mn_hist_quantile_ns(hist, 999_000) == 1_000
    assert lib.mn_hist_quantile_ns(hist, 999_001) == 1_000_000


@pytest.mark.parametrize("value", [TOP_NS + 1, 10 * TOP_NS, 2**63])
def test_longer_than_the_range_keeps_its_maximum(value):
    hist = histogram(1_000, value)
    assert (hist.count, hist.max_ns, hist.over_top) == (2, value, 1)
    assert lib.mn_hist_quantile_ns(hist, PPM) == value


@given(st.lists(durations, min_size=1, max_size=200), st.integers(0, PPM))
def test_quantiles_are_the_nearest_rank_to_three_digits(values, ppm):
    hist = histogram(*values)
    exact = nearest_rank(values, ppm)
    got = lib.mn_hist_quantile_ns(hist, ppm)
    assert got <= max(values)
    if exact <= TOP_NS:
        assert exact <= got <= exact * 1.001 + 1
    assert (hist.min_ns, hist.max_ns, hist.count) == (min(values), max(values), len(values))
    assert math.isclose(lib.mn_hist_mean_ns(hist), sum(values) / len(values), rel_tol=1e-12)


@given(st.lists(durations, max_size=50), st.lists(durations, max_size=50))
def test_merging_is_recording_both(first, second):
    merged = histogram(*first)
    lib.mn_hist_merge(merged, histogram(*second))
    assert contents(merged) == contents(histogram(*first, *second))


def test_reset_forgets_everything():
    hist = histogram(5, TOP_NS, 2 * TOP_NS)
    lib.mn_hist_reset(hist)
    assert contents(hist) == contents(histogram())


def test_the_rank_of_a_count_beyond_64_bits_of_product_is_right():
    # Ten million seconds at three million a second, times a million, does not fit.
    hist = histogram(10, 20)
    hist.buckets[10] = 3 * 10**13
    hist.buckets[20] = 10**13
    hist.count = 4 * 10**13
    assert lib.mn_hist_quantile_ns(hist, 750_000) == 10
    assert lib.mn_hist_quantile_ns(hist, 750_001) == 20


# Made by hdrhistogram 0.10 (Python) from the values below, range 1 ns to 60 s, 3 digits.
HDR_VALUES = (1, 1, 1, 5, 2047, 2048, 2049, 100_000, 100_001, 7_000_000_123, 59_999_999_999)
HDR_TEXT = "HISTFAAAADJ4nJNpmSzMwMAgxAABzFCaEYh5f7hHMNh/gAqwsTJ9lGdi2RjBcrGRiemtIRMAwJgI1w=="


def unpacked(text: str) -> bytes:
    """The head of the compressed form, and what was compressed."""
    data = base64.b64decode(text)
    assert int.from_bytes(data[4:8], "big") == len(data) - 8
    return data[:4] + zlib.decompress(data[8:])


def test_the_encoding_is_that_of_hdrhistogram():
    assert unpacked(encode_hdr(histogram(*HDR_VALUES))) == unpacked(HDR_TEXT)


def test_an_empty_histogram_is_encoded_without_counts():
    assert len(unpacked(encode_hdr(histogram()))) == 4 + 40
