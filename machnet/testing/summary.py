# SPDX-License-Identifier: MIT
"""Packets as lines of text, in the style of ``tcpdump -n``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from machnet.testing.layers import Icmp, Ipv4, Tcp
    from machnet.testing.packet import Packet

__all__ = ["summarize"]

_TCPDUMP = {"A": ".", "C": "W"}
_OPTION_NAMES = {"sack_ok": "sackOK"}
_UNREACHABLE = {
    0: "net {dst} unreachable",
    1: "host {dst} unreachable",
    2: "{dst} protocol {proto} unreachable",
    3: "{dst} {l4} port {dport} unreachable",
    4: "{dst} unreachable - need to frag (mtu {mtu})",
    5: "{dst} unreachable - source route failed",
    9: "host {dst} unreachable - admin prohibited",
    10: "host {dst} unreachable - admin prohibited",
    13: "host {dst} unreachable - admin prohibited filter",
}

_MNP_BYTES = 54
_MNP_KINDS = {0: "DATA", 1: "SYN", 2: "ACK", 3: "SYN-ACK", 4: "FIN", 0x80: "RST"}


def _option(option: tuple[Any, Any]) -> str:
    name, value = option
    if value is None:
        return _OPTION_NAMES.get(name, str(name))
    if name == "ts":
        return f"TS val {value[0]} ecr {value[1]}"
    if name == "sack":
        return f"sack {len(value)} " + "".join(f"{{{left}:{right}}}" for left, right in value)
    if isinstance(value, bytes):
        return f"{'raw' if name == 'raw' else f'unknown-{name}'} 0x{value.hex()}"
    return f"{name} {value}"


def _tcp(tcp: Tcp) -> str:
    flags = "".join(_TCPDUMP.get(letter, letter) for letter in tcp.flags) or "none"
    size = len(tcp.payload)
    text = f"Flags [{flags}]"
    if size or tcp.bits & 0x07:
        text += f", seq {tcp.seq}" + (f":{tcp.seq + size}" if size else "")
    if tcp.bits & 0x10:
        text += f", ack {tcp.ack}"
    text += f", win {tcp.window}"
    if tcp.bits & 0x20:
        text += f", urg {tcp.urgent}"
    if tcp.options:
        text += f", options [{','.join(_option(option) for option in tcp.options)}]"
    return f"{text}, length {size}"


def _icmp(icmp: Icmp, ip_length: int) -> str:
    length = f", length {ip_length}"
    if icmp.type in (0, 8):
        name = "request" if icmp.type == 8 else "reply"
        return f"ICMP echo {name}, id {icmp.id}, seq {icmp.seq}{length}"
    quoted = icmp.quoted
    known = quoted.ip if quoted is not None else None
    if icmp.type == 3 and icmp.code in _UNREACHABLE and quoted is not None and known is not None:
        text = _UNREACHABLE[icmp.code].format(
            dst=known.dst,
            proto=known.proto,
            l4=quoted.kind,
            dport=quoted.dport,
            mtu=icmp.mtu,
        )
        return f"ICMP {text}{length}"
    if icmp.type == 11:
        what = "in-transit" if icmp.code == 0 else "reassembly"
        return (
            f"ICMP time exceeded {what}{length}"
            if icmp.code == 0
            else f"ICMP ip {what} time exceeded{length}"
        )
    return f"ICMP type {icmp.type}, code {icmp.code}{length}"


def _arp(packet: Packet) -> str:
    arp = packet.arp
    assert arp is not None
    if arp.op == 1:
        return f"ARP, Request who-has {arp.target_ip} tell {arp.sender_ip}, length 28"
    if arp.op == 2:
        return f"ARP, Reply {arp.sender_ip} is-at {arp.sender_mac}, length 28"
    return f"ARP, op {arp.op} from {arp.sender_ip} to {arp.target_ip}, length 28"


def _mnp(data: bytes) -> str:
    """The Machnet message protocol (docs/protocol.md); "" if it is something else."""
    if len(data) < _MNP_BYTES or data[:2] != b"NS" or data[2] not in _MNP_KINDS:
        return ""
    kind, ack = data[2], int.from_bytes(data[8:12], "big")
    text = f"MNP {_MNP_KINDS[kind]} seq {int.from_bytes(data[4:8], 'big')}"
    if kind != 1 and ack != 0xFFFFFFFF:
        text += f", ack {ack}"
    if kind in {1, 3} and data[12:16] == b"MNXT":
        text += ", extended"
    if kind == 0:
        flags = [name for bit, name in enumerate(("first", "more", "last")) if data[3] >> bit & 1]
        text += f" [{' '.join(flags) or 'none'}]"
    return f"{text}, length {len(data) - _MNP_BYTES}"


def _ip(packet: Packet, ip: Ipv4) -> str:
    length = ip.total_len - ip.header_len
    if ip.frag_offset or (ip.mf and packet.kind == "ip"):
        more = "+" if ip.mf else ""
        return (
            f"{ip.src} > {ip.dst}: proto {ip.proto} (frag {ip.id}:{length}@{ip.frag_offset}{more})"
        )
    tcp, udp, icmp = packet.tcp, packet.udp, packet.icmp
    if tcp is not None:
        return f"{ip.src}.{tcp.sport} > {ip.dst}.{tcp.dport}: {_tcp(tcp)}"
    if udp is not None:
        text = _mnp(udp.payload) or f"UDP, length {len(udp.payload)}"
        return f"{ip.src}.{udp.sport} > {ip.dst}.{udp.dport}: {text}"
    if icmp is not None:
        return f"{ip.src} > {ip.dst}: {_icmp(icmp, length)}"
    return f"{ip.src} > {ip.dst}: ip-proto-{ip.proto} {length}"


def summarize(packet: Packet) -> str:
    """One line about a packet; what is wrong with it stands in brackets at the end."""
    ip, eth = packet.ip, packet.eth
    if packet.kind == "arp":
        text = _arp(packet)
    elif ip is not None:
        text = _ip(packet, ip)
    elif eth is not None:
        size = len(packet.payload)
        text = f"{eth.src} > {eth.dst}, ethertype 0x{eth.type:04x}, length {size}"
    else:
        text = f"{len(packet)} bytes"
    if packet.error:
        text += f" [{packet.error}]"
    if not packet.csum_ok:
        text += " [bad checksum]"
    return text
