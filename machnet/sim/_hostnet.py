# SPDX-License-Identifier: MIT
"""The network of a `KernelHost`: its interfaces, addresses, routes and settings."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import os
import re
import select
import socket as socketlib
import struct
import time
from typing import TYPE_CHECKING, Any, TypeVar

from machnet.sim import _nsinit
from machnet.sim._hostcore import HostCore, KernelHostError, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

LINK_UP_TIMEOUT_S = 5.0

_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_NAPI = 0x0010
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100
_TAP_QUEUES_MAX = 16
_IFF_RUNNING = 0x40
_SIOCGIFFLAGS = 0x8913
_SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_RTMGRP_LINK = 1
_VNET_HDR_BYTES = (10, 12)


def check_ifname(name: str) -> str:
    if not re.fullmatch(r"[^\s/:]{1,15}", name) or name in (".", ".."):
        raise ValueError(f"{name!r} can't name an interface: 1 to 15 characters, no space, / or :")
    return name


def check_mac(mac: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", mac):
        raise ValueError(f"{mac!r} is no MAC address: six hexadecimal bytes separated by colons")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{mac} is a multicast address: an interface needs one with bit 0 clear")
    return mac.lower()


class HostNetwork(HostCore):
    """The part of `KernelHost` that configures its network."""

    # ---- interfaces ------------------------------------------------------------------------------

    def open_tap(
        self,
        name: str = "mn0",
        *,
        vnet_hdr: bool = True,
        vnet_hdr_bytes: int = 12,
        offloads: bool = True,
        mtu: int = 1500,
        kernel_ip: str | None = None,
        mac: str | None = None,
    ) -> int:
        """Create a TAP device on this host and return its open descriptor.

        The descriptor is the cable's other end: what is written to it, the host receives, and the
        other way round. It is non-blocking and the caller's to close, which removes the device.

        Args:
            name: the interface's name on the host, at most 15 bytes.
            vnet_hdr: each frame is preceded by a ``struct virtio_net_hdr``.
            vnet_hdr_bytes: its size, 10 or 12.
            offloads: the kernel may hand over frames without checksums and segments of up to
                64 KiB (TUNSETOFFLOAD with CSUM, TSO4, TSO6). Only where there is a `vnet_hdr`.
            mtu: bytes without the Ethernet header, 68 to 65521.
            kernel_ip: the host's address on it, as "10.0.0.1/24".
            mac: the host's MAC; None gives one that is unique in this process (see `mac`).

        Raises:
            KernelHostError: /dev/net/tun can't be opened (`tap_available` asks beforehand), or
                the kernel refused something.
        """
        queues = self.open_tap_queues(
            name,
            1,
            vnet_hdr=vnet_hdr,
            vnet_hdr_bytes=vnet_hdr_bytes,
            offloads=offloads,
            mtu=mtu,
            kernel_ip=kernel_ip,
            mac=mac,
        )
        return queues[0]

    def open_tap_queues(
        self,
        name: str,
        queues: int,
        *,
        vnet_hdr: bool = True,
        vnet_hdr_bytes: int = 12,
        offloads: bool = True,
        mtu: int = 1500,
        kernel_ip: str | None = None,
        mac: str | None = None,
    ) -> list[int]:
        """As `open_tap`, for a device with several queues: a descriptor of each.

        Args:
            name: as there.
            queues: 1 to 16; the kernel lets a device have more than one only when it is made so.
            vnet_hdr: as there, and so on.
            vnet_hdr_bytes: as there.
            offloads: as there.
            mtu: as there.
            kernel_ip: as there.
            mac: as there.

        Raises:
            KernelHostError: as there.
        """
        if not 1 <= queues <= _TAP_QUEUES_MAX:
            raise ValueError(f"queues: {queues} is not within 1 to {_TAP_QUEUES_MAX}")
        check_ifname(name)
        mac = check_mac(mac) if mac is not None else self._new_mac()
        address = ipaddress.IPv4Interface(kernel_ip) if kernel_ip is not None else None
        if vnet_hdr_bytes not in _VNET_HDR_BYTES:
            raise ValueError(f"a vnet header has 10 or 12 bytes, not {vnet_hdr_bytes}")
        # IFF_NAPI: no interrupt every 32 frames to free them, and so no tail of 20 us.
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_NAPI | (_IFF_VNET_HDR if vnet_hdr else 0)
        flags |= _IFF_MULTI_QUEUE if queues > 1 else 0
        header_bytes = vnet_hdr_bytes if vnet_hdr else 0
        fds: list[int] = []
        try:
            for _ in range(queues):
                fds += self._request("tap", name, flags, header_bytes, offloads, fds=1)[1]
            self.set_link(name, mtu=mtu, mac=mac)
            if address is not None:
                self.add_address(name, str(address))
            self.set_link(name, up=True)
            self._wait_running(name)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def _new_mac(self) -> str:
        # Locally administered, "MN", and numbers: the same in every run, readable in a capture.
        number = struct.pack("!HB", self._number & 0xFFFF, next(self._macs) & 0xFF)
        return f"02:4d:4e:{number.hex(':')}"

    def _ifreq(self, name: str, command: int, what: str) -> bytes:
        with self.socket(socketlib.AF_INET, socketlib.SOCK_DGRAM) as sock:
            try:
                request = struct.pack("16s24x", check_ifname(name).encode())
                return fcntl.ioctl(sock, command, request)[16:]
            except OSError as error:
                number = error.errno or errno.EIO
                raise failure(self, f"reading the {what} of {name}", number) from error

    def mac(self, ifname: str) -> str:
        """The MAC address of an interface, as "02:4d:4e:00:01:01"."""
        return self._ifreq(ifname, _SIOCGIFHWADDR, "MAC address")[2:8].hex(":")

    def mtu(self, ifname: str) -> int:
        """The MTU of an interface in bytes, without the Ethernet header."""
        return int(struct.unpack_from("i", self._ifreq(ifname, _SIOCGIFMTU, "MTU"))[0])

    def _is_running(self, name: str) -> bool:
        return bool(
            struct.unpack_from("H", self._ifreq(name, _SIOCGIFFLAGS, "flags"))[0] & _IFF_RUNNING
        )

    def _wait_running(self, name: str) -> None:
        """Wait until an interface carries frames: before, what is sent is lost without a word."""
        deadline = time.monotonic() + LINK_UP_TIMEOUT_S
        with self.socket(socketlib.AF_NETLINK, socketlib.SOCK_RAW, socketlib.NETLINK_ROUTE) as news:
            news.bind((0, _RTMGRP_LINK))
            poll = select.poll()
            poll.register(news, select.POLLIN)
            while not self._is_running(name):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise failure(self, f"waiting for a carrier on {name}", errno.ETIMEDOUT)
                if poll.poll(left * 1000):
                    news.recv(_nsinit.MESSAGE_BYTES_MAX)

    def set_offloads(self, ifname: str, on: bool) -> dict[str, bool]:
        """Turn checksum, segmentation and aggregation offloads of an interface on or off.

        Returns:
            How each stands now, by name (``"tso"``, ``"gro"``, ...); a device may lack some.

        Raises:
            KernelHostError: The kernel refused.
        """
        states, _ = self._request("offloads", check_ifname(ifname), on)
        return dict(states)

    def offloads(self, ifname: str) -> dict[str, bool]:
        """How the offloads of an interface stand, by name."""
        states, _ = self._request("offloads", check_ifname(ifname), None)
        return dict(states)

    # ---- configuration ---------------------------------------------------------------------------

    def sysctl(self, name: str, value: str | int | None = None) -> str:
        """Read a setting under ``net.`` of this host, after writing it if there is a `value`.

        Args:
            name: as "net.ipv4.tcp_sack", or with slashes where an interface's name has a dot.
            value: what to write.

        Returns:
            The value as the kernel shows it.

        Raises:
            ValueError: The setting is not under ``net.``: it would be the whole machine's.
            KernelHostError: There is no such setting in a network namespace, or it refuses `value`.
        """
        parts = name.split("/") if "/" in name else name.split(".")
        if parts[0] != "net" or ".." in parts or "" in parts:
            raise ValueError(
                f"{name!r} is not a setting under net.: others are the whole machine's"
            )
        path = "/proc/sys/" + "/".join(parts)
        if value is not None:
            self._request("write_file", f"setting the sysctl {name} to {value!r}", path, str(value))
        text, _ = self._request("read_file", f"reading the sysctl {name}", path)
        return str(text).strip()

    @contextlib.contextmanager
    def iproute(self) -> Iterator[Any]:
        """A `pyroute2.IPRoute` on this host, for whatever has no method here.

        Raises:
            KernelHostError: This thread runs an event loop, in which pyroute2 can't work.
        """
        # Here, because importing it takes longer than everything else that a host does.
        from asyncio import _get_running_loop

        from pyroute2 import IPRoute  # type: ignore[import-untyped,unused-ignore]

        if _get_running_loop() is not None:
            raise KernelHostError(f"{self}: iproute() can't work in a thread with an event loop")
        sock = self.socket(socketlib.AF_NETLINK, socketlib.SOCK_DGRAM, socketlib.NETLINK_ROUTE)
        route = IPRoute(fileno=sock.detach())
        try:
            yield route
        finally:
            route.close()

    def _netlink(self, step: str, work: Callable[[Any], T]) -> T:
        """`work` with a pyroute2.IPRoute, in a thread without an event loop."""

        def task() -> T:
            with self.iproute() as route:
                return work(route)

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as pool:
            try:
                return pool.submit(task).result()
            except KernelHostError:
                raise
            except Exception as error:
                # pyroute2's NetlinkError has the errno as its code.
                number = getattr(error, "code", None) or getattr(error, "errno", None)
                if number is None:
                    raise
                raise failure(self, step, number) from error

    def _index(self, route: Any, ifname: str) -> int:
        found = route.link_lookup(ifname=ifname)
        if not found:
            raise failure(self, f"looking up the interface {ifname}", errno.ENODEV)
        return int(found[0])

    def set_link(
        self,
        ifname: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        mac: str | None = None,
    ) -> None:
        """Change an interface; what is None stays as it is.

        Args:
            ifname: its name.
            up: bring it up or down.
            mtu: bytes without the Ethernet header.
            mac: its MAC address.

        Raises:
            KernelHostError: The kernel refused, or there is no such interface.
        """
        changes: dict[str, Any] = {}
        if up is not None:
            changes["state"] = "up" if up else "down"
        if mtu is not None:
            changes["mtu"] = mtu
        if mac is not None:
            changes["address"] = check_mac(mac)
        step = f"setting {changes} on the interface {ifname}"
        self._netlink(step, lambda ip: ip.link("set", index=self._index(ip, ifname), **changes))

    def add_address(self, ifname: str, address: str) -> None:
        """Give an interface an IPv4 address with its prefix, as "10.0.0.1/24".

        Raises:
            KernelHostError: The kernel refused (EEXIST: it has it already).
        """
        parsed = ipaddress.IPv4Interface(address)
        self._netlink(
            f"adding the address {parsed} to {ifname}",
            lambda ip: ip.addr(
                "add",
                index=self._index(ip, ifname),
                address=str(parsed.ip),
                prefixlen=parsed.network.prefixlen,
            ),
        )

    def add_route(
        self, destination: str, *, via: str | None = None, ifname: str | None = None
    ) -> None:
        """Add an IPv4 route.

        Args:
            destination: a network as "10.2.0.0/16", or "default".
            via: address of the gateway.
            ifname: the interface; may be left out where `via` tells it.

        Raises:
            KernelHostError: The kernel refused (ENETUNREACH: the gateway is on no link).
        """
        if via is None and ifname is None:
            raise ValueError(f"the route to {destination} needs via=, ifname=, or both")
        network = "0.0.0.0/0" if destination == "default" else destination
        options: dict[str, Any] = {"dst": str(ipaddress.IPv4Network(network))}
        if via is not None:
            options["gateway"] = str(ipaddress.IPv4Address(via))

        def work(ip: Any) -> None:
            if ifname is not None:
                options["oif"] = self._index(ip, ifname)
            ip.route("add", **options)

        self._netlink(f"adding the route to {destination}", work)

    def neighbor(self, ip: str, mac: str, ifname: str) -> None:
        """Tell the host a neighbour's MAC address for good, so that it does not ask by ARP.

        Raises:
            KernelHostError: The kernel refused.
        """
        self._netlink(
            f"setting the neighbour {ip}",
            lambda route: route.neigh(
                "replace",
                dst=str(ipaddress.IPv4Address(ip)),
                lladdr=check_mac(mac),
                ifindex=self._index(route, ifname),
                state="permanent",
            ),
        )
