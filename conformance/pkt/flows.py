# SPDX-License-Identifier: MIT
"""Connections of a script, and the way between its sequence numbers and those on the wire.

What comes in (``<``) has the numbers that the script says. What goes out is numbered by the stack,
so its first SYN says which number the script's stands for. The same is done for timestamps: the
script's values stand for those that were on the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from machnet.testing.build import make_frame

from .nodes import TcpPacket
from .notation import (
    FAST_OPEN_KIND,
    FOEXP_MAGIC,
    flags_text,
    option_text,
    options_of,
    options_text,
    packet_text,
)

if TYPE_CHECKING:
    from machnet.testing import Packet

    from .nodes import IcmpPacket, IpInfo, TcpOption, UdpPacket

__all__ = ["Endpoints", "Flow", "differences", "icmp_frame", "pattern", "tcp_frame", "udp_frame"]

_MOD = 2**32
_ECN = {"noecn": 0, "ect1": 1, "ect0": 2, "ce": 3}
_DATA = bytes((i * 131 + (i >> 8) * 17 + (i >> 16) * 5) & 0xFF for i in range(1 << 17))


def pattern(offset: int, length: int) -> bytes:
    """The octets of a stream from place ``offset`` on, where the script doesn't say which."""
    start = offset % len(_DATA)
    data = _DATA[start : start + length]
    while len(data) < length:
        data += _DATA[: length - len(data)]
    return data


@dataclass
class Endpoints:
    """Addresses of both sides."""

    local_ip: str
    local_mac: str
    remote_ip: str
    remote_mac: str


@dataclass
class Flow:
    """One connection, or one pair of UDP ports.

    Attributes:
        local_port: The stack's.
        remote_port: The script's.
        active: The stack opened it.
        script_isn: Number of the stack's SYN in the script.
        live_isn: The same on the wire; None: it has sent none yet.
        remote_isn: Number of the script's SYN; None: it has sent none yet.
        stamps: The stack's timestamps by the script's.
        written: What applications have sent, as far as it isn't the pattern.
    """

    local_port: int
    remote_port: int
    active: bool = False
    script_isn: int = 0
    live_isn: int | None = None
    remote_isn: int | None = None
    stamps: dict[int, int] = field(default_factory=dict)
    stamp_times: tuple[int, int, int] | None = None
    written: dict[int, bytes] = field(default_factory=dict)
    written_bytes: int = 0
    unacknowledged: int = 0

    @property
    def offset(self) -> int:
        """What is added to the script's numbers of the stack's octets."""
        return ((self.live_isn or 0) - self.script_isn) % _MOD

    def owns(self, packet: Packet) -> bool:
        """Whether a frame of the stack belongs to it."""
        return (packet.sport, packet.dport) == (self.local_port, self.remote_port)

    def text(self, packet: Packet, *, inbound: bool) -> str:
        """A frame in the script's notation and numbers."""
        return packet_text(packet, *((0, self.offset) if inbound else (self.offset, 0)))

    def wrote(self, data: bytes, count: int) -> None:
        """An application has sent the first ``count`` octets of these."""
        if data[:count] != pattern(self.written_bytes, count):
            self.written[self.written_bytes] = data[:count]
        self.written_bytes += count

    def sent_octets(self, offset: int, length: int) -> bytes:
        """What the applications sent, from that place on."""
        out = bytearray(pattern(offset, length))
        for start, data in self.written.items():
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                out[low - offset : high - offset] = data[low - start : high - start]
        return bytes(out)

    def live_stamp(self, value: int) -> int:
        """The stack's timestamp that the script calls ``value``."""
        if value == 0 or not self.stamps:
            return value
        if value in self.stamps:
            return self.stamps[value]
        script, live = next(iter(self.stamps.items()))
        return (live + value - script) % _MOD


# ---- frames that come in -------------------------------------------------------------------------


def _frame(ends: Endpoints, kind: str, ip: IpInfo, **fields: Any) -> bytes:
    tos = ip.tos or 0
    if ip.ecn is not None:
        tos = tos & 0xFC | _ECN[ip.ecn]
    values = {
        "eth_src": ends.remote_mac,
        "eth_dst": ends.local_mac,
        "src": ends.remote_ip,
        "dst": ends.local_ip,
        "tos": tos,
        "ttl": 255 if ip.ttl is None else ip.ttl,
        "ip_id": 0,
    }
    return make_frame(kind, values | fields)


def _live_option(option: TcpOption, flow: Flow) -> tuple[Any, Any]:
    values = option.values
    if option.kind == "sack":
        edges = [(edge + flow.offset) % _MOD for edge in values]
        return "sack", list(zip(edges[::2], edges[1::2], strict=True))
    if option.kind == "TS":
        return "ts", (values[0], flow.live_stamp(values[1]))
    if option.kind == "sackOK":
        return "sack_ok", None
    if option.kind == "FO":
        return FAST_OPEN_KIND, option.data
    if option.kind == "FOEXP":
        return 254, FOEXP_MAGIC + option.data
    return option.kind, values[0] if values else None


def tcp_frame(spec: TcpPacket, ip: IpInfo, flow: Flow, ends: Endpoints) -> bytes:
    """The frame of a segment that comes in."""
    start = spec.seq - (flow.remote_isn or 0) - 1 + ("S" in spec.flags)
    ack = ((spec.ack or 0) + (flow.offset if spec.ack is not None else 0)) % _MOD
    return _frame(
        ends, "tcp", ip,
        sport=flow.remote_port, dport=flow.local_port,
        seq=spec.seq, ack=ack, flags=spec.flags.replace(".", "A").replace("W", "C"),
        window=spec.window if spec.window is not None else 0, urgent=spec.urgent or 0,
        options=[_live_option(option, flow) for option in spec.options or ()],
        payload=pattern(start, spec.length),
    )  # fmt: skip


