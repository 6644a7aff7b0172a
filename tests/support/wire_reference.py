# SPDX-License-Identifier: MIT
"""The wire views once more, in plain Python from the RFCs: the oracle for arbitrary bytes.

scapy is the oracle for well-formed packets; it guesses where the core must refuse. These functions
answer for every input, in the form of ``wire_views``: a dict of fields, or the refusal's name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any] | str


def checksum(data: bytes | bytearray) -> int:
    """RFC 1071, word by word: the checksum field's value for ``data``, 0 to 65535."""
    padded = bytes(data) + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def pseudo_header(src: int, dst: int, proto: int, length: int) -> bytes:
    """The bytes that UDP and TCP over IPv4 checksum besides their own."""
    return struct.pack(">IIBBH", src, dst, 0, proto, length)


def eth(data: bytes | bytearray) -> Answer:
    """Ethernet II without tags."""
    if len(data) < 14:
        return "TRUNCATED"
    (ethertype,) = struct.unpack_from(">H", data, 12)
    if ethertype < 0x600 or ethertype in (0x8100, 0x88A8):
        return "UNSUPPORTED"
    return {
        "dst": bytes(data[:6]),
        "src": bytes(data[6:12]),
        "type": ethertype,
        "hdr_len": 14,
        "payload": (14, len(data) - 14),
    }


def _martian(ip: int) -> bool:
    first = ip >> 24
    return first in (0, 127) or 224 <= first <= 239 or ip == 0xFFFFFFFF


def arp(data: bytes | bytearray) -> Answer:
    """RFC 826 for IPv4 over Ethernet."""
    if len(data) < 28:
        return "TRUNCATED"
    hardware, protocol, hlen, plen, op = struct.unpack_from(">HHBBH", data)
    if (hardware, protocol) != (1, 0x800):
        return "UNSUPPORTED"
    if (hlen, plen) != (6, 4):
        return "BAD_LENGTH"
    if op not in (1, 2):
        return "UNSUPPORTED"
    sender_mac, sender_ip, target_mac, target_ip = struct.unpack_from(">6sI6sI", data, 8)
    if sender_mac[0] & 1 or not any(sender_mac) or (sender_ip and _martian(sender_ip)):
        return "BAD_ADDR"
    return {
        "op": op,
        "sender_ip": sender_ip,
        "target_ip": target_ip,
        "sender_mac": sender_mac,
        "target_mac": target_mac,
    }


def ipv4(data: bytes | bytearray) -> Answer:
    """RFC 791 without fragments."""
    if len(data) < 20:
        return "TRUNCATED"
    first, tos, total, ident, frag, ttl, proto, csum, src, dst = struct.unpack_from(
        ">BBHHHBBHII", data
    )
    if first >> 4 != 4:
        return "BAD_VERSION"
    header = (first & 15) * 4
    if header < 20 or total < header:
        return "BAD_LENGTH"
    if total > len(data):
        return "TRUNCATED"
    if checksum(data[:header]) != 0:
        return "BAD_CSUM"
    if frag & 0x3FFF:
        return "FRAGMENT"
    if _martian(src):
        return "BAD_ADDR"
    return {
        "src": src,
        "dst": dst,
        "total_len": total,
        "id": ident,
        "frag": frag,
        "csum": csum,
        "ihl": first & 15,
        "tos": tos,
        "ttl": ttl,
        "proto": proto,
        "hdr_len": header,
        "opts_len": header - 20,
        "opts": (20, header - 20),
        "payload": (header, total - header),
    }


def icmp(data: bytes | bytearray) -> Answer:
    """RFC 792."""
    if len(data) < 8:
        return "TRUNCATED"
    if checksum(data) != 0:
        return "BAD_CSUM"
    kind, code, csum, rest = struct.unpack_from(">BBHI", data)
    return {
        "type": kind,
        "code": code,
        "csum": csum,
        "rest": rest,
        "hdr_len": 8,
        "payload": (8, len(data) - 8),
    }


