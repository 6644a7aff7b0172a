# SPDX-License-Identifier: MIT
"""Network interfaces of this host: what would be lost with one, and putting it back as it was.

The few calls that this takes are made by hand (ioctl, netlink): a library for them costs a quarter of a
second to import, and much more in an emulated machine.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

from machnet.dpdk.records import Former

__all__ = ["Links"]

# linux/sockios.h, linux/if.h
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_SIOCGIFMTU, _SIOCSIFMTU = 0x8921, 0x8922
_SIOCSIFNAME = 0x8923
_UP = 1
# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _CREATE_NEW = 0x1, 0x4, 0x300, 0x600
_NEWADDR, _GETADDR = 20, 22
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_PERMANENT = 0x80
_LINK_SCOPE = 253
_HEADER, _ADDRESS, _ATTRIBUTE = struct.Struct("IHHII"), struct.Struct("BBBBI"), struct.Struct("HH")


class Links:
    """The interfaces of the network namespace that this process is in."""

    def here(self, name: str) -> bool:
        """Whether there is such an interface in this namespace."""
        return any(known == name for _, known in socket.if_nameindex())

    def former(self, name: str, mac: str) -> Former:
        """An interface as it is now; of one that is not in this namespace, its name and address."""
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return Former(name, mac)
        (flags,) = struct.unpack_from("H", _ifreq(name, _SIOCGIFFLAGS))
        (mtu,) = struct.unpack_from("i", _ifreq(name, _SIOCGIFMTU))
        return Former(name, mac, bool(flags & _UP), mtu, tuple(_addresses(index)))

    def has_default_route(self, name: str) -> bool:
        """Whether packets to anywhere leave by this interface (the main table, IPv4 and IPv6)."""
        for line in _lines("/proc/net/route"):
            fields = line.split()
            if fields[0] == name and fields[1] == fields[7] == "00000000":
                return True
        for line in _lines("/proc/net/ipv6_route"):
            fields = line.split()
            # "::/0"; the kernel's own entry that means "nowhere" is on lo.
            if fields[9] == name and fields[0] == "0" * 32 and fields[1] == "00":
                return True
        return False

    def restore(self, former: Former, name: str) -> None:
        """Make an interface what it was: name, MTU, addresses, and up.

        Args:
            former: What it was.
            name: What it is called now.

        Raises:
            OSError: The kernel refused something.
        """
        if name != former.name:
            _ifreq(name, _SIOCSIFNAME, os.fsencode(former.name))
        if former.mtu:
            _ifreq(former.name, _SIOCSIFMTU, struct.pack("i", former.mtu))
        if former.up:
            (flags,) = struct.unpack_from("H", _ifreq(former.name, _SIOCGIFFLAGS))
            _ifreq(former.name, _SIOCSIFFLAGS, struct.pack("H", flags | _UP))
        for text in former.addresses:
            _add_address(socket.if_nametoindex(former.name), ipaddress.ip_interface(text))


def _ifreq(name: str, request: int, value: bytes = b"") -> bytes:
    """Ask the kernel something about an interface, or tell it; what is behind the name."""
    given = struct.pack("16s24s", os.fsencode(name), value)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return fcntl.ioctl(sock, request, given)[16:]


def _ask(kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
    """The messages that answer a request to the kernel's routing, each without its header."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        length = _HEADER.size + len(payload)
        sock.sendto(_HEADER.pack(length, kind, _REQUEST | flags, 1, 0) + payload, (0, 0))
        while True:
            data = sock.recv(65536)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if kind == _ERROR:
                    (number,) = struct.unpack_from("i", message)
                    if number:
                        raise OSError(-number, os.strerror(-number))
                    return
                if kind == _DONE:
                    return
                yield message


def _addresses(index: int) -> Iterator[str]:
    """What is to be put back of an interface's addresses."""
    for message in _ask(_GETADDR, _DUMP, _ADDRESS.pack(0, 0, 0, 0, 0)):
        family, length, flags, scope, where = _ADDRESS.unpack_from(message)
        if where != index or scope == _LINK_SCOPE:
            continue
        found: dict[int, bytes] = {}
        rest = message[_ADDRESS.size :]
        while len(rest) >= _ATTRIBUTE.size:
            size, kind = _ATTRIBUTE.unpack_from(rest)
            found[kind] = rest[_ATTRIBUTE.size : size]
            rest = rest[(size + 3) & ~3 :]
        if _IFA_FLAGS in found:
            (flags,) = struct.unpack("I", found[_IFA_FLAGS])
        # IPv6 addresses with a lifetime are made anew by the kernel.
        if family == socket.AF_INET or flags & _PERMANENT:
            raw = found.get(_IFA_LOCAL, found[_IFA_ADDRESS])
            yield f"{ipaddress.ip_address(raw)}/{length}"


def _add_address(index: int, address: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> None:
    """Add it, unless it is there."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    packed = address.ip.packed
    payload = _ADDRESS.pack(family, address.network.prefixlen, 0, 0, index)
    for kind in (_IFA_LOCAL, _IFA_ADDRESS):
        payload += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), kind) + packed
    try:
        for _ in _ask(_NEWADDR, _ACK | _CREATE_NEW, payload):
            pass
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise


def _lines(path: str) -> list[str]:
    """Of a table of the kernel, without a title."""
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip() and not line.startswith("Iface")]
