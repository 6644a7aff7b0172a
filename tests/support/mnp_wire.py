# SPDX-License-Identifier: MIT
"""The Machnet message protocol as bytes: made and read by hand, for peers and vectors in tests.

Nothing here comes from the stack: it is a second writing-down of the format, after the protocol's
description, so that the two can disagree.
"""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

from machnet.testing import Packet, udp
from machnet.testing.octets import checksum, ip_bytes, mac_bytes, pseudo_header

MAGIC = 0x4E53
HEADER_BYTES = 54
DATA, SYN, ACK, SYN_ACK, FIN, RST = 0x00, 0x01, 0x02, 0x03, 0x04, 0x80
FIRST, MORE, LAST, CHAIN, NOTIFY = 0x01, 0x02, 0x04, 0x08, 0x80
SINGLE = FIRST | LAST
PLAIN_MSS = 1418
NO_ACK = 0xFFFFFFFF
#: "MNXT", at the place where plain control packets have the first half word of their bitmap.
MARKER = 0x4D4E5854
VERSION = 1
F_SACK, F_DATA_ACK, F_TIMESTAMPS, F_WINDOW, F_FIN, F_REASONS, F_LENGTH = (1 << i for i in range(7))
FEATURES = 0x7F
NAMES = {DATA: "DATA", SYN: "SYN", ACK: "ACK", SYN_ACK: "SYN-ACK", FIN: "FIN", RST: "RST"}
REASONS = {
    1: "closed by the application",
    2: "refused",
    3: "timed out",
    4: "protocol error",
    5: "message too large",
    6: "out of resources",
    7: "application gone",
}

_HEADER = struct.Struct(">HBBII32sHQ")
_M32 = 0xFFFFFFFF


def add32(a: int, b: int) -> int:
    """A sequence number moved on by ``b``."""
    return (a + b) & _M32


def diff32(a: int, b: int) -> int:
    """How far ``a`` is after ``b``: -2^31 to 2^31 - 1."""
    return ((a - b + 0x80000000) & _M32) - 0x80000000


