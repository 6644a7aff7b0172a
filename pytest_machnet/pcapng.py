# SPDX-License-Identifier: MIT
"""Reading frames back from the captures that machnet writes (pcapng, of this machine's order)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = struct.Struct("=II")
_PACKET = struct.Struct("=IIIII")
_ENHANCED_PACKET = 6


def read_frames(path: Path) -> list[tuple[int, bytes]]:
    """Time in nanoseconds and bytes of each frame; a block that is not complete yet ends it."""
    data = path.read_bytes()
    frames, at = [], 0
    while at + _BLOCK.size <= len(data):
        kind, length = _BLOCK.unpack_from(data, at)
        if length < 12 or at + length > len(data):
            break
        if kind == _ENHANCED_PACKET:
            _, high, low, kept, _ = _PACKET.unpack_from(data, at + _BLOCK.size)
            start = at + _BLOCK.size + _PACKET.size
            frames.append((high << 32 | low, data[start : start + kept]))
        at += length
    return frames
