# SPDX-License-Identifier: MIT
"""Durations, rates, probabilities and queue lengths, as people write them and as the core takes them.

Durations are whole nanoseconds: an ``int``, or a string with its unit such as "50us". A bare float is
refused, since nobody can see whether it means seconds or milliseconds.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple, TypeAlias

__all__ = [
    "Duration",
    "Queue",
    "QueueLike",
    "duration_ns",
    "format_duration",
    "format_ms",
    "format_rate",
    "parse_queue",
    "probability_ppb",
    "rate_bps",
]

#: Nanoseconds, or a string such as "50us".
Duration: TypeAlias = "int | str"
#: Packets, or a string such as "256p", "64KiB" or both: "256p,64KiB".
QueueLike: TypeAlias = "int | str | None"

PPB_ONE = 1_000_000_000
#: Longest duration: 146 years.
DURATION_MAX_NS = 2**62
_RATE_MAX = 10**15
_QUEUE_MAX = 2**32 - 1

_TIME_UNITS = {
    "h": 3_600_000_000_000,
    "min": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "µs": 1_000,
    "ns": 1,
}
_RATE_UNITS = {"Tbps": 10**12, "Gbps": 10**9, "Mbps": 10**6, "kbps": 1000, "bps": 1}
_BYTE_UNITS = {
    "B": 1,
    "kB": 1000,
    "KiB": 1024,
    "MB": 10**6,
    "MiB": 1 << 20,
    "GB": 10**9,
    "GiB": 1 << 30,
}
_QUANTITY = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)\s?(?P<unit>[A-Za-zµ%]*)", re.ASCII)

_TIME_FORM = "an int (nanoseconds) or a string such as '100ns', '50us', '1.5ms', '2s', '3min', '1h'"
_RATE_FORM = "an int (bits per second) or a string such as '64kbps', '100Mbps', '10Gbps'"
_CHANCE_FORM = "a number from 0 to 1 or a string such as '5%'"
_QUEUE_FORM = "an int (packets) or a string such as '256p', '64KiB', '100kB' or '256p,64KiB'"


class Queue(NamedTuple):
    """The bound of a queue; 0: none in that unit."""

    packets: int
    bytes: int


def _quantity(text: str, units: dict[str, int]) -> Fraction | None:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match["unit"] not in units:
        return None
    return Fraction(match["number"]) * units[match["unit"]]


def duration_ns(value: object, what: str = "duration", *, signed: bool = False) -> int:
    """A duration in nanoseconds.

    Args:
        value: Nanoseconds as an ``int``, or a string with a unit: ns, us, ms, s, min, h.
        what: Name of the parameter, for the error.
        signed: Whether it may be negative.

    Raises:
        ValueError: It is something else, negative, no whole number of nanoseconds, or above 2**62
            (146 years).
    """
    text = value.strip() if isinstance(value, str) else ""
    sign = -1 if signed and text.startswith("-") else 1
    number: Fraction | int | None = None
    if isinstance(value, str):
        number = _quantity(text[1:] if sign < 0 else text, _TIME_UNITS)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None:
        raise ValueError(f"{what}: {value!r} is no duration: {_TIME_FORM}")
    if number.denominator != 1:
        raise ValueError(f"{what}: {value!r} is no whole number of nanoseconds")
    number = sign * int(number)
    if not (-DURATION_MAX_NS if signed else 0) <= number <= DURATION_MAX_NS:
        raise ValueError(f"{what}: {value!r} is not within 0 to 2**62 ns (146 years)")
    return number


def rate_bps(value: object, what: str = "bandwidth") -> int:
    """A rate in bits per second; None and 0: no limit, which is 0.

    Raises:
        ValueError: It is neither an ``int`` nor a string such as "10Gbps", or above 1 Pbit/s.
    """
    number: Fraction | int | None = None
    if value is None:
        return 0
    if isinstance(value, str):
        number = _quantity(value, _RATE_UNITS)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if number is None:
        raise ValueError(f"{what}: {value!r} is no rate: {_RATE_FORM}; None: no limit")
    if number.denominator != 1 or not 0 <= number <= _RATE_MAX:
        raise ValueError(f"{what}: {value!r} is no whole number of bits per second up to 10**15")
    return int(number)


def probability_ppb(value: object, what: str = "probability") -> int:
    """A probability in parts per billion.

    Raises:
        ValueError: It is neither a number from 0 to 1 nor a percentage from "0%" to "100%".
    """
    number: Fraction | None = None
    if isinstance(value, str):
        number = _quantity(value, {"%": 1, "": 100})
        number = None if number is None else number / 100
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1:
        number = Fraction(value)
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"{what}: {value!r} is no probability: {_CHANCE_FORM}")
    return round(number * PPB_ONE)


def parse_queue(value: object, what: str = "queue") -> Queue:
    """The bound of a queue. None: no bound (but that of 65,536 packets which every queue has).

    Raises:
        ValueError: It is neither packets nor bytes nor both, or a bound is 0.
    """
    if value is None:
        return Queue(0, 0)
    found: dict[str, int] = {}
    if isinstance(value, int) and not isinstance(value, bool):
        found["packets"] = value
    elif isinstance(value, str):
        for part in value.split(","):
            packets, size = _quantity(part, {"p": 1}), _quantity(part, _BYTE_UNITS)
            kind, number = ("packets", packets) if packets is not None else ("bytes", size)
            if number is None or number.denominator != 1 or kind in found:
                raise ValueError(f"{what}: {value!r} is no queue: {_QUEUE_FORM}")
            found[kind] = int(number)
    else:
        raise ValueError(f"{what}: {value!r} is no queue: {_QUEUE_FORM}")
    for kind, bound in found.items():
        if not 1 <= bound <= _QUEUE_MAX:
            raise ValueError(f"{what}: {value!r}: {bound} {kind} are not within 1 to 2**32 - 1")
    return Queue(found.get("packets", 0), found.get("bytes", 0))


def format_duration(ns: int) -> str:
    """The shortest exact form that `duration_ns` reads, such as "1.5ms"."""
    if ns < 0:
        return f"-{format_duration(-ns)}"
    if ns == 0:
        return "0ns"
    best = f"{ns}ns"
    for unit, size in _TIME_UNITS.items():
        if unit == "µs" or ns < size:
            continue
        # At most nine digits behind the point are exact for these units.
        scaled = ns * 10**9 // size
        if scaled * size != ns * 10**9:
            continue
        whole, part = divmod(scaled, 10**9)
        digits = f".{part:09d}".rstrip("0") if part else ""
        text = f"{whole}{digits}{unit}"
        if len(text) < len(best):
            best = text
    return best


def format_ms(ns: int) -> str:
    """Milliseconds with three digits behind the point, as in reports: "200.000 ms"."""
    sign = "-" if ns < 0 else ""
    us = (abs(ns) + 500) // 1000
    return f"{sign}{us // 1000}.{us % 1000:03d} ms"


def format_rate(bps: int) -> str | None:
    """The shortest form that `rate_bps` reads; None: no limit."""
    if bps == 0:
        return None
    for unit, size in _RATE_UNITS.items():
        if bps % size == 0:
            return f"{bps // size}{unit}"
    return f"{bps}bps"