def icmp_quote(data: bytes | bytearray) -> Answer:
    """The packet that an ICMP error is about: IP header and at least 8 bytes."""
    if len(data) < 20:
        return "TRUNCATED"
    first, _, total, _, frag, ttl, proto, _, src, dst = struct.unpack_from(">BBHHHBBHII", data)
    if first >> 4 != 4:
        return "BAD_VERSION"
    header = (first & 15) * 4
    if header < 20 or total < header + 8:
        return "BAD_LENGTH"
    if len(data) < header + 8:
        return "TRUNCATED"
    if frag & 0x1FFF:
        return "FRAGMENT"
    sport, dport, seq = struct.unpack_from(">HHI", data, header)
    return {
        "src": src,
        "dst": dst,
        "total_len": total,
        "proto": proto,
        "ttl": ttl,
        "sport": sport if proto in (6, 17) else 0,
        "dport": dport if proto in (6, 17) else 0,
        "seq": seq if proto == 6 else 0,
        "hdr_len": header,
        "payload": (header, min(len(data), total) - header),
    }


def udp(data: bytes | bytearray) -> Answer:
    """RFC 768, checksum not looked at."""
    if len(data) < 8:
        return "TRUNCATED"
    sport, dport, length, csum = struct.unpack_from(">HHHH", data)
    if length < 8:
        return "BAD_LENGTH"
    if length > len(data):
        return "TRUNCATED"
    return {
        "sport": sport,
        "dport": dport,
        "len": length,
        "csum": csum,
        "hdr_len": 8,
        "payload": (8, length - 8),
    }


def tcp(data: bytes | bytearray) -> Answer:
    """RFC 9293 section 3.1, checksum and options not looked at."""
    if len(data) < 20:
        return "TRUNCATED"
    sport, dport, seq, ack, bits, wnd, csum, urg = struct.unpack_from(">HHIIHHHH", data)
    header = (bits >> 12) * 4
    if header < 20:
        return "BAD_LENGTH"
    if header > len(data):
        return "TRUNCATED"
    return {
        "sport": sport,
        "dport": dport,
        "seq": seq,
        "ack": ack,
        "flags": bits & 0x1FF,
        "wnd": wnd,
        "urg": urg,
        "csum": csum,
        "doff": bits >> 12,
        "hdr_len": header,
        "opts_len": header - 20,
        "opts": (20, header - 20),
        "payload": (header, len(data) - header),
    }


def _mss(body: bytes) -> int:
    return struct.unpack(">H", body)[0]


def _sack(body: bytes) -> list[tuple[int, int]]:
    return list(struct.iter_unpack(">II", body))


#: Kind: name, the body lengths that are legal, how to read the body.
_OPTIONS: dict[int, tuple[str, tuple[int, ...], Callable[[bytes], Any]]] = {
    2: ("mss", (2,), _mss),
    3: ("wscale", (1,), lambda body: body[0]),
    4: ("sack_permitted", (0,), lambda _: True),
    5: ("sack", (8, 16, 24, 32), _sack),
    8: ("ts", (8,), lambda body: struct.unpack(">II", body)),
}


def tcp_opts(data: bytes | bytearray) -> tuple[dict[str, Any], bool]:
    """RFC 9293 section 3.2: the options, and whether every length was legal."""
    found: dict[str, Any] = {}
    rest = bytes(data)
    while rest and rest[0] != 0:
        if rest[0] == 1:
            rest = rest[1:]
            continue
        if len(rest) < 2 or rest[1] < 2 or rest[1] > len(rest):
            return found, False
        kind, body, rest = rest[0], rest[2 : rest[1]], rest[rest[1] :]
        name, lengths, read = _OPTIONS.get(kind, ("", (), bytes))
        if len(body) not in lengths:
            found["unknown"] = found.get("unknown", 0) + 1
        elif name not in found:
            found[name] = read(body)
    return found, True