@dataclasses.dataclass(frozen=True)
class Mnp:
    """One mnp packet: its header's 54 bytes, and the payload.

    ``body`` is what stands in bytes 12 to 43, ``count`` in 44 and 45, ``stamp`` in 46 to 53.
    """

    net_flags: int
    seqno: int = 0
    ackno: int = 0
    msg_flags: int = 0
    body: bytes = bytes(32)
    count: int = 0
    stamp: int = 0
    payload: bytes = b""
    magic: int = MAGIC

    def __bytes__(self) -> bytes:
        return (
            _HEADER.pack(
                self.magic, self.net_flags, self.msg_flags, self.seqno & _M32, self.ackno & _M32,
                self.body, self.count, self.stamp,
            )
            + self.payload
        )  # fmt: skip

    @classmethod
    def parse(cls, data: bytes) -> Mnp | None:
        """The packet that a datagram's data is; None: too short, or without the magic number."""
        if len(data) < HEADER_BYTES:
            return None
        magic, net, msg, seqno, ackno, body, count, stamp = _HEADER.unpack_from(data)
        if magic != MAGIC:
            return None
        return cls(net, seqno, ackno, msg, body, count, stamp, data[HEADER_BYTES:], magic)

    def with_(self, **changes: Any) -> Mnp:
        """The same packet, but for these fields."""
        return dataclasses.replace(self, **changes)

    @property
    def name(self) -> str:
        """What kind of packet it is."""
        return NAMES.get(self.net_flags, f"0x{self.net_flags:02x}")

    # ---- extended mode ---------------------------------------------------------------------------

    @property
    def marked(self) -> bool:
        """Whether a SYN or SYN-ACK offers, or accepts, extended mode."""
        return self.word(0) == MARKER

    def word(self, index: int) -> int:
        """A 32-bit word of the body; 0 is that at offset 12 of the header."""
        return int.from_bytes(self.body[4 * index : 4 * index + 4], "big")

    @property
    def version(self) -> int:
        """Extended mode's version, of a marked packet."""
        return self.body[4]

    @property
    def features(self) -> int:
        """Features that are offered or accepted, of a marked packet."""
        return int.from_bytes(self.body[6:8], "big")

    @property
    def mss(self) -> int:
        """Largest payload that the sender of a marked packet takes."""
        return int.from_bytes(self.body[8:10], "big")

    @property
    def window(self) -> int:
        """The receive window in packets, in extended mode."""
        if self.net_flags in {SYN, SYN_ACK}:
            return int.from_bytes(self.body[10:12], "big")
        return self.count

    @property
    def tsval(self) -> int:
        """Extended mode's timestamp."""
        return self.stamp >> 32

    @property
    def tsecr(self) -> int:
        """Extended mode's echo."""
        return self.stamp & _M32

    @property
    def sacked(self) -> list[int]:
        """Sequence numbers that extended mode's bitmap says are held."""
        words = struct.unpack(">4Q", self.body)
        held = [i for i in range(256) if words[i // 64] >> (i % 64) & 1]
        return [add32(self.ackno, 1 + i) for i in held]

    @property
    def reason(self) -> int:
        """Why an extended RST was sent."""
        return self.word(0)

    @property
    def total(self) -> int:
        """Length of the message, on the first of its extended DATA packets."""
        return self.word(0)


def offer(
    version: int = VERSION,
    features: int = FEATURES,
    mss: int = 1418,
    window: int = 256,
    marker: int = MARKER,
) -> bytes:
    """The body of a SYN or SYN-ACK of extended mode."""
    return struct.pack(">IBBHHH20x", marker, version, 0, features, mss, window)


def sack_body(ackno: int, held: list[int]) -> bytes:
    """Extended mode's bitmap, which says that these sequence numbers are held."""
    words = [0, 0, 0, 0]
    for seqno in held:
        i = diff32(seqno, ackno) - 1
        words[i // 64] |= 1 << (i % 64)
    return struct.pack(">4Q", *words)


def word_body(value: int) -> bytes:
    """A body that begins with a 32-bit word: a reason, or a message's length."""
    return struct.pack(">I28x", value)


def stamps(value: int, echo: int = 0) -> int:
    """Both timestamps, as ``stamp`` has them."""
    return (value & _M32) << 32 | (echo & _M32)


def cut(message: bytes, seqno: int, mss: int = PLAIN_MSS) -> list[Mnp]:
    """A message as plain DATA packets from ``seqno`` on."""
    pieces = [message[at : at + mss] for at in range(0, len(message), mss)]
    packets = []
    for i, piece in enumerate(pieces):
        flags = (FIRST if i == 0 else 0) | (LAST if i == len(pieces) - 1 else MORE)
        packets.append(Mnp(DATA, add32(seqno, i), NO_ACK, flags, payload=piece))
    return packets


# ---- frames --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Addresses:
    """Both ends of one direction."""

    src_mac: str
    dst_mac: str
    src: str
    dst: str
    sport: int
    dport: int

    def turned(self) -> Addresses:
        """The other direction."""
        return Addresses(
            self.dst_mac, self.src_mac, self.dst, self.src, self.dport, self.sport
        )  # fmt: skip


def frame(path: Addresses, packet: Mnp | bytes, *, udp_csum: int | None = None) -> bytes:
    """An Ethernet frame as the original sends it: IP id 0x1513, TTL 64, DF clear.

    Args:
        path: From whom, to whom.
        packet: What is in the datagram.
        udp_csum: The UDP checksum; None: the right one.
    """
    data = bytes(packet)
    src, dst = ip_bytes(path.src), ip_bytes(path.dst)
    length = 8 + len(data)
    head = struct.pack(">HHHH", path.sport, path.dport, length, 0)
    if udp_csum is None:
        udp_csum = checksum(pseudo_header(src + dst, 17, length) + head + data) or 0xFFFF
    head = head[:6] + udp_csum.to_bytes(2, "big")
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + length, 0x1513, 0, 64, 17, 0) + src + dst
    ip = ip[:10] + checksum(ip).to_bytes(2, "big") + ip[12:]
    return mac_bytes(path.dst_mac) + mac_bytes(path.src_mac) + b"\x08\x00" + ip + head + data


def parse_frame(raw: bytes) -> tuple[Addresses, Mnp] | None:
    """The mnp packet in a frame, and its addresses; None: there is none."""
    packet = Packet(raw)
    if packet.udp is None or packet.ip is None or packet.eth is None:
        return None
    found = Mnp.parse(packet.udp.payload)
    if found is None:
        return None
    path = Addresses(
        packet.eth.src, packet.eth.dst, packet.ip.src, packet.ip.dst,
        packet.udp.sport, packet.udp.dport,
    )  # fmt: skip
    return path, found


def template(packet: Mnp, **fields: Any) -> Any:
    """The packet as a template of `machnet.testing`, for a RawPeer."""
    return udp(payload=bytes(packet), **fields)


def write_pcap(path: Path, frames: list[tuple[int, bytes]], snap: int = 65535) -> None:
    """A capture of frames with their times in ns, each cut off behind ``snap`` bytes."""
    # The magic number of files with nanoseconds; link type 1, Ethernet.
    parts = [struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)]
    for t_ns, raw in frames:
        seen = raw[:snap]
        parts.append(struct.pack("<IIII", *divmod(t_ns, 10**9), len(seen), len(raw)) + seen)
    path.write_bytes(b"".join(parts))
