# SPDX-License-Identifier: MIT
"""The controller's protocol as Python sees it: ``machnet/shim/ctrl.h`` has the layout and the rules."""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

__all__ = [
    "MAGIC",
    "PACKET_BYTES_MAX",
    "PAYLOAD_BYTES_MAX",
    "REP_BYTES",
    "REQ_BYTES",
    "VERSION",
    "Geometry",
    "MalformedError",
    "Op",
    "Reply",
    "Request",
]

MAGIC = 0x4C52544E
VERSION = 1
PAYLOAD_BYTES_MAX = 16384
_WHY_BYTES = 160
_NAME_BYTES = 64

_REQ = struct.Struct(f"=IHH6I6I{_NAME_BYTES}s8x")
_REP = struct.Struct(f"=IHHIi4I6III{_WHY_BYTES}s32x")
REQ_BYTES = _REQ.size
REP_BYTES = _REP.size
#: The longest request.
PACKET_BYTES_MAX = REQ_BYTES + PAYLOAD_BYTES_MAX


class Op(enum.IntEnum):
    """What a request asks for."""

    HELLO = 1
    ATTACH = 2
    DETACH = 3
    ADMIN = 4


class MalformedError(ValueError):
    """What came is no packet of this protocol: the connection ends."""


class Geometry(NamedTuple):
    """``struct mn_chan_geometry``."""

    n_lanes: int = 0
    buf_bytes: int = 0
    tx_bufs: int = 0
    rx_bufs: int = 0
    flows_max: int = 0
    ctl_slots: int = 0


class Request(NamedTuple):
    """``struct mn_ctrl_req``, and what follows it."""

    op: int
    id: int = 0
    channel: int = 0
    value: int = 0
    chan_version: int = 0
    flags: int = 0
    geo: Geometry = Geometry()
    name: bytes = b""
    payload: bytes = b""
    version: int = VERSION

    def pack(self) -> bytes:
        """The packet."""
        head = (MAGIC, self.version, self.op, self.id, self.channel, self.value)
        tail = (len(self.payload), self.chan_version, self.flags, *self.geo)
        return _REQ.pack(*head, *tail, self.name[: _NAME_BYTES - 1]) + self.payload

    @classmethod
    def unpack(cls, packet: bytes) -> Request:
        """The request that a packet is.

        Raises:
            MalformedError: It is none.
        """
        if len(packet) < REQ_BYTES:
            raise MalformedError(f"a packet of {len(packet)} bytes")
        magic, version, op, number, channel, value, size, chan_version, flags, *rest = (
            _REQ.unpack_from(packet)
        )
        *geo, name = rest
        if magic != MAGIC:
            raise MalformedError(f"the magic number is {magic:#x}")
        if size > PAYLOAD_BYTES_MAX or len(packet) != REQ_BYTES + size:
            raise MalformedError(f"a packet of {len(packet)} bytes with {size} bytes of payload")
        if size != 0 and op != Op.ADMIN:
            raise MalformedError(f"operation {op} has a payload")
        text, zero, _ = name.partition(b"\0")
        if not zero:
            raise MalformedError("the name has no end")
        payload = packet[REQ_BYTES:]
        return cls(
            op, number, channel, value, chan_version, flags, Geometry(*geo), text, payload, version
        )


class Reply(NamedTuple):
    """``struct mn_ctrl_rep``."""

    op: int
    id: int
    status: int = 0
    channel: int = 0
    value: int = 0
    n_fds: int = 0
    geo: Geometry = Geometry()
    chan_version: int = 0
    pid: int = 0
    why: str = ""
    version: int = VERSION

    def pack(self) -> bytes:
        """The packet; ``why`` is cut to what fits, between two characters."""
        why = self.why.encode(errors="replace")[: _WHY_BYTES - 1]
        why = why.decode(errors="ignore").encode()
        head = (MAGIC, self.version, self.op, self.id, self.status)
        numbers = (self.channel, self.geo.n_lanes, self.value, self.n_fds)
        return _REP.pack(*head, *numbers, *self.geo, self.chan_version, self.pid, why)

    @classmethod
    def unpack(cls, packet: bytes) -> Reply:
        """The reply that a packet is.

        Raises:
            MalformedError: It is none.
        """
        if len(packet) != REP_BYTES:
            raise MalformedError(f"a packet of {len(packet)} bytes")
        magic, version, op, number, status, channel, _, value, n_fds, *rest = _REP.unpack(packet)
        *geo, chan_version, pid, why = rest
        if magic != MAGIC:
            raise MalformedError(f"the magic number is {magic:#x}")
        text = why.partition(b"\0")[0].decode(errors="replace")
        return cls(
            op,
            number,
            status,
            channel,
            value,
            n_fds,
            Geometry(*geo),
            chan_version,
            pid,
            text,
            version,
        )
