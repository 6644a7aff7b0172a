# SPDX-License-Identifier: MIT
"""Histograms in the form in which HdrHistogram programs exchange them, so that runs can be merged."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

from machnet._native import ffi, lib

#: Of the encoding, version 2: the counts, and the whole of it compressed.
_COOKIE, _COMPRESSED_COOKIE = 0x1C849303 | 0x10, 0x1C849304 | 0x10
#: Range and precision of ``struct mn_hist``.
_LOWEST_NS, _HIGHEST_NS, _DIGITS = 1, 60_000_000_000, 3


def _varint(number: int) -> bytes:
    """A signed number in ZigZag and LEB128, of up to 9 bytes."""
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number >= 0x80 and len(out) < 8:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_hdr(hist: Any) -> str:
    """A ``struct mn_hist`` as a compressed HdrHistogram (version 2, base64), in nanoseconds.

    ``HdrHistogram.decode`` of any implementation reads it; those of several runs can be added.
    """
    counts = bytearray()
    zeros = 0
    last = lib.mn_hist_bucket(hist.max_ns) + 1 if hist.count else 0
    for count in ffi.unpack(hist.buckets, last) if last else []:
        if count == 0:
            zeros += 1
            continue
        if zeros:
            counts += _varint(-zeros)
            zeros = 0
        counts += _varint(count)
    head = struct.pack(">iiiiqqd", _COOKIE, len(counts), 0, _DIGITS, _LOWEST_NS, _HIGHEST_NS, 1.0)
    packed = zlib.compress(head + bytes(counts))
    return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(packed)) + packed).decode(
        "ascii"
    )
