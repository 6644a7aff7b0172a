# SPDX-License-Identifier: MIT
"""A peer of the message protocol, made by hand: packets in and out of a stepped stack, byte by byte."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import machnet
from machnet.sim import Wire

DATA, SYN, ACK, SYNACK, FIN, RST = 0, 1, 2, 3, 4, 0x80
NO_ACK = 0xFFFFFFFF
ALL = 0x7F
OURS, THEIRS = "10.0.0.2", "10.0.0.1"
MAC = bytes.fromhex("020000000001")
_M32 = 0xFFFFFFFF
#: Peers whose stacks are still to be closed.
OPEN: list[Peer] = []


def close_all() -> None:
    while OPEN:
        OPEN.pop().stack.close(linger=0)


def ip_bytes(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True)
class Packet:
    """One Machnet packet. ``rest`` are the bytes 12 to 53 of its header."""

    kind: int
    seq: int
    ack: int = 0
    flags: int = 0
    rest: bytes = bytes(42)
    payload: bytes = b""
    sport: int = 0
    dport: int = 0
    at_ns: int = 0

    @property
    def word12(self) -> int:
        return int.from_bytes(self.rest[0:4], "big")

    @property
    def wnd(self) -> int:
        return int.from_bytes(self.rest[32:34], "big")

    @property
    def ts(self) -> tuple[int, int]:
        value, echo = struct.unpack(">II", self.rest[34:42])
        return value, echo

    @property
    def held(self) -> set[int]:
        """Sequence numbers that the bitmap names."""
        words = struct.unpack(">4Q", self.rest[0:32])
        return {(self.ack + 1 + i) & _M32 for i in range(256) if words[i // 64] >> (i % 64) & 1}


def header(packet: Packet) -> bytes:
    """The first twelve bytes of its header."""
    return struct.pack(">HBBII", 0x4E53, packet.kind, packet.flags, packet.seq, packet.ack)


def udp_frame(src_mac: bytes, dst_mac: bytes, sport: int, dport: int, data: bytes) -> bytes:
    """Ethernet, IPv4 and UDP around ``data``, from the peer to the stack, checksums valid."""
    udp = struct.pack(">HHHH", sport, dport, 8 + len(data), 0) + data
    pseudo = ip_bytes(THEIRS) + ip_bytes(OURS) + struct.pack(">HH", 17, len(udp))
    udp = udp[:6] + struct.pack(">H", checksum(pseudo + udp) or 0xFFFF) + udp[8:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0x1513, 0, 64, 17, 0)
    ip += ip_bytes(THEIRS) + ip_bytes(OURS)
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    return dst_mac + src_mac + b"\x08\x00" + ip + udp


def parse(frame: bytes, at_ns: int = 0) -> Packet | None:
    """The Machnet packet in a frame of the stack; its checksums must be right."""
    if frame[12:14] != b"\x08\x00" or frame[23] != 17:
        return None
    total = int.from_bytes(frame[16:18], "big")
    assert len(frame) == 14 + total, "a C++ host takes no padding"
    assert frame[14] == 0x45
    assert checksum(frame[14:34]) == 0
    udp = frame[34:]
    assert int.from_bytes(udp[4:6], "big") == len(udp)
    assert udp[6:8] != b"\x00\x00"
    assert checksum(frame[26:34] + struct.pack(">HH", 17, len(udp)) + udp) == 0
    sport, dport = struct.unpack(">HH", udp[0:4])
    magic, kind, flags, seq, ack = struct.unpack(">HBBII", udp[8:20])
    assert magic == 0x4E53
    return Packet(kind, seq, ack, flags, udp[20:62], udp[62:], sport, dport, at_ns)


def syn_rest(
    *,
    version: int = 1,
    feats: int = ALL,
    mss: int = 1418,
    wnd: int = 256,
    ts: int = 0,
    echo: int = 0,
) -> bytes:
    """Bytes 12 to 53 of a SYN of extended mode."""
    head = struct.pack(">4sBBHHH", b"MNXT", version, 0, feats, mss, wnd)
    return head + bytes(22) + struct.pack(">II", ts, echo)


def rest(*, word12: int = 0, wnd: int = 256, held: int = 0, ts: int = 0, echo: int = 0) -> bytes:
    """Bytes 12 to 53 of another packet of extended mode. ``held``: the bitmap, bit 0 first."""
    if held:
        words = [held >> (64 * i) & (2**64 - 1) for i in range(4)]
        return struct.pack(">4QHII", *words, wnd, ts, echo)
    return struct.pack(">I28xHII", word12, wnd, ts, echo)


@dataclass
class Peer:
    """A stack with one channel on a wire, and the other end of the wire."""

    stack: Any
    channel: Any
    port: int = 1024
    their_port: int = 888
    ext: bool = True
    seq: int = 100  # the peer's next number
    ack: int = 0  # what it expects next
    seen: list[Packet] = field(default_factory=list)

    @classmethod
    def make(cls, *, mtu: int = 1500, isn: int | None = None, **settings: Any) -> Peer:
        stack = machnet.Stack(Wire(mtu=mtu), ip=f"{OURS}/24", seed=3, isn=isn, **settings)
        stack.neighbor(THEIRS, MAC.hex(":"))
        peer = cls(stack, stack.attach())
        OPEN.append(peer)
        return peer

    def put(self, kind: int, seq: int | None = None, ack: int | None = None, **other: Any) -> None:
        """Send a packet to the stack: header fields as `Packet` has them."""
        packet = Packet(
            kind,
            (self.seq if seq is None else seq) & _M32,
            (self.ack if ack is None else ack) & _M32,
            **other,
        )
        frame = udp_frame(
            MAC,
            bytes.fromhex(self.stack.mac.replace(":", "")),
            self.port,
            self.their_port,
            header(packet) + packet.rest + packet.payload,
        )
        self.stack.inject(frame)

    def got(self) -> list[Packet]:
        """What the stack has sent since the last call."""
        packets = [p for t, frame in self.stack.drain() if (p := parse(frame, t)) is not None]
        self.seen += packets
        return packets

    def one(self, kind: int) -> Packet:
        """The only packet sent since the last call, of this kind."""
        packets = self.got()
        assert [p.kind for p in packets] == [kind], packets
        return packets[0]

    def accept(self, *, extended: bool = True, **syn: Any) -> Packet:
        """Connect to the stack, which listens; its SYN-ACK."""
        self.channel.listen(OURS, self.their_port)
        self.ext = extended
        self.put(SYN, ack=0, rest=syn_rest(**syn) if extended else bytes(42))
        answer = self.one(SYNACK)
        assert answer.ack == self.seq + 1
        self.seq += 1
        self.ack = (answer.seq + 1) & _M32
        self.put(ACK, rest=rest() if extended else bytes(42))
        assert self.got() == []
        return answer

    def data(
        self, payload: bytes, flags: int = 5, *, ahead: int = 0, total: int | None = None
    ) -> None:
        """DATA at ``seq + ahead``; without ``ahead`` it uses its number up."""
        if self.ext:
            first = flags & 1
            word = (len(payload) if total is None else total) if first else 0
            self.put(DATA, self.seq + ahead, flags=flags, payload=payload, rest=rest(word12=word))
        else:
            garbage = b"\xff" * 34 + bytes(8)
            self.put(DATA, self.seq + ahead, NO_ACK, flags=flags, payload=payload, rest=garbage)
        if ahead == 0:
            self.seq += 1

    def ack_to(self, ack: int, **extended: Any) -> None:
        """A pure ACK."""
        self.ack = ack & _M32
        self.put(ACK, rest=rest(**extended) if self.ext else bytes(42))
