# SPDX-License-Identifier: MIT
"""Addresses, ports and protocol names: between what people write and what the core takes."""

from __future__ import annotations

import socket
import struct

__all__ = [
    "format_ip",
    "format_mac",
    "parse_interface",
    "parse_ip",
    "parse_mac",
    "parse_port",
    "parse_protocol",
    "protocol_name",
]

PROTOCOLS = {"udp": 0, "tcp": 1, "stream": 2}
_NAMES = {number: name for name, number in PROTOCOLS.items()}

#: Prefix length of an interface address that is given without one.
PREFIX_DEFAULT = 24


def parse_ip(text: str, what: str = "address") -> int:
    """An IPv4 address in dotted form as a number.

    Raises:
        TypeError: It is no string.
        ValueError: It is no IPv4 address.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what}: an IPv4 address is a string such as '10.0.0.1', not {text!r}")
    try:
        return int(struct.unpack("!I", socket.inet_pton(socket.AF_INET, text))[0])
    except (OSError, ValueError):
        raise ValueError(
            f"{what}: {text!r} is no IPv4 address (four numbers from 0 to 255, as 10.0.0.1)"
        ) from None


def parse_interface(text: str, what: str = "ip") -> tuple[int, int]:
    """An address such as "10.0.0.2/24" as number and prefix length; without a length it is 24.

    Raises:
        TypeError: It is no string.
        ValueError: It is no IPv4 address with a prefix length of 0 to 32.
    """
    if not isinstance(text, str):
        raise TypeError(f"{what}: an interface address is a string such as '10.0.0.2/24'")
    address, slash, prefix = text.partition("/")
    if not slash:
        return parse_ip(address, what), PREFIX_DEFAULT
    if not (prefix.isascii() and prefix.isdigit() and int(prefix) <= 32):
        raise ValueError(f"{what}: {text!r} has no prefix length from 0 to 32 behind the '/'")
    return parse_ip(address, what), int(prefix)


def format_ip(number: int) -> str:
    """The dotted form of an IPv4 address."""
    return socket.inet_ntoa(struct.pack("!I", number))


def parse_mac(text: str) -> bytes:
    """An address such as "02:00:00:00:00:01" as six bytes.

    Raises:
        ValueError: It is no MAC address.
    """
    parts = text.split(":")
    try:
        mac = bytes(int(part, 16) for part in parts if len(part) == 2)
    except ValueError:
        mac = b""
    if len(parts) != 6 or len(mac) != 6:
        raise ValueError(f"{text!r} is no MAC address: six hexadecimal bytes separated by colons")
    return mac


def format_mac(mac: bytes) -> str:
    """Six bytes as "02:00:00:00:00:01"."""
    return mac.hex(":")


def parse_port(port: int, what: str = "port", *, zero: bool = False) -> int:
    """A port number, checked.

    Raises:
        TypeError: It is no integer.
        ValueError: It is not within 1 to 65535 (0 with ``zero``).
    """
    given: object = port
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{what}: a port is an integer, not {port!r}")
    least = 0 if zero else 1
    if not least <= port <= 65535:
        raise ValueError(f"{what}: {port} is not within {least} to 65535")
    return port


def parse_protocol(protocol: str) -> int:
    """The number of "udp", "tcp" or "stream".

    Raises:
        ValueError: It is none of these.
    """
    number = PROTOCOLS.get(protocol)
    if number is None:
        raise ValueError(f"protocol: {protocol!r} is none of 'udp', 'tcp' and 'stream'")
    return number


def protocol_name(number: int) -> str:
    """The name of a transport's number."""
    return _NAMES.get(number, str(number))
