# SPDX-License-Identifier: MIT
"""The headers of a packet: read-only views with plain attributes, made by `machnet.testing.Packet`.

No view ever raises on what a frame holds. Of a header that is cut off (as in the quotation of an
ICMP error) the missing bytes read as zero.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from machnet.testing import tcpoptions
from machnet.testing.octets import FLAG_TEXT, format_ip, format_mac, ones_sum, pseudo_header

if TYPE_CHECKING:
    from machnet.testing.packet import Packet

__all__ = ["Arp", "Ethernet", "Icmp", "Ipv4", "Tcp", "Udp"]

_IP = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIBBHHH")
_UDP = struct.Struct(">HHHH")
_ICMP = struct.Struct(">BBHHH")
_ARP = struct.Struct(">HHBBH6s4s6s4s")
_MOD = 0xFFFFFFFF


def _unpack(form: struct.Struct, frame: bytes, at: int, end: int) -> tuple[Any, ...]:
    if end - at >= form.size:
        return form.unpack_from(frame, at)
    return form.unpack(frame[at:end].ljust(form.size, b"\0"))


class Ethernet:
    """An Ethernet header.

    Attributes:
        dst, src: Addresses, as "02:00:00:00:00:01".
        type: The EtherType behind all VLAN tags.
        vlans: (TPID, TCI) of each tag, the outermost first.
    """

    __slots__ = ("dst", "src", "type", "vlans")

    def __init__(self, frame: bytes, end: int) -> None:
        self.dst = format_mac(frame[:6])
        self.src = format_mac(frame[6:12])
        self.type = int.from_bytes(frame[end - 2 : end], "big")
        self.vlans: tuple[tuple[int, int], ...] = tuple(
            struct.iter_unpack(">HH", frame[12 : end - 2])
        )


class Arp:
    """ARP for IPv4 over Ethernet (RFC 826).

    Attributes:
        op: 1 for a request, 2 for a reply.
        sender_mac, target_mac: As "02:00:00:00:00:01".
        sender_ip, target_ip: As "10.0.0.1".
    """

    __slots__ = ("op", "sender_ip", "sender_mac", "target_ip", "target_mac")

    def __init__(self, frame: bytes, at: int) -> None:
        _, _, _, _, self.op, smac, sip, tmac, tip = _ARP.unpack_from(frame, at)
        self.sender_mac, self.target_mac = format_mac(smac), format_mac(tmac)
        self.sender_ip, self.target_ip = format_ip(sip), format_ip(tip)


class Ipv4:
    """An IPv4 header (RFC 791).

    Attributes:
        version: Always 4.
        ihl: Header length, in words of 4 bytes.
        tos: The whole byte; ``dscp`` and ``ecn`` are its parts.
        total_len: As the header says, in bytes.
        id: Identification.
        frag: The word of flags and fragment offset.
        ttl, proto: As they are.
        csum: Header checksum as it is; ``csum_ok`` says whether it is right.
        src, dst: Addresses, as "10.0.0.1".
        header_len: Bytes of the header that are there.
    """

    __slots__ = (
        *("_at", "_frame", "csum", "dst", "frag", "header_len", "id", "ihl"),
        *("proto", "src", "tos", "total_len", "ttl", "version"),
    )

    def __init__(self, frame: bytes, at: int, end: int) -> None:
        first, self.tos, self.total_len, self.id, self.frag, self.ttl, self.proto, *rest = _unpack(
            _IP, frame, at, end
        )
        self.csum, src, dst = rest
        self.version, self.ihl = first >> 4, first & 15
        self.src: str = format_ip(src)
        self.dst: str = format_ip(dst)
        self.header_len = min(max(self.ihl * 4, 20), end - at)
        self._frame, self._at = frame, at

    @property
    def dscp(self) -> int:
        """Differentiated services code point, 0 to 63."""
        return int(self.tos) >> 2

    @property
    def ecn(self) -> int:
        """ECN field, 0 to 3 (RFC 3168)."""
        return int(self.tos) & 3

    @property
    def df(self) -> bool:
        """Don't fragment."""
        return bool(self.frag & 0x4000)

    @property
    def mf(self) -> bool:
        """More fragments follow."""
        return bool(self.frag & 0x2000)

    @property
    def frag_offset(self) -> int:
        """Offset of this fragment, in bytes."""
        return (int(self.frag) & 0x1FFF) * 8

    @property
    def options(self) -> bytes:
        """The options as they are."""
        return self._frame[self._at + 20 : self._at + self.header_len]

    @property
    def csum_ok(self) -> bool:
        """Whether the header checksum is right."""
        return ones_sum(self._frame[self._at : self._at + self.header_len]) == 0xFFFF


