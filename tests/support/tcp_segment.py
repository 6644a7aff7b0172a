# SPDX-License-Identifier: MIT
"""TCP segments in Ethernet frames: built and taken apart with struct alone, fast enough for tables.

A frame is a template: what a test leaves out is computed, and any field can be forced to be wrong.
Parsing is strict: it raises ``BadFrame`` for whatever a sender must not put on the wire, checksums,
option lengths and padding included, so that every segment in every test is checked for these.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
_LETTERS = "FSRPAUEC"

MOD = 1 << 32


class BadFrame(AssertionError):
    """A frame that no correct sender sends."""


def flag_bits(text: str) -> int:
    """``"SA"`` as bits: F S R P A U E C."""
    bits = 0
    for letter in text:
        bits |= 1 << _LETTERS.index(letter)
    return bits


def flag_text(bits: int) -> str:
    """The reverse of `flag_bits`; ``"-"`` for none."""
    return "".join(letter for i, letter in enumerate(_LETTERS) if bits >> i & 1) or "-"


def ones_sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words (2^16 is 1 modulo 2^16 - 1), 0 to 0xffff."""
    number = int.from_bytes(data + b"\0" * (len(data) & 1), "big")
    return (number % 0xFFFF or 0xFFFF) if number else 0


def checksum(data: bytes) -> int:
    """RFC 1071."""
    return 0xFFFF - ones_sum(data)


def ip_bytes(text: str) -> bytes:
    """Dotted quad to 4 bytes."""
    return bytes(int(part) for part in text.split("."))


# --- options -----------------------------------------------------------------------------------

EOL = b"\x00"
NOP = b"\x01"


def opt(kind: int, body: bytes = b"", length: int | None = None) -> bytes:
    """One option; ``length`` overrides its length byte."""
    return bytes([kind, len(body) + 2 if length is None else length]) + body


def opt_mss(value: int) -> bytes:
    return opt(2, struct.pack(">H", value))


def opt_wscale(shift: int) -> bytes:
    return opt(3, bytes([shift]))


def opt_sack_ok() -> bytes:
    return opt(4)


def opt_sack(blocks: list[tuple[int, int]]) -> bytes:
    return opt(5, b"".join(struct.pack(">II", left % MOD, right % MOD) for left, right in blocks))


def opt_ts(value: int, echo: int) -> bytes:
    return opt(8, struct.pack(">II", value % MOD, echo % MOD))


@dataclass(frozen=True)
class Options:
    """The options of a segment that a stack sent."""

    kinds: tuple[int, ...] = ()
    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    sack: tuple[tuple[int, int], ...] = ()
    ts: tuple[int, int] | None = None


_BODY = {2: (2,), 3: (1,), 4: (0,), 5: (8, 16, 24, 32), 8: (8,)}


def parse_options(area: bytes) -> Options:
    """Raises `BadFrame` for an illegal length, an option sent twice, or padding that is not 0."""
    kinds: list[int] = []
    bodies: dict[int, bytes] = {}
    rest = area
    while rest:
        kind = rest[0]
        if kind == 0:
            if any(rest):
                raise BadFrame(f"padding behind end-of-options is not zero: {area.hex()}")
            break
        if kind == 1:
            rest = rest[1:]
            continue
        if len(rest) < 2 or rest[1] < 2 or rest[1] > len(rest):
            raise BadFrame(f"illegal option length: {area.hex()}")
        body = rest[2 : rest[1]]
        if kind in bodies:
            raise BadFrame(f"option {kind} twice: {area.hex()}")
        if kind not in _BODY or len(body) not in _BODY[kind]:
            raise BadFrame(f"option {kind} with {len(body)} bytes: {area.hex()}")
        kinds.append(kind)
        bodies[kind] = body
        rest = rest[rest[1] :]
    return Options(
        tuple(kinds),
        struct.unpack(">H", bodies[2])[0] if 2 in bodies else None,
        bodies[3][0] if 3 in bodies else None,
        4 in bodies,
        tuple(struct.iter_unpack(">II", bodies[5])) if 5 in bodies else (),
        struct.unpack(">II", bodies[8]) if 8 in bodies else None,
    )


# --- frames ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segment:
    """What a frame of the stack says. Sequence numbers are as on the wire."""

    t_ns: int
    src_mac: bytes
    dst_mac: bytes
    src: str
    dst: str
    tos: int
    ip_id: int
    dont_fragment: bool
    ttl: int
    sport: int
    dport: int
    raw_seq: int
    raw_ack: int
    flags: int
    wnd: int
    urg: int
    opts: Options
    data: bytes = field(repr=False)

    @property
    def seg_len(self) -> int:
        """SEG.LEN: octets of sequence space, SYN and FIN included."""
        return len(self.data) + bool(self.flags & SYN) + bool(self.flags & FIN)


