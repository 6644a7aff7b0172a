# SPDX-License-Identifier: MIT
"""Durations, rates, probabilities and queues in their written forms."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machnet.sim.units import (
    Queue,
    duration_ns,
    format_duration,
    format_ms,
    format_rate,
    parse_queue,
    probability_ppb,
    rate_bps,
)


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        (0, 0),
        (7, 7),
        ("100ns", 100),
        ("50us", 50_000),
        ("50µs", 50_000),
        ("1.5ms", 1_500_000),
        ("2s", 2_000_000_000),
        ("3min", 180_000_000_000),
        ("1h", 3_600_000_000_000),
        (" 2 ms ", 2_000_000),
        ("0.000001ms", 1),
    ],
)
def test_durations(text: object, ns: int) -> None:
    assert duration_ns(text) == ns


@pytest.mark.parametrize(
    "value",
    [1.5, True, None, "5", "ms", "", "-1ms", "1e3ms", "1.5ns", "1 week", -1, 2**62 + 1, "9999999h"],
)
def test_what_is_no_duration_is_named_with_what_is(value: object) -> None:
    with pytest.raises(ValueError, match=r"^latency: ") as error:
        duration_ns(value, "latency")
    assert repr(value) in str(error.value)


def test_a_signed_duration_may_be_negative() -> None:
    assert duration_ns("-1.5ms", signed=True) == -1_500_000
    assert duration_ns(-3, signed=True) == -3


@given(st.integers(0, 2**62))
def test_a_duration_reads_back(ns: int) -> None:
    assert duration_ns(format_duration(ns)) == ns


def test_durations_are_written_short() -> None:
    assert format_duration(1_500_000) == "1.5ms"
    assert format_duration(90_000_000_000) == "90s"
    assert format_duration(0) == "0ns"
    assert format_duration(-2000) == "-2us"
    assert format_ms(200_000_000) == "200.000 ms"
    assert format_ms(-1_500) == "-0.002 ms"


@pytest.mark.parametrize(
    ("text", "bps"),
    [
        (None, 0),
        (0, 0),
        (9600, 9600),
        ("10Gbps", 10**10),
        ("1.5Mbps", 1_500_000),
        ("64kbps", 64000),
    ],
)
def test_rates(text: object, bps: int) -> None:
    assert rate_bps(text) == bps


@pytest.mark.parametrize("value", [1.0, "10G", "fast", "-1bps", -1, True, "0.5bps", 10**16])
def test_what_is_no_rate(value: object) -> None:
    with pytest.raises(ValueError, match=r"^bandwidth: "):
        rate_bps(value)


@given(st.integers(1, 10**15))
def test_a_rate_reads_back(bps: int) -> None:
    assert rate_bps(format_rate(bps)) == bps


@pytest.mark.parametrize(
    ("value", "ppb"),
    [
        (0, 0),
        (1, 10**9),
        (0.05, 50_000_000),
        ("5%", 50_000_000),
        ("0.1%", 10**6),
        ("0.5", 5 * 10**8),
    ],
)
def test_probabilities(value: object, ppb: int) -> None:
    assert probability_ppb(value) == ppb


@pytest.mark.parametrize("value", [-0.1, 1.1, "101%", "5 per cent", None, True, float("nan"), "2"])
def test_what_is_no_probability(value: object) -> None:
    with pytest.raises(ValueError, match=r"^loss: "):
        probability_ppb(value, "loss")


@pytest.mark.parametrize(
    ("value", "queue"),
    [
        (None, (0, 0)),
        (256, (256, 0)),
        ("256p", (256, 0)),
        ("64KiB", (0, 65536)),
        ("100kB", (0, 100_000)),
        ("256p,64KiB", (256, 65536)),
        ("1MiB, 9p", (9, 1 << 20)),
    ],
)
def test_queues(value: Any, queue: tuple[int, int]) -> None:
    assert parse_queue(value) == Queue(*queue)


@pytest.mark.parametrize("value", [0, "0p", "256", "1p,2p", 1.5, True, "1.5p", "lots", 2**32])
def test_what_is_no_queue(value: object) -> None:
    with pytest.raises(ValueError, match=r"^queue: "):
        parse_queue(value)