class _Transport:
    """What TCP, UDP and ICMP have in common: a checksum over everything behind the IP header."""

    __slots__ = ("_addresses", "_at", "_end", "_frame", "_whole")
    _proto = 0

    def __init__(self, frame: bytes, at: int, end: int, addresses_at: int, whole: bool) -> None:
        self._frame, self._at, self._end = frame, at, end
        self._addresses, self._whole = addresses_at, whole

    def _sum_ok(self, end: int) -> bool | None:
        if not self._whole:
            return None
        frame, at = self._frame, self._at
        addresses = frame[self._addresses : self._addresses + 8]
        return ones_sum(pseudo_header(addresses, self._proto, end - at) + frame[at:end]) == 0xFFFF


class Tcp(_Transport):
    """A TCP segment (RFC 9293).

    Attributes:
        sport, dport: Ports.
        seq, ack: Sequence numbers; relative in a packet that `Packet.relative` made.
        doff: Data offset, in words of 4 bytes.
        reserved: The 4 bits behind it.
        bits: The flags as a number; ``flags`` as text, such as "SA", in the order FSRPAUEC.
        window: As it is, not scaled.
        csum: As it is; ``csum_ok`` says whether it is right.
        urgent: The urgent pointer.
    """

    __slots__ = (
        *("_ack_base", "_options", "ack", "bits", "csum", "doff", "dport", "flags", "reserved"),
        *("seq", "sport", "urgent", "window"),
    )
    _proto = 6

    def __init__(
        self,
        frame: bytes,
        at: int,
        end: int,
        addresses_at: int = 0,
        whole: bool = True,
        bases: tuple[int, int] = (0, 0),
    ) -> None:
        self._frame, self._at, self._end = frame, at, end
        self._addresses, self._whole = addresses_at, whole
        self.sport, self.dport, seq, ack, offset, bits, self.window, self.csum, self.urgent = (
            _unpack(_TCP, frame, at, end)
        )
        self.seq: int = (seq - bases[0]) & _MOD
        self.ack: int = (ack - bases[1]) & _MOD if bits & 0x10 else ack
        self.doff, self.reserved = offset >> 4, offset & 15
        self.bits: int = bits
        self.flags = FLAG_TEXT[bits]
        self._ack_base = bases[1]
        self._options: tuple[tuple[tcpoptions.Option, ...], str | None] | None = None

    @property
    def header_len(self) -> int:
        """Bytes of the header that are there."""
        return min(max(int(self.doff) * 4, 20), self._end - self._at)

    @property
    def payload(self) -> bytes:
        """The data."""
        return self._frame[self._at + self.header_len : self._end]

    @property
    def seg_len(self) -> int:
        """Sequence numbers that the segment takes (SEG.LEN): data, SYN and FIN."""
        size = self._end - self._at - self.header_len
        return size + (self.bits & 1) + (self.bits >> 1 & 1)

    def _decoded(self) -> tuple[tuple[tcpoptions.Option, ...], str | None]:
        if self._options is None:
            area = self._frame[self._at + 20 : self._at + self.header_len]
            options, error = tcpoptions.decode(area)
            if self._ack_base:
                base = self._ack_base
                options = tuple(
                    (name, tuple(((a - base) & _MOD, (b - base) & _MOD) for a, b in value))
                    if name == "sack"
                    else (name, value)
                    for name, value in options
                )
            self._options = options, error
        return self._options

    @property
    def options(self) -> tuple[tcpoptions.Option, ...]:
        """All options in order: ("mss", 1460), ("nop", None), (254, b"..."): see tcpoptions."""
        return self._decoded()[0]

    @property
    def options_error(self) -> str | None:
        """What is wrong with the options, if anything is."""
        return self._decoded()[1]

    def _option(self, wanted: str) -> Any:
        if self.doff <= 5:
            return None
        for name, value in self._decoded()[0]:
            if name == wanted:
                return value
        return None

    @property
    def mss(self) -> int | None:
        """Maximum segment size, bytes; None without the option."""
        value = self._option("mss")
        return None if value is None else int(value)

    @property
    def wscale(self) -> int | None:
        """Window scale, the shift; None without the option."""
        value = self._option("wscale")
        return None if value is None else int(value)

    @property
    def sack_ok(self) -> bool:
        """Whether the SACK-permitted option is there."""
        return self.doff > 5 and any(name == "sack_ok" for name, _ in self._decoded()[0])

    @property
    def sack(self) -> tuple[tuple[int, int], ...]:
        """SACK blocks (left, right) in their order; empty without the option."""
        return self._option("sack") or ()

    @property
    def ts(self) -> tuple[int, int] | None:
        """Timestamps (value, echo); None without the option."""
        value = self._option("ts")
        return None if value is None else (value[0], value[1])

    @property
    def csum_ok(self) -> bool | None:
        """Whether the checksum is right; None where that can't be known: a part of a segment."""
        return self._sum_ok(self._end)