def udp_frame(spec: UdpPacket, ip: IpInfo, flow: Flow, ends: Endpoints) -> bytes:
    """The frame of a datagram that comes in."""
    return _frame(
        ends, "udp", ip, sport=flow.remote_port, dport=flow.local_port,
        payload=pattern(0, spec.length),
    )  # fmt: skip


def icmp_frame(spec: IcmpPacket, ip: IpInfo, flow: Flow, ends: Endpoints) -> bytes:
    """The frame of an ICMP error about a packet that the stack has sent."""
    seq = spec.seq if spec.seq is not None else flow.script_isn
    quoted = make_frame("udp" if spec.udp else "tcp", {
        "eth_src": ends.local_mac, "eth_dst": ends.remote_mac,
        "src": ends.local_ip, "dst": ends.remote_ip, "df": True,
        "sport": flow.local_port, "dport": flow.remote_port, "payload": bytes(spec.length),
    } | ({} if spec.udp else {"seq": (seq + flow.offset) % _MOD, "flags": "A"}))[14:]  # fmt: skip
    # The header and 8 octets, as RFC 792 has it.
    return _frame(
        ends, "icmp", ip,
        icmp_type=spec.type, icmp_code=spec.code, icmp_id=0, icmp_seq=spec.mtu or 0,
        payload=quoted[:28],
    )  # fmt: skip


# ---- frames that go out --------------------------------------------------------------------------


def differences(spec: TcpPacket | UdpPacket, ip: IpInfo, packet: Packet, flow: Flow) -> list[str]:
    """What is otherwise than the script expects: a line for each field."""
    lines: list[str] = []
    if packet.error is not None:
        lines.append(f"malformed: {packet.error}")
    if not packet.csum_ok:
        lines.append("checksum: wrong")
    assert packet.ip is not None
    if ip.tos is not None and packet.tos != ip.tos:
        _differ(lines, "tos", hex(ip.tos), hex(packet.tos))
    if ip.ttl is not None and packet.ttl != ip.ttl:
        _differ(lines, "ttl", ip.ttl, packet.ttl)
    if ip.ecn is not None:
        wanted = (1, 2) if ip.ecn == "ect01" else (_ECN[ip.ecn],)
        names = {number: name for name, number in _ECN.items()}
        if packet.ecn not in wanted:
            _differ(lines, "ECN", ip.ecn, names[packet.ecn])
    if packet.tcp is None:
        _datagram(lines, spec, packet)
    elif isinstance(spec, TcpPacket):
        _segment(lines, spec, packet, flow)
    else:
        _differ(lines, "protocol", "udp", "tcp")
    return lines


def _differ(lines: list[str], name: str, wanted: object, found: object) -> None:
    lines.append(f"{name}: expected {wanted}, found {found}")


def _datagram(lines: list[str], spec: TcpPacket | UdpPacket, packet: Packet) -> None:
    if isinstance(spec, TcpPacket) or packet.udp is None:
        wanted = "tcp" if isinstance(spec, TcpPacket) else "udp"
        _differ(lines, "protocol", wanted, packet.kind)
    elif packet.length != spec.length:
        _differ(lines, "length", spec.length, packet.length)


def _segment(lines: list[str], spec: TcpPacket, packet: Packet, flow: Flow) -> None:
    tcp = packet.tcp
    assert tcp is not None
    seq = (tcp.seq - flow.offset) % _MOD
    found_flags = flags_text(tcp.flags)
    if spec.any_push:
        found_flags = found_flags.replace("P", "")
    if found_flags != spec.flags:
        _differ(lines, "flags", spec.flags or "-", found_flags or "-")
    if seq != spec.seq:
        _differ(lines, "seq", spec.seq, seq)
    if packet.length != spec.length:
        _differ(lines, "length", spec.length, packet.length)
    if spec.ack is not None and (tcp.ack != spec.ack or "A" not in tcp.flags):
        _differ(lines, "ack", spec.ack, tcp.ack if "A" in tcp.flags else "none")
    if spec.window is not None and tcp.window != spec.window:
        _differ(lines, "win", spec.window, tcp.window)
    if spec.urgent is not None and tcp.urgent != spec.urgent:
        _differ(lines, "urg", spec.urgent, tcp.urgent)
    _options(lines, spec, options_of(packet))
    offset = (seq - flow.script_isn - 1 + ("S" in tcp.flags)) % _MOD
    if packet.length and packet.payload != flow.sent_octets(offset, packet.length):
        lines.append("payload: not the octets that the application sent at this place")


def _same_option(spec: TcpOption, found: TcpOption) -> bool:
    if spec.kind == found.kind == "TS":
        return spec.values[1] == found.values[1]  # the value is the stack's own, and is learnt
    return spec == found


def _options(lines: list[str], spec: TcpPacket, found: tuple[TcpOption, ...]) -> None:
    wanted = spec.options
    if wanted is None:
        return
    if spec.more_options:
        for option in wanted:
            if not any(_same_option(option, other) for other in found):
                _differ(lines, "options", option_text(option), options_text(found) or "none")
        return
    while wanted and wanted[-1].kind == "eol":
        wanted = wanted[:-1]
    same = len(wanted) == len(found) and all(map(_same_option, wanted, found))
    if not same:
        _differ(lines, "options", options_text(wanted) or "none", options_text(found) or "none")
