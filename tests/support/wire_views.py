# SPDX-License-Identifier: MIT
"""Call the wire views of the C core on bytes, with a guard page right behind them.

A view that reads one byte past its input dies at once, in every build, with or without ASan.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from typing import Any

from machnet._native import ffi, lib

ERRORS = {
    int(getattr(lib, name)): name.removeprefix("MN_WIRE_")
    for name in (
        "MN_WIRE_TRUNCATED",
        "MN_WIRE_BAD_VERSION",
        "MN_WIRE_BAD_LENGTH",
        "MN_WIRE_BAD_CSUM",
        "MN_WIRE_UNSUPPORTED",
        "MN_WIRE_FRAGMENT",
        "MN_WIRE_BAD_ADDR",
        "MN_WIRE_BAD_OPTION",
    )
}

_ROOM = 1 << 17


def _guarded_end() -> tuple[mmap.mmap, Any]:
    """Map ``_ROOM`` bytes with an inaccessible page behind them; returns the end of the room."""
    area = mmap.mmap(-1, _ROOM + mmap.PAGESIZE)
    start = ffi.from_buffer(area)
    libc = ctypes.CDLL(None, use_errno=True)
    address = int(ffi.cast("uintptr_t", start)) + _ROOM
    prot_none = 0
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), prot_none) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    return area, ffi.cast("uint8_t *", start) + _ROOM


_AREA, _END = _guarded_end()


def guarded(data: bytes | bytearray) -> Any:
    """Copy ``data`` to where its last byte touches the guard page; valid until the next call."""
    if len(data) > _ROOM:
        raise ValueError(f"{len(data)} bytes are more than the {_ROOM} there is room for")
    pointer = _END - len(data)
    ffi.memmove(pointer, data, len(data))
    return pointer


@dataclass(frozen=True)
class View:
    """One parse function: the struct it fills in, and which of its fields mean what."""

    name: str
    scalars: tuple[str, ...]
    arrays: tuple[str, ...] = ()
    #: Pairs of a pointer into the input and the length of what it points to.
    spans: tuple[tuple[str, str], ...] = (("payload", "payload_len"),)

    def __call__(self, data: bytes | bytearray) -> dict[str, Any] | str:
        """The decoded fields, spans as ``(offset, length)``; or the name of the refusal."""
        out = ffi.new(f"struct mn_{self.name} *")
        start = guarded(data)
        code = getattr(lib, f"mn_{self.name}_parse")(start, len(data), out)
        if code != 0:
            return ERRORS[code]
        fields = {name: getattr(out, name) for name in self.scalars}
        for name in self.arrays:
            fields[name] = bytes(getattr(out, name))
        for pointer, length in self.spans:
            size = getattr(out, length)
            offset = getattr(out, pointer) - start
            assert 0 <= offset <= offset + size <= len(data), (pointer, offset, size, len(data))
            fields[pointer] = (offset, size)
        return fields


ETH = View("eth", ("type", "hdr_len"), ("dst", "src"))
ARP = View("arp", ("op", "sender_ip", "target_ip"), ("sender_mac", "target_mac"), ())
IPV4 = View(
    "ipv4",
    (
        *("src", "dst", "total_len", "id", "frag", "csum"),
        *("ihl", "tos", "ttl", "proto", "hdr_len", "opts_len"),
    ),
    spans=(("payload", "payload_len"), ("opts", "opts_len")),
)
ICMP = View("icmp", ("type", "code", "csum", "rest", "hdr_len"))
ICMP_QUOTE = View(
    "icmp_quote",
    ("src", "dst", "total_len", "proto", "ttl", "sport", "dport", "seq", "hdr_len"),
)
UDP = View("udp", ("sport", "dport", "len", "csum", "hdr_len"))
TCP = View(
    "tcp",
    ("sport", "dport", "seq", "ack", "flags", "wnd", "urg", "csum", "doff", "hdr_len", "opts_len"),
    spans=(("payload", "payload_len"), ("opts", "opts_len")),
)


def tcp_opts(data: bytes | bytearray) -> tuple[dict[str, Any], bool]:
    """The options in ``data``, absent ones left out, and whether the area was legal to its end."""
    out = ffi.new("struct mn_tcp_opts *")
    # What the function leaves alone must not look like an answer.
    ffi.memmove(out, b"\xa5" * ffi.sizeof("struct mn_tcp_opts"), ffi.sizeof("struct mn_tcp_opts"))
    code = lib.mn_tcp_opts_parse(guarded(data), len(data), out)
    assert code in (0, lib.MN_WIRE_BAD_OPTION)
    assert out.n_sack <= 4
    found: dict[str, Any] = {}
    if out.has_mss:
        found["mss"] = out.mss
    if out.has_wscale:
        found["wscale"] = out.wscale
    if out.sack_permitted:
        found["sack_permitted"] = True
    if out.has_ts:
        found["ts"] = (out.tsval, out.tsecr)
    if out.n_sack:
        found["sack"] = [(b.left, b.right) for b in out.sack[0 : out.n_sack]]
    if out.saw_unknown:
        found["unknown"] = out.saw_unknown
    return found, code == 0