class Udp(_Transport):
    """A UDP header (RFC 768).

    Attributes:
        sport, dport: Ports.
        len: Length as the header says, in bytes, its own 8 included.
        csum: As it is; ``csum_ok`` says whether it is right.
    """

    __slots__ = ("csum", "dport", "len", "sport")
    _proto = 17

    def __init__(self, frame: bytes, at: int, end: int, addresses_at: int, whole: bool) -> None:
        super().__init__(frame, at, end, addresses_at, whole)
        self.sport, self.dport, self.len, self.csum = _unpack(_UDP, frame, at, end)

    @property
    def _stop(self) -> int:
        return self._at + self.len if 8 <= self.len <= self._end - self._at else self._end

    @property
    def payload(self) -> bytes:
        """The data: as long as the header says, where so much is there."""
        return self._frame[self._at + 8 : self._stop]

    @property
    def csum_ok(self) -> bool | None:
        """Whether the checksum is right or 0, which means none; None for a part of a datagram."""
        return True if self._whole and self.csum == 0 else self._sum_ok(self._stop)


class Icmp(_Transport):
    """An ICMP message (RFC 792).

    Attributes:
        type, code: As they are.
        csum: As it is; ``csum_ok`` says whether it is right.
        id, seq: The two words behind the checksum, under the names that echo gives them.
    """

    __slots__ = ("code", "csum", "id", "seq", "type")

    def __init__(self, frame: bytes, at: int, end: int, addresses_at: int, whole: bool) -> None:
        super().__init__(frame, at, end, addresses_at, whole)
        self.type, self.code, self.csum, self.id, self.seq = _unpack(_ICMP, frame, at, end)

    @property
    def is_error(self) -> bool:
        """Whether the message quotes a packet: types 3, 4, 5, 11 and 12."""
        return self.type in (3, 4, 5, 11, 12)

    @property
    def mtu(self) -> int | None:
        """MTU of the next hop (RFC 1191); None unless fragmentation was needed (3, 4)."""
        return int(self.seq) if (self.type, self.code) == (3, 4) else None

    @property
    def payload(self) -> bytes:
        """Everything behind the first 8 bytes: an echo's data, an error's quotation."""
        return self._frame[self._at + 8 : self._end]

    @property
    def quoted(self) -> Packet | None:
        """The packet that an error quotes, as far as it does; None for other messages."""
        from machnet.testing.packet import Packet

        return Packet.from_ip(self.payload, cut=True) if self.is_error else None

    @property
    def csum_ok(self) -> bool | None:
        """Whether the checksum is right; None for a part of a message."""
        if not self._whole:
            return None
        return ones_sum(self._frame[self._at : self._end]) == 0xFFFF
