# SPDX-License-Identifier: MIT
"""Valid headers made from the RFCs' layouts by hand, as a start for cutting and mutating."""

from __future__ import annotations

import struct

from wire_reference import checksum, pseudo_header

CLIENT = 0x0A000001
SERVER = 0x0A000002
CLIENT_MAC = bytes.fromhex("020000000001")
SERVER_MAC = bytes.fromhex("020000000002")


def with_checksum(data: bytes | bytearray, at: int, pseudo: bytes = b"") -> bytes:
    """``data`` with the right checksum in the two bytes at offset ``at``."""
    changed = bytearray(data)
    changed[at : at + 2] = b"\0\0"
    changed[at : at + 2] = struct.pack(">H", checksum(pseudo + bytes(changed)))
    return bytes(changed)


def ipv4(
    payload: bytes,
    proto: int = 6,
    src: int = CLIENT,
    dst: int = SERVER,
    *,
    options: bytes = b"",
    frag: int = 0x4000,
    total: int | None = None,
) -> bytes:
    """An IPv4 packet; ``options`` come in multiples of 4 bytes, ``total`` overrides its length."""
    header = 20 + len(options)
    fixed = struct.pack(
        ">BBHHHBBHII",
        *(0x40 | header // 4, 0x28, header + len(payload) if total is None else total),
        *(0x1234, frag, 64, proto, 0, src, dst),
    )
    return with_checksum(fixed + options, 10) + payload


def udp(payload: bytes, src: int = CLIENT, dst: int = SERVER) -> bytes:
    """A UDP datagram from port 4000 to 31580."""
    data = struct.pack(">HHHH", 4000, 31580, 8 + len(payload), 0) + payload
    return with_checksum(data, 6, pseudo_header(src, dst, 17, len(data)))


def tcp(
    payload: bytes = b"",
    *,
    options: bytes = b"",
    flags: int = 0x18,
    doff: int | None = None,
    urg: int = 0,
) -> bytes:
    """A TCP segment from port 40000 to 888; ``doff`` (32-bit words) overrides its data offset."""
    words = 5 + len(options) // 4 if doff is None else doff
    data = struct.pack(
        ">HHIIHHHH",
        *(40000, 888, 0xFFFFFFF0, 0x01020304, words << 12 | flags, 0xFFFF, 0, urg),
    )
    data += options + payload
    return with_checksum(data, 16, pseudo_header(CLIENT, SERVER, 6, len(data)))


def icmp(kind: int, code: int, rest: int, payload: bytes) -> bytes:
    """An ICMP message."""
    return with_checksum(struct.pack(">BBHI", kind, code, 0, rest) + payload, 2)


def arp(op: int = 1, sender_mac: bytes = CLIENT_MAC, sender_ip: int = CLIENT) -> bytes:
    """An ARP packet for the server's address."""
    head = struct.pack(">HHBBH", 1, 0x800, 6, 4, op)
    return head + struct.pack(">6sI6sI", sender_mac, sender_ip, bytes(6), SERVER)


def eth(ethertype: int, payload: bytes) -> bytes:
    """An Ethernet II frame, not padded."""
    return SERVER_MAC + CLIENT_MAC + struct.pack(">H", ethertype) + payload


TS_OPTIONS = b"\x01\x01\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x02"
SYN_OPTIONS = b"\x02\x04\x05\xb4\x04\x02\x08\x0a\x00\x00\x00\x01\x00\x00\x00\x00\x01\x03\x03\x07"

#: One valid input per view, with options and payload where the header can have them.
VALID = {
    "eth": eth(0x800, ipv4(tcp(b"hello"))),
    "arp": arp(),
    "ipv4": ipv4(tcp(b"hello", options=TS_OPTIONS), options=b"\x94\x04\x00\x00\x01\x01\x01\x00"),
    "icmp": icmp(8, 0, 0x12340001, bytes(range(56))),
    "icmp_quote": ipv4(tcp(b"hello", options=TS_OPTIONS), options=b"\x94\x04\x00\x00"),
    "udp": udp(b"datagram"),
    "tcp": tcp(b"hello", options=SYN_OPTIONS + b"\x05\x0a" + bytes(8) + b"\x01\x00"),
    "tcp_opts": SYN_OPTIONS + b"\x01\x01\x05\x0a" + b"\x00\x00\x00\x01\x00\x00\x00\x09\x1e\x04ab",
}
