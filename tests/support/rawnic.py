# SPDX-License-Identifier: MIT
"""NICs driven with plain bytes, the way an engine would."""

from __future__ import annotations

import errno
import select
import time
from typing import Any

from machnet._native import ffi, lib
from machnet.testing.nic import CSUM_NONE, CSUM_PARTIAL, CSUM_VALID, Meta, NicHandle

__all__ = [
    "CSUM_NONE",
    "CSUM_PARTIAL",
    "CSUM_VALID",
    "Meta",
    "RawTap",
    "RawWire",
    "check",
    "meta_of",
]

FRAME_BYTES_MAX = 70_000


def meta_of(c: Any) -> Meta:
    return Meta(c.csum, c.l4_off, c.csum_off, c.gso_size, c.pieces)


def check(result: int) -> int:
    """The result, unless it is a negative errno."""
    if result < 0:
        raise OSError(-result, errno.errorcode.get(-result, "?"))
    return result


class RawWire(NicHandle):
    """One `struct mn_wire *`."""

    def __init__(self, wire: Any) -> None:
        super().__init__(lib.mn_wire_nic(wire))
        self.wire = wire

    @staticmethod
    def pair(**config: Any) -> tuple[RawWire, RawWire]:
        a, b = ffi.new("struct mn_wire **"), ffi.new("struct mn_wire **")
        check(lib.mn_wire_pair(ffi.new("struct mn_wire_config *", config), a, b))
        return RawWire(a[0]), RawWire(b[0])

    @staticmethod
    def single(**config: Any) -> RawWire:
        out = ffi.new("struct mn_wire **")
        check(lib.mn_wire_single(ffi.new("struct mn_wire_config *", config), out))
        return RawWire(out[0])

    def close(self) -> None:
        lib.mn_wire_close(self.wire)

    @property
    def stats(self) -> Any:
        stats = ffi.new("struct mn_wire_stats *")
        lib.mn_wire_get_stats(self.wire, stats)
        return stats

    def inject(self, frame: bytes, meta: Meta | None = None) -> None:
        if meta is None:
            check(lib.mn_wire_inject(self.wire, frame, len(frame)))
        else:
            check(lib.mn_wire_inject_meta(self.wire, frame, len(frame), meta.c()))

    def drain_meta(self, size: int = FRAME_BYTES_MAX) -> tuple[int, bytes, Meta] | None:
        t_ns, meta = ffi.new("uint64_t *"), ffi.new("struct mn_pkt_meta *")
        length = check(lib.mn_wire_drain_meta(self.wire, self._buf, size, t_ns, meta))
        if length == 0:
            return None
        return t_ns[0], bytes(ffi.buffer(self._buf, length)), meta_of(meta)

    def drain(self) -> list[tuple[int, bytes]]:
        frames = []
        while (got := self.drain_meta()) is not None:
            frames.append(got[:2])
        return frames


class RawTap(NicHandle):
    """A TAP; takes over the descriptor."""

    @staticmethod
    def open(fd: int = -1, name: str = "", **config: Any) -> RawTap:
        out, text = ffi.new("struct mn_nic **"), ffi.new("char[]", name.encode())
        error = ffi.new("char[]", lib.MN_TAP_ERR_BYTES)
        c = ffi.new("struct mn_tap_config *", {"fd": fd, "name": text, **config})
        result = lib.mn_tap_open(c, out, error, lib.MN_TAP_ERR_BYTES)
        if result != 0:
            raise OSError(-result, ffi.string(error).decode())
        return RawTap(out[0])

    def close(self) -> None:
        lib.mn_tap_close(self.nic)

    def __enter__(self) -> RawTap:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def stats(self) -> Any:
        stats = ffi.new("struct mn_tap_stats *")
        lib.mn_tap_get_stats(self.nic, stats)
        return stats

    @property
    def name(self) -> str:
        return str(ffi.string(lib.mn_tap_name(self.nic)).decode())

    @property
    def kernel_mac(self) -> str:
        mac = ffi.new("uint8_t[6]")
        assert lib.mn_tap_kernel_mac(self.nic, mac)
        return bytes(mac).hex(":")

    def wait_meta(self, timeout_s: float = 10.0) -> tuple[bytes, Meta]:
        """The next frame, waiting for it on the NIC's descriptor."""
        deadline = time.monotonic() + timeout_s
        while (got := self.recv_meta()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no frame came")
            select.select([self.info.rx_fd], [], [], left)
        return got

    def wait(self, timeout_s: float = 10.0) -> bytes:
        return self.wait_meta(timeout_s)[0]