def build_ip(
    payload: bytes,
    src: str,
    dst: str,
    *,
    proto: int = 6,
    ttl: int = 64,
    tos: int = 0,
    ip_id: int = 0,
    frag: int = 0x4000,
    ip_opts: bytes = b"",
    ihl: int | None = None,
    version: int = 4,
    total: int | None = None,
    ip_csum: int | None = None,
) -> bytes:
    """An IPv4 packet; every field can be forced."""
    words = 5 + len(ip_opts) // 4 if ihl is None else ihl
    length = 20 + len(ip_opts) + len(payload) if total is None else total
    head = struct.pack(
        ">BBHHHBBH", version << 4 | words, tos, length, ip_id, frag, ttl, proto, 0
    ) + (ip_bytes(src) + ip_bytes(dst) + ip_opts)
    value = checksum(head) if ip_csum is None else ip_csum
    return head[:10] + struct.pack(">H", value) + head[12:] + payload


def build_tcp(
    src: str,
    dst: str,
    sport: int,
    dport: int,
    seq: int,
    ack: int,
    flags: int,
    wnd: int,
    *,
    urg: int = 0,
    opts: bytes = b"",
    data: bytes = b"",
    doff: int | None = None,
    csum: int | None = None,
) -> bytes:
    """A TCP segment; options are padded with end-of-options."""
    opts += b"\0" * (-len(opts) % 4)
    words = 5 + len(opts) // 4 if doff is None else doff
    if words > 15:
        raise ValueError(f"{len(opts)} bytes of options")
    body = (
        struct.pack(
            ">HHIIHHHH",
            *(sport, dport, seq % MOD, ack % MOD, words << 12 | flags, wnd, 0, urg),
        )
        + opts
        + data
    )
    if csum is None:
        pseudo = ip_bytes(src) + ip_bytes(dst) + struct.pack(">HH", 6, len(body))
        csum = checksum(pseudo + body)
    return body[:16] + struct.pack(">H", csum) + body[18:]


def build_eth(dst_mac: bytes, src_mac: bytes, packet: bytes, ethertype: int = 0x0800) -> bytes:
    return dst_mac + src_mac + struct.pack(">H", ethertype) + packet


def is_tcp(frame: bytes) -> bool:
    return frame[12:14] == b"\x08\x00" and frame[23] == 6


def _parse_ip(frame: bytes) -> bytes:
    """The IP packet of a frame, its header checked, Ethernet padding cut off."""
    packet = frame[14:]
    if packet[0] != 0x45:
        raise BadFrame(f"IP version and header length 0x{packet[0]:02x}")
    total = int.from_bytes(packet[2:4], "big")
    if total > len(packet) or any(packet[total:]):
        raise BadFrame(f"IP length {total} of {len(packet)}, or padding that is not zero")
    if ones_sum(packet[:20]) != 0xFFFF:
        raise BadFrame("IP checksum wrong")
    if int.from_bytes(packet[6:8], "big") & 0xBFFF:
        raise BadFrame("an IP fragment")
    return packet[:total]


def parse(t_ns: int, frame: bytes) -> Segment:
    """A frame with a TCP segment; raises `BadFrame` for anything that must not be sent."""
    if frame[12:14] != b"\x08\x00":
        raise BadFrame(f"ethertype {frame[12:14].hex()}")
    packet = _parse_ip(frame)
    if packet[9] != 6:
        raise BadFrame(f"IP protocol {packet[9]}")
    body = packet[20:]
    if ones_sum(packet[12:20] + struct.pack(">HH", 6, len(body)) + body) != 0xFFFF:
        raise BadFrame("TCP checksum wrong")
    sport, dport, seq, ack, bits, wnd, _, urg = struct.unpack(">HHIIHHHH", body[:20])
    header = (bits >> 12) * 4
    if header < 20 or header > len(body) or bits & 0x0F00:
        raise BadFrame(f"data offset and reserved bits 0x{bits:04x}")
    flags = bits & 0xFF
    if not flags & URG and urg:
        raise BadFrame("urgent pointer without URG")
    if not flags & ACK and ack:
        raise BadFrame("acknowledgement number without ACK")
    opts = parse_options(body[20:header])
    if not flags & SYN and set(opts.kinds) & {2, 3, 4}:
        raise BadFrame(f"options {opts.kinds} that belong on a SYN")
    return Segment(
        *(t_ns, frame[6:12], frame[:6]),
        ".".join(map(str, packet[12:16])),
        ".".join(map(str, packet[16:20])),
        *(packet[1], int.from_bytes(packet[4:6], "big"), bool(packet[6] & 0x40), packet[8]),
        *(sport, dport, seq, ack, flags, wnd, urg, opts, body[header:]),
    )
