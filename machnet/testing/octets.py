# SPDX-License-Identifier: MIT
"""Checksums, addresses and flags: the small conversions between bytes and what people write."""

from __future__ import annotations

import ipaddress
import struct
from socket import inet_ntoa

__all__ = [
    "FLAG_TEXT",
    "checksum",
    "flag_bits",
    "format_ip",
    "format_mac",
    "ip_bytes",
    "mac_bytes",
    "ones_sum",
    "pseudo_header",
]

#: TCP flags from the lowest bit up (RFC 9293, section 3.1), in the order in which they are written.
FLAG_LETTERS = "FSRPAUEC"
_BITS = {letter: 1 << bit for bit, letter in enumerate(FLAG_LETTERS)} | {".": 0x10, "W": 0x80}

#: The text of each value of the flags' byte: ``FLAG_TEXT[0x12] == "SA"``.
FLAG_TEXT = tuple(
    "".join(letter for bit, letter in enumerate(FLAG_LETTERS) if bits >> bit & 1)
    for bits in range(256)
)

format_ip = inet_ntoa


def flag_bits(text: str) -> int:
    """``"SA"`` as bits. Letters of ``FSRPAUEC``; tcpdump's "." is A and its "W" is C.

    Raises:
        ValueError: Another letter.
    """
    bits = 0
    for letter in text:
        if letter not in _BITS:
            raise ValueError(f"flags {text!r}: {letter!r} is none of {FLAG_LETTERS} . W")
        bits |= _BITS[letter]
    return bits


def ones_sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words, 0 to 0xffff (2^16 is 1 modulo 2^16 - 1)."""
    number = int.from_bytes(data, "big") << (len(data) & 1) * 8
    return (number % 0xFFFF or 0xFFFF) if number else 0


def checksum(data: bytes) -> int:
    """The Internet checksum of ``data`` (RFC 1071)."""
    return 0xFFFF - ones_sum(data)


def pseudo_header(addresses: bytes, proto: int, length: int) -> bytes:
    """What a TCP or UDP checksum covers beside the segment; ``addresses``: source, destination."""
    return addresses + struct.pack(">HH", proto, length)


def ip_bytes(address: object) -> bytes:
    """An IPv4 address, "10.0.0.1" or `ipaddress.IPv4Address` or its 4 bytes, as 4 bytes.

    Raises:
        ValueError: It is none.
    """
    if isinstance(address, bytes) and len(address) == 4:
        return address
    try:
        return ipaddress.IPv4Address(str(address)).packed
    except ValueError:
        raise ValueError(f'{address!r} is no IPv4 address such as "10.0.0.1"') from None


def format_mac(mac: bytes) -> str:
    """6 bytes as "02:00:00:00:00:01"."""
    return mac.hex(":")


def mac_bytes(mac: object) -> bytes:
    """A MAC address, "02:00:00:00:00:01" or its 6 bytes, as 6 bytes.

    Raises:
        ValueError: It is none.
    """
    if isinstance(mac, bytes) and len(mac) == 6:
        return mac
    if isinstance(mac, str):
        parts = mac.replace("-", ":").split(":")
        try:
            if len(parts) == 6 and all(len(part) == 2 for part in parts):
                return bytes.fromhex("".join(parts))
        except ValueError:
            pass
    raise ValueError(f'{mac!r} is no MAC address such as "02:00:00:00:00:01"')
